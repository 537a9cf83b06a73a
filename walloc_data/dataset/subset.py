"""Choosing samples by the columns of the index, without touching a shard."""

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.index import INDEX_ROW
from walloc_data.dataset.order import Ints
from walloc_data.errors import LoaderError
from walloc_data.permutations import derive_key, permute

__all__ = ["Condition", "class_labels", "select", "take_fraction"]

Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
Condition = tuple[str, Operator, int | Collection[int]]

_COMPARISONS: dict[str, Callable[[Any, Any], npt.NDArray[np.bool_]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda values, chosen: np.isin(values, list(chosen)),
    "not in": lambda values, chosen: ~np.isin(values, list(chosen)),
}
_COLUMNS = ("label", "height", "width", "source_index", "length")


def class_labels(classes: Sequence[int | str], class_names: Sequence[str] | None) -> list[int]:
    """Labels of classes given by number or by name."""
    labels = []
    for chosen in classes:
        if isinstance(chosen, str):
            if class_names is None or chosen not in class_names:
                known = "no class names" if class_names is None else f"{len(class_names)} classes, none of that name"
                raise LoaderError(f"no class {chosen!r}: the data set has {known}")
            labels.append(list(class_names).index(chosen))
        else:
            try:
                labels.append(operator.index(chosen))
            except TypeError:
                raise LoaderError(f"a class is a label or a name, not {chosen!r}") from None
    return labels


def select(entries: npt.NDArray[np.void], conditions: Sequence[Condition]) -> npt.NDArray[np.bool_]:
    """(n,) which index rows meet every condition."""
    chosen = np.ones(len(entries), np.bool_)
    for column, comparison, value in conditions:
        if column not in _COLUMNS or column not in (INDEX_ROW.names or ()):
            raise LoaderError(f"no column {column!r} in the index to choose by; it has {list(_COLUMNS)}")
        if comparison not in _COMPARISONS:
            raise LoaderError(f"no comparison {comparison!r}; there are {list(_COMPARISONS)}")
        chosen &= _COMPARISONS[comparison](entries[column], value)
    return chosen


def take_fraction(num_rows: int, fraction: float, *, seed: int) -> Ints:
    """Sorted positions of a random part: of two fractions with one seed, the smaller is part of the larger."""
    if not 0 < fraction <= 1:
        raise LoaderError(f"fraction must be in (0, 1], not {fraction}")
    count = round(num_rows * fraction)
    return np.sort(permute(np.arange(count, dtype=np.int64), size=num_rows, key=derive_key(seed, num_rows)))
