"""Checks of untrusted fields, and the conversion of records from and to JSON.

Records check all fields when they are created, so code that receives a record need not check them again.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from functools import cache
from typing import Any, Self

from walloc_data.errors import FormatError

__all__ = ["Record", "check_bool", "check_int", "check_json", "check_text", "check_texts"]

_MAX_SHOWN = 80  # characters of a wrong value in a message
_MAX_DEPTH = 16


class Record:
    """Base class of the frozen dataclasses of this package, with conversion from and to JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return a dict of JSON values; `from_dict` is its inverse."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, context: str) -> Self:
        """Build and validate from a parsed JSON object; unknown and missing fields raise FormatError."""
        if not isinstance(value, Mapping):
            raise FormatError(f"{context}: expected an object, found {type(value).__name__}")
        names, needed = _names(cls)  # type: ignore[arg-type]
        if unknown := sorted(str(name) for name in set(value) - names):
            raise FormatError(f"{context}: unknown fields {unknown[:5]}; written by a newer walloc_data?")
        if missing := [name for name in needed if name not in value]:
            raise FormatError(f"{context}: {missing[0]!r} is missing")
        try:
            return cls(**{name: _freeze(item) for name, item in value.items()})
        except FormatError as error:
            raise FormatError(f"{context}: {error}") from error


@cache
def _names(cls: type) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the names of a record's fields, and of its required fields."""
    known = fields(cls)
    needed = [field.name for field in known if field.default is MISSING and field.default_factory is MISSING]
    return frozenset(field.name for field in known), tuple(needed)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def short_repr(value: Any) -> str:
    """Format an invalid value for a message: its beginning, or its type if it cannot be shown."""
    if isinstance(value, int) and not -(2**64) < value < 2**64:
        return f"an integer of {value.bit_length()} bits"  # Python does not print long integers
    if isinstance(value, list | tuple | dict) and len(value) > 20:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def check_int(name: str, value: Any, *, low: int, high: int = 2**63 - 1) -> None:
    """Check an integer in [low, high]; booleans raise FormatError."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise FormatError(f"{name} must be an integer in [{low}, {high}], not {short_repr(value)}")


def check_bool(name: str, value: Any) -> None:
    """Check a boolean; numbers raise FormatError."""
    if not isinstance(value, bool):
        raise FormatError(f"{name} must be true or false, not {short_repr(value)}")


def check_text(name: str, value: Any) -> None:
    """Check a string; it must be valid Unicode, which names of files may not be.

    Example:
        >>> from walloc_data.format import check_text
        >>> check_text("class name", "caf\\udce9")
        Traceback (most recent call last):
        walloc_data.errors.FormatError: class name 'caf\\udce9' has bytes that are not UTF-8: rename it
    """
    if not isinstance(value, str):
        raise FormatError(f"{name} must be text, not {short_repr(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise FormatError(f"{name} {short_repr(value)} has bytes that are not UTF-8: rename it") from error


def check_texts(name: str, value: Any) -> None:
    """Check an object of strings.

    Example:
        >>> from walloc_data.format import check_texts
        >>> check_texts("written_by", {"walloc_data": 1})
        Traceback (most recent call last):
        walloc_data.errors.FormatError: written_by.walloc_data must be text, not 1
    """
    if not isinstance(value, Mapping):
        raise FormatError(f"{name} must be an object of strings, not {short_repr(value)}")
    for key, item in value.items():
        check_text(f"a name in {name}", key)
        check_text(f"{name}.{key}", item)


def check_json(name: str, value: Any) -> None:
    """Check an object of JSON values, nested at most 16 levels deep.

    Example:
        >>> from walloc_data.format import check_json
        >>> check_json("source", {"num_items": 10**400})
        Traceback (most recent call last):
        walloc_data.errors.FormatError: source.num_items must be an integer in [...], not an integer of 1329 bits
    """
    if not isinstance(value, Mapping):
        raise FormatError(f"{name} must be an object, not {short_repr(value)}")
    _check_value(name, value, depth=0)


def _check_value(name: str, value: Any, *, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise FormatError(f"{name}: more than {_MAX_DEPTH} lists and objects inside each other")
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_text(f"a name in {name}", key)
            _check_value(f"{name}.{key}", item, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_value(name, item, depth=depth + 1)
    elif isinstance(value, str):
        check_text(name, value)
    elif isinstance(value, int) and not isinstance(value, bool):
        check_int(name, value, low=-(2**63), high=2**64 - 1)
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise FormatError(f"{name} must be a finite number, not {value}")
    elif value is not None and not isinstance(value, bool):
        raise FormatError(f"{name} must be a value of JSON, not {short_repr(value)}")
