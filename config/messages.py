"""A pydantic ValidationError -> one sentence a problem: key path, rule, and the value.

Must never show a value that may be a secret.
"""

import difflib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError

from config import overrides, settings

KeyPath = tuple[str | int, ...]

_SECRET = re.compile(r"token|secret|passw|credential|private|api_?key|xox[a-z]-", re.IGNORECASE)
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_./-]{1,64}")
_RULES = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text (put a number or a word such as true in quotes)",
    "string_unicode": "must be text without broken characters",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "tuple_type": "must be a list",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} items",
}


class Problem(NamedTuple):
    """Where a rule is broken, and the whole text without the place."""

    path: KeyPath
    text: str


def problems(error: ValidationError) -> Iterator[Problem]:
    """Every problem of a failed validation of `Settings`, in the order of the models."""
    for found in error.errors(include_url=False):
        context: dict[str, Any] = found.get("ctx", {})
        path = tuple(part for part in found["loc"] if part != "[key]")
        if found["type"] == "inconsistent":
            for where, rule in context["problems"]:
                yield Problem(where, f"{dotted(where)}: {rule}")
        elif found["type"] == "extra_forbidden":
            yield Problem(path, f"{dotted(path)}: is not a known key{_nearest(path)}")
        elif found["type"] == "missing":
            yield Problem(path, f"{dotted(path)}: {_RULES['missing']}")
        elif found["loc"][-1:] == ("[key]",):
            yield Problem(path, f"{dotted(path)}: the key {_sentence(found['type'], found['msg'], context)}")
        else:
            rule = _sentence(found["type"], found["msg"], context)
            key = f"{dotted(path)}: " if path else ""
            got = (
                "" if found["type"] == "value_error" and not path else f" (got {shown(path, found['input'])})"
            )
            yield Problem(path, f"{key}{rule}{got}")


def dotted(path: KeyPath) -> str:
    """A key path as people write it: `nodes[1].num_gpus`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _PLAIN_KEY.fullmatch(part) else _short(part))
    return text


def shown(path: KeyPath, value: object) -> str:
    """A value for a message: short, without control characters, and never one that may be a secret."""
    if isinstance(value, dict | list | tuple):
        return kind(value)
    secret = any(isinstance(part, str) and _SECRET.search(part) for part in path)
    if value is not None and (secret or (isinstance(value, str) and _SECRET.search(value))):
        return "***"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _short(value)


def kind(value: object) -> str:
    """What a value is, in YAML's words."""
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else "a single value"


def _short(value: object) -> str:
    if isinstance(value, str):
        return ascii(value) if len(value) <= 80 else f"{value[:60]!a}... ({len(value)} characters)"
    return str(value)[:80]


def _sentence(type_: str, message: str, context: dict[str, Any]) -> str:
    if type_ == "value_error":
        return str(context["error"])
    return _RULES[type_].format(**context) if type_ in _RULES else message[:1].lower() + message[1:]


def _nearest(path: KeyPath) -> str:
    """A hint for an unknown key."""
    if len(path) == 1:
        known = list(settings.Settings.model_fields)
    else:
        model = settings.Node if path[0] == "nodes" else overrides.sections()[str(path[0])]
        known = list(model.model_fields)
    near = difflib.get_close_matches(str(path[-1])[:64].lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"
