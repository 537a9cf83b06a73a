"""Deprecated names of arguments, which are accepted for one more version."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["renamed_arguments"]

P = ParamSpec("P")
T = TypeVar("T")


def renamed_arguments(**new_names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that accepts the old names of keyword arguments, with a DeprecationWarning.

    Args:
        new_names: the new name for each old name.

    Example:
        >>> import warnings
        >>> from walloc_data.deprecated import renamed_arguments
        >>> @renamed_arguments(colour="color")
        ... def paint(*, color: str) -> str:
        ...     return color
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     paint(colour="red")
        'red'
        >>> print(caught[0].message)
        paint(colour=) is now paint(color=); the old name will be removed in the next version
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            values: dict[str, Any] = kwargs
            for old, new in new_names.items():
                if old in values:
                    if new in values:
                        raise TypeError(f"{function.__name__}() got both {new!r} and its old name {old!r}")
                    warnings.warn(
                        f"{function.__name__}({old}=) is now {function.__name__}({new}=); the old name will be "
                        "removed in the next version",
                        DeprecationWarning,
                        stacklevel=2,
                    )
                    values[new] = values.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
