"""Takes secrets out of what hosts say, before it is believed, kept or shown. Pure; called by `loop`.

Known secrets go whatever they look like; others by their usual shapes: Slack tokens, bearer tokens, keys
of clouds, private keys, and values after a name such as token or password.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")
GONE = "[secret]"
LONG = 8  # a known secret shorter than this would take ordinary words with it
_SHAPES = re.compile(
    r"xox[a-z]-[A-Za-z0-9-]{8,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_NAMED = re.compile(
    r"""(?ix)( bearer \s+ | \b [\w-]* (?: token | password | passwd | secret | api_?key | access_?key )
        ["']? \s* [=:] \s* ["']? ) (?! [\s"'] | /) [^\s"',;]{4,}"""
)
_URL = re.compile(r"(://[^/\s:@]+:)[^/\s@]+@")


def text(said: str, secrets: Collection[str] = ()) -> str:
    """The text without secrets."""
    for secret in secrets:
        if len(secret) >= LONG:
            said = said.replace(secret, GONE)
    said = _SHAPES.sub(GONE, said)
    said = _NAMED.sub(rf"\g<1>{GONE}", said)
    return _URL.sub(rf"\g<1>{GONE}@", said)


def value(said: T, secrets: Collection[str] = ()) -> T:
    """A dataclass, mapping, list or tuple of texts without secrets; the very same where there are none."""
    found: Any = _value(said, secrets)
    return said if found == said else found


def _value(said: Any, secrets: Collection[str]) -> Any:
    if isinstance(said, str) and type(said) is str:
        return text(said, secrets)
    if isinstance(said, Mapping):
        return {key: _value(one, secrets) for key, one in said.items()}
    if isinstance(said, tuple) and type(said) is tuple:
        return tuple(_value(one, secrets) for one in said)
    if isinstance(said, list):
        return [_value(one, secrets) for one in said]
    if is_dataclass(said) and not isinstance(said, type):
        return replace(said, **{f.name: _value(getattr(said, f.name), secrets) for f in fields(said)})
    return said
