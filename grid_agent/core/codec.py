"""Values of the core as JSON and back, driven by their type annotations alone.

A field that a stored value lacks keeps its default (or what `onto` has), one that no longer exists is
ignored, and one that cannot be read any more falls back likewise: an agent of another version still
understands what was written. Fields marked `TRANSIENT` in the model are not stored. Pure; the journal
and the API call it.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
TIMES = (
    "_at",
    "since",
    "_after",
    "until",
)  # so end the names of times on the loop's clock; others are marked CLOCK


class CodecError(ValueError):
    """A stored value does not fit its type; the message names where."""


@cache
def durable_fields(kind: Any) -> tuple[str, ...]:
    """The names of the fields of a dataclass that are stored."""
    return tuple(f.name for f in fields(kind) if not f.metadata.get("transient"))


def encode(value: Any) -> Any:
    """The value as plain JSON types.

    Raises:
        CodecError: It holds something that is not a dataclass, enum, sequence, set, mapping or scalar.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {name: encode(getattr(value, name)) for name in durable_fields(value.__class__)}
    if isinstance(value, Mapping):
        return {str(encode(k)): encode(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(encode(v) for v in value)
    if isinstance(value, tuple | list):
        return [encode(v) for v in value]
    message = f"{type(value).__name__} cannot be stored"
    raise CodecError(message)


def decode(kind: type[T], plain: Any, *, onto: T | None = None, shift_s: float = 0.0) -> T:
    """The value of this dataclass that `encode` gave as `plain`.

    Args:
        kind: A dataclass.
        plain: What `json.loads` gave.
        onto: Where fields that are not stored come from; None: from their defaults.
        shift_s: Added to every time on the loop's clock (see TIMES), seconds.

    Raises:
        CodecError: A field without a default is missing or does not fit.
    """
    found: T = _dataclass(kind, plain, shift_s, onto)
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two values of one dataclass would be stored alike."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    kind: Any = type(one)
    stored = _stored(kind)
    return bool(stored(one) == stored(other))


@cache
def _stored(kind: Any) -> Callable[[Any], Any]:
    return attrgetter(*durable_fields(kind))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _dataclass(kind: Any, plain: Any, shift_s: float, onto: Any = None) -> Any:
    if not isinstance(plain, Mapping):
        message = f"{kind.__name__}: not an object"
        raise CodecError(message)
    found = {}
    for field in fields(kind):
        stored = field.name in plain and not field.metadata.get("transient")
        if stored:
            try:
                name = "at" if field.metadata.get("clock") else field.name
                found[field.name] = _any(_hints(kind)[field.name], plain[field.name], name, shift_s)
                continue
            except CodecError as error:
                if onto is None and not _has_default(field):
                    message = f"{kind.__name__}.{field.name}: {error}"
                    raise CodecError(message) from None
        if onto is not None:
            found[field.name] = getattr(onto, field.name)
        elif not _has_default(field):
            message = f"{kind.__name__}.{field.name}: missing"
            raise CodecError(message)
    return kind(**found)


def _has_default(field: "Field[Any]") -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _any(kind: Any, plain: Any, name: str, shift_s: float) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _union(args, plain, name, shift_s)
    if origin is Literal:
        return _checked(plain, plain in args, kind)
    if origin is tuple:
        return _tuple(args, _checked(plain, isinstance(plain, list), kind), name, shift_s)
    if origin in (frozenset, set):
        return origin(_any(args[0], v, name, shift_s) for v in _checked(plain, isinstance(plain, list), kind))
    if origin is not None and issubclass(origin, Mapping):
        rows = _checked(plain, isinstance(plain, dict), kind)
        return {_key(args[0], k): _any(args[1], v, name, shift_s) for k, v in rows.items()}
    if kind is Any:
        return plain
    if is_dataclass(kind):
        return _dataclass(kind, plain, shift_s)
    return _scalar(kind, plain, name, shift_s)


def _scalar(kind: Any, plain: Any, name: str, shift_s: float) -> Any:
    if kind is NoneType:
        return _checked(plain, plain is None, kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(plain)
        except ValueError:
            message = f"{plain!r:.80} is no {kind.__name__}"
            raise CodecError(message) from None
    if kind is float:
        number = float(_checked(plain, isinstance(plain, int | float) and plain is not True, kind))
        return number + shift_s if name == "at" or name.endswith(TIMES) else number
    if kind in (bool, int, str):
        return _checked(plain, type(plain) is kind, kind)
    message = f"{kind} cannot be stored"
    raise CodecError(message)


def _union(args: tuple[Any, ...], plain: Any, name: str, shift_s: float) -> Any:
    if plain is None and NoneType in args:
        return None
    errors = []
    for kind in args:
        try:
            return _any(kind, plain, name, shift_s)
        except CodecError as error:
            errors.append(str(error))
    raise CodecError("; ".join(errors))


def _tuple(args: tuple[Any, ...], plain: list[Any], name: str, shift_s: float) -> tuple[Any, ...]:
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_any(args[0], v, name, shift_s) for v in plain)
    _checked(plain, len(plain) == len(args), f"a tuple of {len(args)}")
    return tuple(_any(kind, v, name, shift_s) for kind, v in zip(args, plain, strict=True))


def _key(kind: Any, key: str) -> Any:
    try:
        return kind(key) if isinstance(kind, type) else key
    except ValueError:
        message = f"{key!r:.80} is no key of type {kind}"
        raise CodecError(message) from None


def _checked(plain: Any, fits: bool, kind: Any) -> Any:
    if not fits:
        message = f"{plain!r:.80} is not {getattr(kind, '__name__', kind)}"
        raise CodecError(message)
    return plain
