"""Checks of arguments, whose errors name the argument and its value."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from walloc_data.errors import LoaderError

__all__ = ["check_flag", "check_function", "check_integer", "check_mapping"]


def check_integer(name: str, value: Any, *, low: int | None = None) -> int:
    """Return an integer; raise LoaderError for anything else, including booleans, and below `low`."""
    try:
        number = operator.index(value) if not isinstance(value, bool | np.bool_) else None
    except TypeError:
        number = None
    if number is None:
        raise LoaderError(f"{name} must be an integer, not {value!r}")
    if low is not None and number < low:
        raise LoaderError(f"{name} must be at least {low}, not {number}")
    return number


def check_flag(name: str, value: Any) -> bool:
    """Return a boolean; raise LoaderError for anything else, such as the text "no", which Python takes as true."""
    if not isinstance(value, bool | np.bool_):
        raise LoaderError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def check_function(name: str, value: Any) -> None:
    """Raise LoaderError unless the value is None or can be called."""
    if value is not None and not callable(value):
        raise LoaderError(f"{name} must be a function or None, not {value!r}")


def check_mapping(name: str, value: Any) -> None:
    """Raise LoaderError unless the value is None or a mapping, such as a dict."""
    if value is not None and not isinstance(value, Mapping):
        raise LoaderError(f"{name} must be a dict or None, not {value!r}")
