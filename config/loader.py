"""A cluster file and GRID_AGENT__ variables -> Settings; every problem names file, line, key, value and rule.

Must never echo the value of a key that may hold a secret, and must refuse any text in bounded time.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config import messages, overrides, yamltree
from config.settings import Settings

KeyPath = tuple[str | int, ...]
_NO_VARIABLES: Mapping[str, str] = {}
_SHOWN = 20


class ConfigError(Exception):
    """A cluster file that cannot be used. `str()` is the whole message, one problem a line."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        more = len(self.problems) - _SHOWN
        tail = [f"... and {more} more"] if more > 0 else []
        return "\n".join([*self.problems[:_SHOWN], *tail])


def default_file() -> Path:
    """The cluster file for use without `-c`: a head and two workers on this machine."""
    return Path(__file__).with_name("local.yaml")


def load(path: Path | str, environ: Mapping[str, str]) -> Settings:
    """Settings from a file, with overrides from the environment.

    Args:
        path: The cluster file.
        environ: Where to look for GRID_AGENT__ variables, usually `os.environ`.

    Raises:
        ConfigError: The file cannot be read, or it or a variable breaks a rule.
    """
    return loads(_read(Path(path)), str(path), environ)


def loads(text: str, source_name: str, environ: Mapping[str, str] = _NO_VARIABLES) -> Settings:
    """Settings from YAML (or JSON) text.

    Args:
        text: The text of a cluster file.
        source_name: What messages call it, usually the file's path.
        environ: Where to look for GRID_AGENT__ variables.

    Raises:
        ConfigError: The text or a variable breaks a rule.
    """
    tree, lines = _parse(text, source_name)
    origins, refused = overrides.apply(tree, environ)
    if refused:
        raise ConfigError(*refused)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        problems = [
            f"{_place(found.path, source_name, lines, origins)}: {found.text}"
            for found in messages.problems(error)
        ]
    raise ConfigError(*problems)


def dump(settings: Settings) -> str:
    """JSON text with every key, which `loads` reads back to equal settings."""
    return json.dumps(settings.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def _read(path: Path) -> str:
    """The text of a file that is small, regular and UTF-8."""
    try:
        # Not blocking: a named pipe without a writer must not hang the command.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; check the path after -c") from None
    except PermissionError:
        raise ConfigError(f"{path}: may not be read by this user; change its owner or mode") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path!s:.300}: cannot be opened: {getattr(error, 'strerror', None) or error}"
        ) from None
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{path}: is a folder; name a file in it")
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path}: is not a regular file; write the text to a file and name that")
        with os.fdopen(handle, "rb", closefd=False) as file:
            raw = file.read(yamltree.MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(handle)
    if len(raw) > yamltree.MAX_BYTES:
        raise ConfigError(f"{path}: is larger than 1 MiB; it cannot be a cluster file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text; save it as UTF-8") from None


def _parse(text: str, source: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The text's top-level mapping and its lines."""
    if len(text.encode("utf-8", "replace")) > yamltree.MAX_BYTES:
        raise ConfigError(f"{source}: is larger than 1 MiB; it cannot be a cluster file")
    if "\0" in text:
        raise ConfigError(
            f"{source}:{text.count(chr(10), 0, text.index(chr(0))) + 1}: holds binary data, not text"
        )
    try:
        tree, lines = yamltree.parse(text)
    except yamltree.YamlError as error:
        key = f"{messages.dotted(error.path)}: " if error.path else ""
        raise ConfigError(f"{_at(source, error.line)}: {key}{error.rule}") from None
    if tree is None:
        raise ConfigError(f"{source}: is empty; it needs at least the keys cluster and nodes")
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{source}:1: must be a mapping with the keys cluster and nodes, not {messages.kind(tree)}"
        )
    return tree, lines


def _at(source: str, line: int | None) -> str:
    return source if line is None else f"{source}:{line}"


def _place(path: KeyPath, source: str, lines: Mapping[KeyPath, int], origins: Mapping[KeyPath, str]) -> str:
    """The variable a key comes from, else the file and the line of the key or of what encloses it."""
    if path in origins:
        return f"environment variable {origins[path]}"
    near = (path[:length] for length in range(len(path), 0, -1))
    return _at(source, next((lines[part] for part in near if part in lines), 1))
