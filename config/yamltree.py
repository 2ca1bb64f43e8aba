"""YAML text -> plain values and the line of every key: the safe part of YAML 1.2 that a cluster file needs.

Never builds an object from a tag, never follows an alias, and never recurses deeper than `MAX_DEPTH`.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

Path = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_DEPTH = 12
MAX_EVENTS = 100_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | float | None] = {"": None, "~": None}
for _word, _value in (("null", None), ("true", True), ("false", False)):
    _WORDS |= dict.fromkeys((_word, _word.capitalize(), _word.upper()), _value)
for _word in (".inf", ".Inf", ".INF"):
    _WORDS |= {_word: float("inf"), f"+{_word}": float("inf"), f"-{_word}": float("-inf")}
_WORDS |= dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan"))


class YamlError(Exception):
    """Why a text is refused: the line (from 1, or None), the key path and a sentence."""

    def __init__(self, line: int | None, path: Path, rule: str) -> None:
        super().__init__(line, path, rule)
        self.line, self.path, self.rule = line, path, rule


def parse(text: str) -> tuple[Any, dict[Path, int]]:
    """The one document in `text`, and the line of every key and list item by its path.

    Raises:
        YamlError: The text is not YAML, or uses a part of YAML that cluster files may not use.
    """
    try:
        return _Builder(_events(text)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        reason = error.problem or error.context or "cannot be read"
        rule = f"is not valid YAML: {reason} (text with special characters such as : needs quotes)"
        raise YamlError(None if mark is None else mark.line + 1, (), rule) from None
    except (yaml.YAMLError, UnicodeError):
        raise YamlError(None, (), "must be text without control characters; save it as UTF-8") from None


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar: null, a boolean, a number, else the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if len(text) <= 64 and _FLOAT.fullmatch(text) else text


def _events(text: str) -> Iterator[Any]:
    """The parser's events, with everything refused that needs no context."""
    documents = 0
    events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
    for count, event in enumerate(events):
        line = event.start_mark.line + 1
        if count > MAX_EVENTS:
            raise YamlError(line, (), f"has more than {MAX_EVENTS} keys and values")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise YamlError(line, (), "must hold one YAML document; remove what follows the second ---")
        if getattr(event, "anchor", None) is not None:
            raise YamlError(line, (), "must not use anchors or aliases (& and *); write the value out")
        if getattr(event, "tag", None) is not None:
            raise YamlError(line, (), "must not use tags (!...); write the plain value")
        yield event


class _Builder:
    """Builds values from events, one `next` at a time."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._lines: dict[Path, int] = {}

    def document(self) -> tuple[Any, dict[Path, int]]:
        """The document; an empty one is None."""
        value = None
        for event in self._events:
            if isinstance(event, yaml.NodeEvent):
                value = self._value(event, ())
        return value, self._lines

    def _value(self, event: Any, path: Path) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            return scalar(event.value) if event.implicit[0] else event.value
        if len(path) >= MAX_DEPTH:
            line = event.start_mark.line + 1
            raise YamlError(line, path[:4], f"is nested more than {MAX_DEPTH} levels deep")
        return self._list(path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(path)

    def _list(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            here = (*path, len(items))
            self._lines[here] = event.start_mark.line + 1
            items.append(self._value(event, here))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                raise YamlError(line, path, "must have plain words as keys, not a list or mapping")
            here = (*path, event.value)
            if event.value in mapping:
                raise YamlError(line, here, f"is there twice; the first is on line {self._lines[here]}")
            self._lines[here] = line
            mapping[event.value] = self._value(next(self._events), here)
        return mapping
