"""Columns of a split's index, cached as memory-mapped files.

A column of numbers, or of arrays of numbers of one shape, becomes a `.npy` file. Any other column becomes an Arrow file
in pieces of 1024 rows. The files are shared by all processes of the machine, and written again if damaged.
"""

import json
import math
import mmap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.checksummed import DIGEST_BYTES, Mapped
from walloc_data.dataset.order import Ints
from walloc_data.errors import FormatError, LoaderError
from walloc_data.format import INDEX_COLUMNS, MIRROR_INDEX_COLUMNS, SOURCE_INDEX_COLUMNS, ColumnType, SplitRecord
from walloc_data.parquet import batches, open_parquet
from walloc_data.tables import MAX_TEXT_BYTES, arrow_type, plain_type, text_of

__all__ = [
    "ArrayColumn",
    "Column",
    "ListColumn",
    "check_names",
    "check_target",
    "column_types",
    "max_column_bytes",
    "unknown_column",
    "write_column",
]

_PIECE_ROWS = 1024
_OPEN_PIECES = 4096


def column_types(record: SplitRecord, *, mirror: bool) -> dict[str, ColumnType]:
    """Return the types of all columns of a split's index, by name."""
    mirrors = MIRROR_INDEX_COLUMNS if mirror else ()
    ours = (*INDEX_COLUMNS, *mirrors, *(SOURCE_INDEX_COLUMNS if record.columns is not None else ()))
    types = {name: ColumnType(kind) for name, kind, _ in ours}
    return types | {name: ColumnType.from_json(kind) for name, kind in (record.columns or {}).items()}


class ArrayColumn:
    """Column of numbers, or of arrays of numbers of one shape. Pickled as the path of its file.

    Attributes:
        values: (n, ...), read-only memory map; float64 with NaN if rows have missing values.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._values: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        self._mapped = Mapped(getattr(self._values, "_mmap", None), path)

    @property
    def values(self) -> npt.NDArray[Any]:
        self._mapped.check()
        return self._values

    def __reduce__(self) -> tuple[type["ArrayColumn"], tuple[Path, str]]:
        return ArrayColumn, (self.path, self.name)

    @property
    def form(self) -> tuple[str, tuple[int, ...]]:
        """Return the dtype and shape of a value in batches."""
        return str(self._values.dtype), self._values.shape[1:]

    def take(self, rows: Ints) -> npt.NDArray[Any]:
        """Return the values of rows, (n, ...)."""
        return np.take(self.values, rows, axis=0)


class ListColumn:
    """Column of text, dates, lists or structs. Pickled as the path of its file."""

    def __init__(self, path: Path, name: str, kind: ColumnType) -> None:
        import pyarrow as pa

        self.path, self.name, self.kind = path, name, kind
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._mapped = Mapped(mapped, path)
        self._file = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(memoryview(mapped)[:-DIGEST_BYTES])))
        self._piece = lru_cache(maxsize=_OPEN_PIECES)(lambda number: self._file.get_batch(number).column(0))

    def __reduce__(self) -> tuple[type["ListColumn"], tuple[Path, str, ColumnType]]:
        return ListColumn, (self.path, self.name, self.kind)

    @property
    def form(self) -> tuple[str, tuple[int, ...]]:
        """Return "list": batches are lists of Python values."""
        return "list", ()

    def take(self, rows: Ints) -> list[Any]:
        """Return the values of rows: str, datetime, date, list, dict or None."""
        self._mapped.check()
        if len(rows) > _PIECE_ROWS:  # more than a batch: convert pieces at once
            found = [None] * len(rows)
            number = rows // _PIECE_ROWS
            for piece in np.unique(number).tolist():
                at = np.flatnonzero(number == piece)
                for place, value in zip(
                    at.tolist(), self._piece(piece).take(rows[at] % _PIECE_ROWS).to_pylist(), strict=True
                ):
                    found[place] = value
        else:
            found = [self._piece(row // _PIECE_ROWS)[row % _PIECE_ROWS].as_py() for row in rows.tolist()]
        if self.kind.kind == "json":
            return [None if value is None else json.loads(value) for value in found]
        return found

    def pieces(self) -> Iterator[Any]:
        """Yield all values in order, as Arrow arrays."""
        for number in range(self._file.num_record_batches):
            self._mapped.check()
            yield self._file.get_batch(number).column(0)


Column = ArrayColumn | ListColumn


def max_column_bytes(kind: ColumnType, num_rows: int) -> int:
    """Return how long a column's file in the cache can be at most."""
    return 2**16 + num_rows * (8 * math.prod(kind.shape) if kind.is_array else 2 * MAX_TEXT_BYTES)


def write_column(parquet: BinaryIO, name: str, kind: ColumnType, *, num_rows: int, file: BinaryIO) -> None:
    """Write one column of an open index file in the format of `ArrayColumn` or `ListColumn`.

    Raises:
        FormatError: the column differs from its description in the manifest.
    """
    with open_parquet(parquet, columns=[name]) as opened:
        if name not in opened.schema_arrow.names:
            raise FormatError(f"no column {name!r}, which the manifest lists")
        found = plain_type(opened.schema_arrow.field(name).type)
        if found != arrow_type(kind):
            raise FormatError(f"column {name!r} holds {found}; the manifest says {kind}")
        if opened.metadata.num_rows != num_rows:
            raise FormatError(f"{opened.metadata.num_rows} rows; the manifest says {num_rows}")

        def checked() -> Iterator[Any]:
            for batch in batches(opened, num_rows=_PIECE_ROWS, columns=[name]):
                yield text_of(batch.column(0), what=f"column {name!r}")

        if not kind.is_array:
            _write_list(checked(), arrow_type(kind), file)
        elif not _write_array(checked(), kind, num_rows, file, nulls=False):
            file.seek(0)
            file.truncate()
            _write_array(checked(), kind, num_rows, file, nulls=True)


def _write_list(batches: Iterator[Any], kind: Any, file: BinaryIO) -> None:
    import pyarrow as pa

    schema = pa.schema([("value", kind)])
    waiting: list[Any] = []
    with pa.ipc.new_file(file, schema) as writer:
        for array in batches:
            waiting.append(array)
            while sum(map(len, waiting)) >= _PIECE_ROWS:  # pieces are of one length, but for the last
                joined = pa.concat_arrays(waiting)
                writer.write_batch(pa.record_batch([joined[:_PIECE_ROWS]], schema=schema))
                waiting = [joined[_PIECE_ROWS:]]
        if sum(map(len, waiting)):
            writer.write_batch(pa.record_batch([pa.concat_arrays(waiting)], schema=schema))


def _write_array(batches: Iterator[Any], kind: ColumnType, num_rows: int, file: BinaryIO, *, nulls: bool) -> bool:
    """Write a `.npy` file. Return False, with the file incomplete, if a value is missing and `nulls` is False."""
    scalar = kind
    while scalar.item is not None:
        scalar = scalar.item
    dtype = np.dtype("float64") if nulls else np.dtype(scalar.kind).newbyteorder("<")
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_rows, *kind.shape)}
    np.lib.format.write_array_header_1_0(file, header)
    for array in batches:
        values = _numbers(array, kind, scalar, nulls=nulls)
        if values is None:
            return False
        file.write(np.ascontiguousarray(values, dtype=dtype).data.cast("B"))
    return True


def _numbers(array: Any, kind: ColumnType, scalar: ColumnType, *, nulls: bool) -> npt.NDArray[Any] | None:
    """Return an Arrow array as (n, ...); None if a value is missing and `nulls` is False."""
    import pyarrow as pa

    num_rows = len(array)
    if nulls and kind.item is not None:
        missing = np.full(kind.shape, np.nan)
        rows = [missing if row is None else np.array(row, dtype=np.float64) for row in array.to_pylist()]
        return np.stack(rows) if rows else np.empty((0, *kind.shape))
    flat = array
    while pa.types.is_fixed_size_list(flat.type):
        if flat.null_count:
            return None
        flat = flat.flatten()
    if flat.null_count and not nulls:
        return None
    if flat.null_count:
        flat = (flat.cast(pa.int8()) if scalar.kind == "bool" else flat).cast(pa.float64(), safe=False)
    values: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return values.reshape(num_rows, *kind.shape)


def unknown_column(name: str, types: Mapping[str, ColumnType], record: SplitRecord, *, context: str) -> LoaderError:
    """Return the error for a column that does not exist."""
    if record.columns is None:
        return LoaderError(
            f"{context}: no column {name!r} in its index: version 1 of the format stored columns of the source in the "
            f"JSON of samples only. Encode the split again to have them in the index; it has {sorted(types)}"
        )
    return LoaderError(f"{context}: no column {name!r} in its index; it has {sorted(types)}")


def check_names(names: Any, what: str) -> tuple[str, ...]:
    """Return names as a tuple; raise LoaderError if they are not a list of text, or one is repeated."""
    given = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else None
    if given is None or not all(isinstance(name, str) for name in given):
        example = f", such as ({names!r},)" if isinstance(names, str) else ""
        raise LoaderError(f"{what} is a list of names{example}, not {names!r}")
    if len(set(given)) < len(given):
        twice = next(name for name, count in Counter(given).items() if count > 1)
        raise LoaderError(f"{what} names {twice!r} twice")
    return given


def check_target(target: Any) -> str | None:
    """Return the target; raise LoaderError if it is not one name or None."""
    if target is None or isinstance(target, str):
        return target
    raise LoaderError(f"target is the name of one column or None, not {target!r}: name several in columns")
