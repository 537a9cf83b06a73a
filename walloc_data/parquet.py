"""Parquet files from outside, opened once their claims of size are borne out by their bytes.

pyarrow asks for as much memory as a page's header says that it unpacks to, 2 GB at most, and for as many bytes as the
footer says that a column has. A file of a few hundred bytes can claim that. So the footer and the headers of all pages
that will be read are compared with the file first: a page unpacks to at most 128 MiB or 16 times its bytes, a list
column of a row group to 512 MiB or 16 times its bytes, and all of it lies inside the file. Text is read as
dictionaries; `walloc_data.tables.text_of` checks the length that they unpack to.
"""

import io
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from walloc_data.errors import FormatError
from walloc_data.files import open_regular
from walloc_data.thrift import thrift_struct

__all__ = ["batches", "check_parquet", "open_parquet"]

MAX_PAGE_BYTES = 2**27
MAX_LIST_BYTES = 2**29  # of the values of one column of lists in one row group, as the index's writer keeps to
MAX_RATIO = 16  # more than that is unpacked to all the same, if it is at most so many times the bytes in the file
_HEADER_BYTES, _MAX_HEADER_BYTES = 2**10, 2**24
_MAX_FOOTER_BYTES = 2**26  # which take up to seventy times as much once they are Python's objects
_DATA, _INDEX, _DICTIONARY, _DATA_2 = range(4)  # kinds of pages
_DELTA_BYTE_ARRAY = 7  # the encoding whose values begin as the one before: bytes that stand for any number of others
_MAGIC = b"PAR1"
_REPEATED, _MAX_DEPTH = 2, 64
_BYTE_ARRAY, _FIXED = 6, 7
_WIDTHS = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8}  # by kind: bool, int32, int64, int96, float, double


@contextmanager
def open_parquet(
    file: BinaryIO | Path | bytes, *, columns: Collection[str] | None = None, context: str | None = None
) -> Iterator[Any]:
    """Open a parquet file, after its claimed sizes were checked, as a `ParquetFile` that reads text as dictionaries.

    Args:
        file: a path, an open file or its bytes.
        columns: those that will be read; None: all.
        context: begins errors about its claims.

    Raises:
        FormatError: it claims more than its bytes can stand for.
        pyarrow.ArrowException, OSError, ValueError: it is no parquet file.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.parquet import open_parquet
        >>> with open_parquet(Path("my-latents/index/train.parquet")) as parquet:
        ...     parquet.metadata.num_rows
        8
    """
    import pyarrow.parquet as pq

    if isinstance(file, Path):
        with open_regular(file) as opened, open_parquet(opened, columns=columns, context=context) as parquet:
            yield parquet
        return
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        leaves = _check(source, columns)
    except FormatError as error:
        raise FormatError(f"{context}: {error}" if context else str(error)) from error
    source.seek(0)
    with pq.ParquetFile(source, read_dictionary=[leaf.path for leaf in leaves if leaf.kind == _BYTE_ARRAY]) as parquet:
        yield parquet


def batches(parquet: Any, *, num_rows: int, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yield the rows of an open file, at most `num_rows` at a time, as record batches.

    No batch holds rows of two row groups: each has dictionaries of its own, which pyarrow does not join inside lists.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.parquet import batches, open_parquet
        >>> with open_parquet(Path("my-latents/index/train.parquet")) as parquet:
        ...     [len(batch) for batch in batches(parquet, num_rows=5, columns=["label"])]
        [5, 3]
    """
    for number in range(parquet.num_row_groups):
        yield from parquet.iter_batches(batch_size=num_rows, row_groups=[number], columns=columns)


def check_parquet(file: BinaryIO | Path | bytes, *, context: str | None = None) -> None:
    """Refuse a parquet file that another library will read whole, where its claims are not true: see `open_parquet`.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.parquet import check_parquet
        >>> check_parquet(Path("my-latents/index/train.parquet"))
    """
    with open_parquet(file, context=context):
        pass


class _Leaf(NamedTuple):
    """A column of numbers or of text in the footer's schema."""

    path: str  # names of the columns that hold it and its own, with dots between
    kind: int
    width: int  # bytes of a value; of text, of its number in the dictionary
    repeated: bool  # in a list


def _check(file: BinaryIO, columns: Collection[str] | None) -> list[_Leaf]:
    """Check what will be read of a file; return the columns of it.

    pyarrow's own view of the footer is not asked: of a damaged one it ends the process.
    """
    footer, num_bytes = _footer(file, file.seek(0, os.SEEK_END))
    leaves = _leaves(_list(footer, 2, "schema"))
    wanted = [
        i
        for i, leaf in enumerate(leaves)
        if columns is None or any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in columns)
    ]
    num_rows = 0
    for number, group in enumerate(_list(footer, 4, "row groups")):
        chunks = _list(group, 1, f"columns of row group {number}")
        if len(chunks) != len(leaves):
            raise FormatError(f"row group {number} has {len(chunks)} columns; the schema has {len(leaves)}")
        rows = _number(group, 3)
        num_rows += rows
        for i, chunk in enumerate(chunks):
            try:
                _check_column(chunk, leaves[i], rows, file if i in wanted else None, num_bytes)
            except FormatError as error:
                raise FormatError(f"row group {number}, column {leaves[i].path!r}: {error}") from error
    if num_rows != _number(footer, 3):
        raise FormatError(f"{_number(footer, 3)} rows; its row groups have {num_rows}")
    return [leaves[i] for i in wanted]


def _footer(file: BinaryIO, num_bytes: int) -> tuple[dict[int, Any], int]:
    """Return the footer's fields, and where it begins."""
    file.seek(max(0, num_bytes - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or length > num_bytes - 12:
        raise FormatError("not a parquet file, or cut short")
    if length > _MAX_FOOTER_BYTES:
        raise FormatError(f"a footer of {length} bytes; at most {_MAX_FOOTER_BYTES} are read")
    file.seek(num_bytes - 8 - length)
    try:
        return thrift_struct(file.read(length), 0)[0], num_bytes - 8 - length
    except IndexError as error:
        raise FormatError("not a parquet file, or damaged: its footer is cut short") from error


def _list(fields: Any, number: int, what: str) -> list[Any]:
    found = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise FormatError(f"not a parquet file, or damaged: no {what} in its footer")
    return found


def _number(fields: Any, number: int) -> int:
    found = fields.get(number) if isinstance(fields, dict) else None
    if type(found) is not int or found < 0:
        raise FormatError(f"not a parquet file, or damaged: field {number} of a part of its footer is {found!r}")
    return found


def _leaves(elements: list[Any]) -> list[_Leaf]:
    """Return the leaves of a schema, which lists its elements from the root on, each before those inside it."""
    leaves: list[_Leaf] = []
    inside: list[tuple[int, tuple[str, ...], bool]] = [(1, (), False)]  # elements to come, their path, in a list
    for position, element in enumerate(elements):
        if not inside:
            raise FormatError("not a parquet file, or damaged: its schema has more elements than it says")
        left, above, repeated = inside.pop()
        if left > 1:
            inside.append((left - 1, above, repeated))
        name = element.get(4)
        try:
            path = (*above, name.decode()) if position and isinstance(name, bytes) else above
        except UnicodeDecodeError as error:
            raise FormatError(f"the name of a column is no text: {name!r}") from error
        repeated = repeated or element.get(3) == _REPEATED
        if element.get(5):
            inside.append((_number(element, 5), path, repeated))
            if len(inside) > _MAX_DEPTH:
                raise FormatError(f"its columns are nested more than {_MAX_DEPTH} deep")
        elif position:
            kind = _number(element, 1)
            width = max(1, _number(element, 2)) if kind == _FIXED else _WIDTHS.get(kind, 4)
            leaves.append(_Leaf(".".join(path), kind, width, repeated))
    if inside:
        raise FormatError("not a parquet file, or damaged: its schema has fewer elements than it says")
    return leaves


def _check_column(chunk: dict[int, Any], leaf: _Leaf, num_rows: int, file: BinaryIO | None, num_bytes: int) -> None:
    """Check a column of a row group; without `file` its record alone, as its pages will not be read."""
    record: Any = chunk.get(3)
    start, length, num_values = _number(record, 9), _number(record, 7), _number(record, 5)
    if _number(record, 1) != leaf.kind or chunk.get(1) is not None:
        raise FormatError("is not of the schema's type, or in another file")
    if record.get(11):  # where its dictionary begins
        start = min(start, _number(record, 11))
    if start + length > num_bytes:
        raise FormatError(f"{length} bytes from byte {start} on; its columns end at byte {num_bytes}")
    if not leaf.repeated:
        if num_values != num_rows:
            raise FormatError(f"{num_values} values in {num_rows} rows")
    elif not num_rows <= num_values <= max(MAX_LIST_BYTES, MAX_RATIO * length) // (leaf.width + 4):  # 4 of levels
        raise FormatError(f"{num_values} values in {length} bytes; refused")
    if file is None:
        return
    place, seen, end = start, 0, start + length
    while seen < num_values:
        if place >= end:
            raise FormatError(f"{seen} values; its record says {num_values}")
        header, after = _header(file, place, end)
        packed, unpacked = header.get(3, -1), header.get(2, -1)
        if not (isinstance(packed, int) and isinstance(unpacked, int) and 0 <= packed <= end - after and unpacked >= 0):
            raise FormatError(f"a page of {packed} bytes from byte {after} on that unpacks to {unpacked}")
        if unpacked > max(MAX_PAGE_BYTES, MAX_RATIO * packed):
            raise FormatError(f"a page of {packed} bytes that unpacks to {unpacked}; refused")
        seen += _values(header, unpacked)
        place = after + packed
    if seen != num_values:
        raise FormatError(f"{seen} values; its record says {num_values}")


def _values(header: dict[int, Any], unpacked: int) -> int:
    """Return how many values a page adds to its column; refuse those that no page has."""
    kind = header.get(1)
    inner = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_2: 8}.get(kind, -1)) if isinstance(kind, int) else None
    if kind == _INDEX:
        return 0
    number = inner.get(1, -1) if isinstance(inner, dict) else -1
    if not isinstance(inner, dict) or not isinstance(number, int) or number < 0:
        raise FormatError(f"a page of kind {kind} with {number} values")
    if kind == _DICTIONARY:
        if number > unpacked:
            raise FormatError(f"a dictionary of {number} values in {unpacked} bytes")
        return 0
    if inner.get(2 if kind == _DATA else 4) == _DELTA_BYTE_ARRAY:
        raise FormatError("is encoded as DELTA_BYTE_ARRAY, which is not read: a few bytes of it can be any number")
    if number == 0:
        raise FormatError("a page without values")
    return number


def _header(file: BinaryIO, place: int, end: int) -> tuple[dict[int, Any], int]:
    """Return a page's header by the numbers of its fields, and where its data begin."""
    num_bytes = _HEADER_BYTES
    while True:
        file.seek(place)
        data = file.read(min(num_bytes, end - place))
        try:
            header, used = thrift_struct(data, 0)
        except IndexError as error:
            if num_bytes > min(_MAX_HEADER_BYTES, end - place):
                raise FormatError(f"no header of a page at byte {place}") from error
            num_bytes *= 32
        else:
            return header, place + used
