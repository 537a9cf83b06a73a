"""Types of the source's columns in the index: JSON representation, inference from values, and joining over shards.

    "bool"  "int8" ... "int64"  "uint8" ... "uint64"  "float32"  "float64"  "string"  "date"
    "timestamp"                    microseconds, without a time zone; "timestamp_utc": with one
    "json"                         JSON as text, for values of several types; never inside another type
    "null"                         no row has a value
    {"list": T}                    {"list": T, "length": n}: of n items in every row
    {"struct": {NAME: T, ...}}

The index has the corresponding parquet types; the manifest and the converter's records have these names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from walloc_data.errors import FormatError
from walloc_data.format.checks import check_text, short_repr
from walloc_data.format.names import RESERVED_COLUMNS

__all__ = [
    "MAX_INDEX_VALUE_BYTES",
    "MAX_TYPE_DEPTH",
    "ColumnType",
    "check_columns",
    "column_name",
    "infer_type",
    "join_types",
    "tighten_lists",
]

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_NUMBERS = frozenset({"bool", *_INTEGERS, "float32", "float64"})
_SCALARS = _NUMBERS | {"string", "date", "timestamp", "timestamp_utc", "json", "null"}
_PREFIX = "source."
MAX_INDEX_VALUE_BYTES = 2**16  # of one value of the source, as JSON
MAX_TYPE_DEPTH = 6  # nesting of lists and structs
_MAX_COLUMNS = 10_000
_MAX_LENGTH = 2**24  # of a fixed-size list


@dataclass(frozen=True)
class ColumnType:
    """Type of a column.

    Example:
        >>> from walloc_data.format import ColumnType
        >>> boxes = ColumnType.from_json({"list": {"list": "float32", "length": 4}})
        >>> print(boxes)
        list<list<float32>[4]>
        >>> boxes.is_array, boxes.item.is_array, boxes.item.shape
        (False, True, (4,))
        >>> ColumnType.from_json("picture")
        Traceback (most recent call last):
        walloc_data.errors.FormatError: 'picture' is not the type of a column
    """

    kind: str  # name of a scalar type, "list" or "struct"
    item: "ColumnType | None" = None  # of a list
    length: int | None = None  # of every value of a list; None: any
    fields: tuple[tuple[str, "ColumnType"], ...] = ()  # of a struct

    @property
    def is_number(self) -> bool:
        """Return whether values are numbers or booleans."""
        return self.kind in _NUMBERS

    @property
    def is_array(self) -> bool:
        """Return whether values are numbers or booleans, or arrays of them, all of one shape."""
        if self.item is not None:
            return self.length is not None and self.item.is_array
        return self.kind in _NUMBERS

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one value of a column that is an array; () of a number."""
        return () if self.item is None or self.length is None else (self.length, *self.item.shape)

    def __str__(self) -> str:
        if self.item is not None:
            return f"list<{self.item}>" + ("" if self.length is None else f"[{self.length}]")
        if self.kind == "struct":
            return f"struct<{', '.join(f'{name}: {kind}' for name, kind in self.fields)}>"
        return self.kind

    def to_json(self) -> Any:
        """Return the JSON representation."""
        if self.item is not None:
            return {"list": self.item.to_json()} | ({} if self.length is None else {"length": self.length})
        if self.kind == "struct":
            return {"struct": {name: kind.to_json() for name, kind in self.fields}}
        return self.kind

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Parse the JSON representation; raise FormatError if it is invalid."""
        return cls._read(value, depth=0)

    @classmethod
    def _read(cls, value: Any, *, depth: int) -> Self:
        if isinstance(value, str) and value in _SCALARS and (value != "json" or depth == 0):
            return cls(value)
        if isinstance(value, Mapping) and depth < MAX_TYPE_DEPTH:
            length = value.get("length")
            if value.keys() in ({"list"}, {"list", "length"}) and (
                length is None or (type(length) is int and 1 <= length <= _MAX_LENGTH)
            ):
                return cls("list", cls._read(value["list"], depth=depth + 1), length)
            inner = value.get("struct")
            if value.keys() == {"struct"} and isinstance(inner, Mapping) and 1 <= len(inner) <= _MAX_COLUMNS:
                names = map(str, inner)
                return cls("struct", None, None, tuple((n, cls._read(inner[n], depth=depth + 1)) for n in names))
        raise FormatError(f"{short_repr(value)} is not the type of a column")


_JSON, _NULL = ColumnType("json"), ColumnType("null")


def column_name(name: str) -> str:
    """Return the name of a source's column in the index; names used by the index itself get the prefix ``source.``.

    Example:
        >>> from walloc_data.format import column_name
        >>> column_name("caption"), column_name("height"), column_name("source.height")
        ('caption', 'source.height', 'source.source.height')
    """
    return _PREFIX + name if name in RESERVED_COLUMNS or name.startswith(_PREFIX) else name


def check_columns(columns: Any) -> None:
    """Raise FormatError if this is not a mapping of valid column names to types.

    Example:
        >>> from walloc_data.format import check_columns
        >>> check_columns({"caption": "string", "label": "int64"})
        Traceback (most recent call last):
        walloc_data.errors.FormatError: a column cannot have the name 'label', which is reserved by the index
    """
    if not isinstance(columns, Mapping) or len(columns) > _MAX_COLUMNS:
        raise FormatError(f"columns must be an object of at most {_MAX_COLUMNS} names and types, or null")
    for name, kind in columns.items():
        check_text("a column's name", name)
        if name in RESERVED_COLUMNS:
            raise FormatError(f"a column cannot have the name {name!r}, which is reserved by the index")
        try:
            ColumnType.from_json(kind)
        except FormatError as error:
            raise FormatError(f"column {name!r}: {error}") from error


def infer_type(values: Iterable[Any]) -> ColumnType:
    """Infer the type of JSON values: null, booleans, numbers, text, lists and objects.

    Example:
        >>> from walloc_data.format import infer_type
        >>> print(infer_type([3, None, 2.5]), infer_type([[1, 2], []]), infer_type([1, "one"]))
        float64 list<int64> json
    """
    found = _NULL
    for value in values:
        if value is None:
            continue
        found = join_types(found, _type_of(value, depth=0))
        if found == _JSON:
            break
    return found


def _type_of(value: Any, *, depth: int) -> ColumnType:
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return ColumnType("bool")
    if isinstance(value, int):
        return ColumnType("int64") if -(2**63) <= value < 2**63 else _JSON
    if isinstance(value, float):
        return ColumnType("float64")
    if isinstance(value, str):
        return ColumnType("string")
    if depth < MAX_TYPE_DEPTH and isinstance(value, list | tuple):
        item = _NULL
        simple = set(map(type, value)) <= {bool, float, str}  # a fast path for long lists of one type
        for inner in {type(inner): inner for inner in value}.values() if simple else value:
            item = join_types(item, _type_of(inner, depth=depth + 1))
        return _JSON if item == _JSON else ColumnType("list", item)
    if depth < MAX_TYPE_DEPTH and isinstance(value, Mapping) and value and len(value) <= _MAX_COLUMNS:
        return _struct({str(name): _type_of(value[name], depth=depth + 1) for name in value})
    return _JSON


def _struct(fields: Mapping[str, ColumnType]) -> ColumnType:
    return _JSON if _JSON in fields.values() else ColumnType("struct", fields=tuple(sorted(fields.items())))


def join_types(first: ColumnType, second: ColumnType) -> ColumnType:
    """Return the joint type of two types; "json" if there is no other. Commutative.

    Example:
        >>> from walloc_data.format import ColumnType, join_types
        >>> print(join_types(ColumnType("int32"), ColumnType("float32")))
        float64
        >>> print(join_types(ColumnType("string"), ColumnType("float32")))
        json
    """
    if first == second or second == _NULL:
        return first
    if first == _NULL:
        return second
    kinds = {first.kind, second.kind}
    if first.item is not None and second.item is not None:
        item = join_types(first.item, second.item)
        length = first.length if first.length == second.length else None
        return _JSON if item == _JSON else ColumnType("list", item, length)
    if kinds == {"struct"}:
        fields = dict(first.fields)
        for name, kind in second.fields:
            fields[name] = join_types(fields.get(name, _NULL), kind)
        return _struct(fields)
    if kinds <= _NUMBERS - {"bool"}:
        if not kinds <= set(_INTEGERS):
            return ColumnType("float64")
        return ColumnType("int64") if "uint64" not in kinds else _JSON
    return _JSON


def tighten_lists(kind: ColumnType, values: Iterable[Any]) -> ColumnType:
    """Return a type whose lists of numbers have a fixed length, if all values have the same length of at least 2.

    Columns of boxes, for example, then become arrays instead of lists of any length.

    Example:
        >>> from walloc_data.format import ColumnType, tighten_lists
        >>> numbers = ColumnType.from_json({"list": "int64"})
        >>> print(tighten_lists(numbers, [[1, 0, 1], [0, 0, 1]]), tighten_lists(numbers, [[1], [2, 3]]))
        list<int64>[3] list<int64>
    """
    if kind.item is None:
        return kind
    present = [value for value in values if value is not None]
    item = tighten_lists(kind.item, (inner for value in present for inner in value))
    lengths = {len(value) for value in present}
    if kind.length is None and item.is_array and len(lengths) == 1 and min(lengths) >= 2:
        return replace(kind, item=item, length=min(lengths))
    return replace(kind, item=item)
