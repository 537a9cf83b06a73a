"""Selection of samples by columns of the index."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.arguments import check_integer
from walloc_data.dataset.columns import ArrayColumn, Column
from walloc_data.dataset.order import Ints
from walloc_data.errors import LoaderError
from walloc_data.permutations import derive_key, permute
from walloc_data.tables import arrow_type

__all__ = [
    "Condition",
    "check_conditions",
    "class_labels",
    "compare",
    "is_missing",
    "meets",
    "missing",
    "numbers_of",
    "take_fraction",
]

Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in", "has"]
Condition = tuple[str, Operator, Any]

_COMPARISONS: dict[str, Callable[[Any, Any], npt.NDArray[np.bool_]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda values, chosen: np.isin(values, chosen),
    "not in": lambda values, chosen: ~np.isin(values, chosen),
    "has": lambda values, wanted: (values == wanted).any(axis=1),
}
_ARROW = {"==": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"}
_EXAMPLE = '[("age", ">", 30), ("label", "in", {1, 5})]'


def class_labels(classes: Sequence[int | str], class_names: Sequence[str] | None) -> list[int]:
    """Return the labels of classes that are given by label or name.

    Raises:
        LoaderError: a class does not exist, or several have this name; -1, for samples without a label, is always
            accepted.
    """
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise LoaderError(f"classes is a list of labels or names, such as [{classes!r}], not {classes!r}")
    labels = []
    for chosen in classes:
        if isinstance(chosen, str):
            if class_names is None or chosen not in class_names:
                known = "no class names" if class_names is None else f"{len(class_names)} classes, none of that name"
                raise LoaderError(f"no class {chosen!r}: the data set has {known}")
            if len(same := [label for label, name in enumerate(class_names) if name == chosen]) > 1:
                raise LoaderError(f"{len(same)} classes are named {chosen!r}: give their labels, {same}, instead")
            labels.append(same[0])
        else:
            try:
                label = operator.index(chosen)
            except TypeError:
                raise LoaderError(f"a class is a label or a name, not {chosen!r}") from None
            if class_names is not None and not -1 <= label < len(class_names):
                raise LoaderError(f"no class {label}: the data set has {len(class_names)} classes, from 0 on")
            labels.append(label)
    return labels


def check_conditions(where: Any) -> list[Condition]:
    """Return conditions as a list.

    Raises:
        LoaderError: they are not a list of (column, comparison, value).
    """
    if isinstance(where, str | Mapping) or not isinstance(where, Iterable):
        raise LoaderError(f"where is a list of conditions, such as {_EXAMPLE}, not {where!r}")
    conditions = list(where)
    for condition in conditions:
        if not isinstance(condition, tuple | list) or len(condition) != 3 or not isinstance(condition[0], str):
            raise LoaderError(f"a condition is (column, comparison, value), as in {_EXAMPLE}, not {condition!r}")
        if condition[1] not in _COMPARISONS:
            raise LoaderError(f"no comparison {condition[1]!r}; there are {list(_COMPARISONS)}")
        if condition[1] in ("in", "not in") and (
            isinstance(condition[2], str | bytes) or not isinstance(condition[2], Iterable)
        ):
            raise LoaderError(f"{condition[1]!r} takes several values, such as {{1, 5}}, not {condition[2]!r}")
    return [tuple(condition) for condition in conditions]


def numbers_of(value: Any, comparison: str, names: Sequence[str] | None) -> Any:
    """Return the value of a condition, with class names replaced by numbers in columns of classes."""
    if names is None or comparison not in ("==", "!=", "in", "not in", "has"):
        return value
    if comparison in ("==", "!=", "has"):
        return class_labels([value], names)[0] if isinstance(value, str) else value
    return [class_labels([item], names)[0] if isinstance(item, str) else item for item in value]


def is_missing(comparison: str, value: Any, *, column: str) -> bool:
    """Return whether a condition asks for missing values: ``==`` or ``!=`` with None or NaN.

    Raises:
        LoaderError: another comparison is with None or NaN.
    """
    given = list(value) if comparison in ("in", "not in") else [value]
    if not any(item is None or (isinstance(item, float | np.floating) and np.isnan(item)) for item in given):
        return False
    if comparison not in ("==", "!="):
        raise LoaderError(
            f"column {column!r} is compared by {comparison!r} with {value!r}: '==' and '!=' find missing values, with "
            "None or NaN"
        )
    return True


def missing(column: Column, comparison: str) -> npt.NDArray[np.bool_]:
    """Return a mask (n,) of the rows of a split without a value ("==") or with one ("!=")."""
    found: npt.NDArray[np.bool_]
    if isinstance(column, ArrayColumn):
        values = column.values
        found = np.zeros(len(values), np.bool_)
        if values.dtype.kind == "f":
            found = np.isnan(values).all(axis=tuple(range(1, values.ndim)))
    else:
        parts = [piece.is_null().to_numpy(zero_copy_only=False) for piece in column.pieces()]
        found = np.concatenate(parts) if parts else np.zeros(0, np.bool_)
    return ~found if comparison == "!=" else found


def compare(column: str, values: npt.NDArray[Any], comparison: str, value: Any) -> npt.NDArray[np.bool_]:
    """Return a mask (n,) of numbers that meet a condition; NaN meets none."""
    if values.ndim != (2 if comparison == "has" else 1):
        size = values[0].size if len(values) else 0
        raise LoaderError(
            f"column {column!r} has {size} numbers a sample, which {comparison!r} does not compare ('has' is of lists)"
        )
    given = list(value) if comparison in ("in", "not in") else [value]
    if not all(isinstance(item, int | float | np.number | np.bool_) for item in given):
        raise LoaderError(f"column {column!r} holds numbers, which cannot be compared with {value!r}")
    if values.dtype.kind == "f" and (inexact := [item for item in given if _is_inexact(item)]):
        raise LoaderError(
            f"column {column!r} holds {values.dtype} numbers, as some of its values are missing or no integers, and "
            f"{inexact[0]} is not one of them exactly: select rows of to_arrow() and pass them as subset(rows=...)"
        )
    met = _COMPARISONS[comparison](values, _of_dtype(given, values.dtype) if comparison in ("in", "not in") else value)
    return met & ~np.isnan(values) if values.dtype.kind == "f" and comparison != "has" else met


def _is_inexact(value: Any) -> bool:
    """Return whether a number is an integer that float64 rounds."""
    try:
        return isinstance(value, int | np.integer) and int(float(value)) != int(value)
    except OverflowError:
        return True


def _of_dtype(given: Sequence[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return numbers as an array that is compared with values of `dtype` as single numbers are.

    numpy would compare int64 with uint64 as float64, which rounds, and float32 with float64, where 0.1 differs.
    """
    if dtype.kind == "f":
        return np.array(given, dtype=dtype)
    if dtype.kind not in "iu" or not all(isinstance(item, int | np.integer) for item in given):
        return np.asarray(given)
    limits = np.iinfo(dtype)
    return np.array([item for item in given if limits.min <= item <= limits.max], dtype=dtype)


def meets(column: Column, comparison: str, value: Any) -> npt.NDArray[np.bool_]:
    """Return a mask (n,) of the rows of a split that meet a condition on a column; missing values do not."""
    if isinstance(column, ArrayColumn):
        return compare(column.name, column.values, comparison, value)
    compared = column.kind.item if comparison == "has" else column.kind
    if compared is None or not (
        compared.is_number or compared.kind in ("string", "date", "timestamp", "timestamp_utc")
    ):
        raise LoaderError(
            f"column {column.name!r} holds {column.kind}: numbers, text and dates are compared, and lists of them with "
            "'has'"
        )
    import pyarrow as pa

    several = comparison in ("in", "not in")
    kind = arrow_type(compared)
    try:
        given = pa.array(list(value), kind) if several else pa.scalar(value, kind)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise LoaderError(
            f"column {column.name!r} holds {column.kind}, which cannot be compared with {value!r}"
        ) from error
    parts = [_met(piece, comparison, given) for piece in column.pieces()]
    return np.concatenate(parts) if parts else np.zeros(0, np.bool_)


def _met(piece: Any, comparison: str, given: Any) -> npt.NDArray[np.bool_]:
    import pyarrow.compute as pc

    if comparison == "has":
        has = np.zeros(len(piece), np.bool_)
        found = pc.fill_null(pc.equal(pc.list_flatten(piece), given), False).to_numpy(zero_copy_only=False)
        has[pc.list_parent_indices(piece).to_numpy()[found]] = True
        return has
    if comparison in ("in", "not in"):
        found = pc.is_in(piece, value_set=given)
        found = pc.invert(found) if comparison == "not in" else found
    else:
        found = getattr(pc, _ARROW[comparison])(piece, given)
    met: npt.NDArray[np.bool_] = pc.and_(pc.fill_null(found, False), pc.is_valid(piece)).to_numpy(zero_copy_only=False)
    return met


def take_fraction(num_rows: int, fraction: float, *, seed: int) -> Ints:
    """Return sorted positions of a random fraction; with equal seeds, smaller fractions are subsets of larger ones."""
    given: Any = fraction
    if not isinstance(given, int | float | np.number) or isinstance(given, bool) or not 0 < fraction <= 1:
        raise LoaderError(f"fraction must be in (0, 1], not {fraction!r}")
    check_integer("seed", seed)
    count = round(num_rows * fraction)
    return np.sort(permute(np.arange(count, dtype=np.int64), size=num_rows, key=derive_key(seed, num_rows)))
