"""GRID_AGENT__SECTION__KEY variables -> values in the tree of a cluster file.

Must never print a variable's value: it may be a secret.
"""

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from config import yamltree
from config.settings import Settings

PREFIX = "GRID_AGENT__"
KeyPath = tuple[str | int, ...]


def apply(tree: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[KeyPath, str], list[str]]:
    """Puts the variables' values into `tree`.

    Returns:
        The variable's name for every key path it set, and a message for every variable that was refused.
    """
    origins: dict[KeyPath, str] = {}
    refused: list[str] = []
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX):
            continue
        path = tuple(name[len(PREFIX) :].lower().split("__"))
        shown = name if name.isascii() and name.isprintable() and len(name) <= 100 else ascii(name[:100])
        if path in origins:
            refused.append(
                f"environment variable {shown}: sets the same key as {origins[path]}; keep one of them"
            )
            continue
        try:
            value = _value(environ[name], _names_section(path))
        except ValueError as error:
            refused.append(f"environment variable {shown}: {error}")
            continue
        if _put(tree, path, value):
            origins[path] = shown
    return origins, refused


def sections() -> dict[str, type[BaseModel]]:
    """The sections of a cluster file by key."""
    found: dict[str, type[BaseModel]] = {}
    for key, field in Settings.model_fields.items():
        for kind in get_args(field.annotation) or (field.annotation,):
            if isinstance(kind, type) and issubclass(kind, BaseModel) and key != "nodes":
                found[key] = kind
    return found


def _names_section(path: tuple[str, ...]) -> bool:
    """Whether the variable names a whole section, which only null can replace.

    Raises:
        ValueError: No such key, or one that variables cannot set.
    """
    known_sections = sections()
    if path[0] == "nodes":
        raise ValueError("nodes cannot be overridden by a variable; change the file")
    if path == ("cluster",):
        return False
    if path[0] in known_sections and len(path) == 1:
        return True
    if path[0] in known_sections and len(path) == 2 and path[1] in known_sections[path[0]].model_fields:
        return False
    known = [f"{section}__{key}" for section, model in known_sections.items() for key in model.model_fields]
    near = difflib.get_close_matches("__".join(path)[:64], ["cluster", *known], n=1)
    hint = (
        f"; did you mean {PREFIX}{near[0].upper()}?"
        if near
        else f"; the sections are {', '.join(known_sections)}"
    )
    raise ValueError(f"names no key of a cluster file{hint}")


def _value(text: str, whole_section: bool) -> Any:
    """The text as a YAML scalar; quotes make it text."""
    if "\0" in text or len(text) > 4096:
        raise ValueError("must hold at most 4096 characters of text")
    value = yamltree.scalar(text.strip())
    if isinstance(value, str) and value[:1] in {"'", '"'}:
        try:
            value, _ = yamltree.parse(value)
        except yamltree.YamlError:
            raise ValueError("has quotes that do not match") from None
        if not isinstance(value, str):
            raise ValueError("must hold one value")
    if whole_section and value is not None:
        raise ValueError(
            "names a section; set one of its keys, as in GRID_AGENT__RAY__PORT, or null to leave it out"
        )
    return value


def _put(tree: dict[str, Any], path: tuple[str, ...], value: object) -> bool:
    """Whether the value could be put there; a section that is no mapping keeps its own error."""
    section = tree
    for key in path[:-1]:
        if section.get(key) is None:
            section[key] = {}
        if not isinstance(section[key], dict):
            return False
        section = section[key]
    section[path[-1]] = value
    return True
