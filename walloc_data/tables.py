"""The index and the list of shards as Arrow tables: schemas, and columns of a source as typed arrays.

`walloc_data.format` defines the columns without pyarrow.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, BinaryIO

from walloc_data.errors import FormatError
from walloc_data.format import (
    INDEX_COLUMNS,
    MIRROR_INDEX_COLUMNS,
    SOURCE_INDEX_COLUMNS,
    ColumnType,
    ShardRecord,
    finite_json,
    infer_type,
    tighten_lists,
)
from walloc_data.parquet import batches, open_parquet

__all__ = [
    "arrow_type",
    "cast_column",
    "column_array",
    "index_schema",
    "plain_type",
    "read_parquet",
    "read_shards",
    "shards_table",
    "text_of",
    "text_of_batch",
    "typed_columns",
]

MAX_TEXT_BYTES = 2**20  # per value
MAX_TEXTS_BYTES = 2**28  # of values that are read at once
MAX_TABLE_BYTES = 2**30  # of a table that is read at once


def index_schema(*, mirror: bool, columns: Mapping[str, Any] | None) -> Any:
    """Return the pyarrow schema of an index.

    Args:
        mirror: whether mirrored latents are stored.
        columns: names and types of the source's columns, as in the record of a split; None: an index of version 1.

    Example:
        >>> from walloc_data.tables import index_schema
        >>> index_schema(mirror=False, columns={"caption": "string"}).names[-2:]
        ['crop_bottom', 'caption']
    """
    import pyarrow as pa

    ours = (
        *INDEX_COLUMNS,
        *(MIRROR_INDEX_COLUMNS if mirror else ()),
        *(SOURCE_INDEX_COLUMNS if columns is not None else ()),
    )
    kinds = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64(), "uint32": pa.uint32()}
    fields = [(name, kinds[kind]) for name, kind, _ in ours]
    fields += [(name, arrow_type(ColumnType.from_json(kind))) for name, kind in (columns or {}).items()]
    return pa.schema(fields)


def arrow_type(kind: ColumnType) -> Any:
    """Return the pyarrow type of a column.

    Example:
        >>> from walloc_data.format import ColumnType
        >>> from walloc_data.tables import arrow_type
        >>> arrow_type(ColumnType.from_json({"list": "float32", "length": 4}))
        FixedSizeListType(fixed_size_list<item: float>[4])
    """
    import pyarrow as pa

    if kind.item is not None:
        item = arrow_type(kind.item)
        return pa.list_(item) if kind.length is None else pa.list_(item, kind.length)
    if kind.kind == "struct":
        return pa.struct([(name, arrow_type(inner)) for name, inner in kind.fields])
    if kind.kind == "timestamp":
        return pa.timestamp("us")
    if kind.kind == "timestamp_utc":
        return pa.timestamp("us", tz="UTC")
    if kind.kind == "date":
        return pa.date32()
    if kind.kind in ("json", "null"):  # "null": no shard has a value yet
        return pa.string() if kind.kind == "json" else pa.null()
    names = {"bool": "bool_"}
    return getattr(pa, names.get(kind.kind, kind.kind))()


def typed_columns(
    values: Mapping[str, Sequence[Any]], declared: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the columns of a source as Arrow arrays, and their types as in the record of a split.

    Args:
        values: JSON values of each column, made by `walloc_data.sources.base.json_value`.
        declared: types stated by the source; the types of other columns are inferred from their values.

    Example:
        >>> from walloc_data.tables import typed_columns
        >>> typed_columns({"age": [31, None], "box": [[1, 2], [3, 4]]}, {"age": "int8"})[1]
        {'age': 'int8', 'box': {'list': 'int64', 'length': 2}}
    """
    arrays, types = {}, {}
    for name, column in values.items():
        kind = ColumnType.from_json(declared[name]) if name in declared else infer_type(column)
        try:
            kind = tighten_lists(kind, column)
            arrays[name] = column_array(column, kind)
        except (AttributeError, TypeError, ValueError, OverflowError):  # values are not of the declared type
            kind = tighten_lists(infer_type(column), column)
            arrays[name] = column_array(column, kind)
        types[name] = kind.to_json()
    return arrays, types


def column_array(values: Iterable[Any], kind: ColumnType) -> Any:
    """Return a pyarrow array of JSON values.

    Dates and times are text in ISO 8601; times without a zone are taken as UTC where the type is `timestamp_utc`.

    Raises:
        TypeError, ValueError: the values are not of this type.

    Example:
        >>> from walloc_data.format import ColumnType
        >>> from walloc_data.tables import column_array
        >>> column_array(["2020-02-29", None], ColumnType("date")).to_pylist()
        [datetime.date(2020, 2, 29), None]
    """
    import pyarrow as pa

    try:
        return pa.array([_typed(value, kind) for value in values], arrow_type(kind))
    except (AttributeError, OverflowError) as error:
        raise ValueError(f"values are not of the type {kind.to_json()} ({error})") from error


def _typed(value: Any, kind: ColumnType) -> Any:
    """Convert a JSON value to the Python value that Arrow expects."""
    if value is None:
        return None
    if kind.kind == "json":
        return json.dumps(finite_json(value), ensure_ascii=False, sort_keys=True, default=_text)
    if kind.kind == "date":
        return date.fromisoformat(value) if isinstance(value, str) else value
    if kind.kind in ("timestamp", "timestamp_utc"):
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if kind.kind == "timestamp_utc":
            # astimezone would take a time without a zone as one of this machine's zone.
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        return moment
    if kind.item is not None and kind.item.kind in _PARSED:
        return [_typed(item, kind.item) for item in value]
    if kind.kind == "struct":
        return {name: _typed(value.get(name), inner) for name, inner in kind.fields}
    return value


_PARSED = frozenset({"json", "date", "timestamp", "timestamp_utc", "list", "struct"})


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)


def cast_column(column: Any, found: ColumnType, wanted: ColumnType) -> Any:
    """Cast an array or chunked array to the joint type of several shards (`join_types`).

    Example:
        >>> from walloc_data.format import ColumnType
        >>> from walloc_data.tables import cast_column, column_array
        >>> text, mixed = ColumnType("string"), ColumnType("json")
        >>> cast_column(column_array(["one"], text), text, mixed).to_pylist()
        ['"one"']
    """
    import pyarrow as pa

    if found == wanted:
        return column
    if found.kind != "json" and wanted.kind == "json":
        return column_array(column.to_pylist(), wanted)
    if found.kind != "struct" and found.item is None:
        return column.cast(arrow_type(wanted), safe=False)  # numbers: an integer of more than 53 bits is rounded
    return pa.array([_typed(value, wanted) for value in column.to_pylist()], arrow_type(wanted))


def plain_type(kind: Any) -> Any:
    """Return an Arrow type with dictionary types, on any level, replaced by their value types.

    Example:
        >>> import pyarrow
        >>> from walloc_data.tables import plain_type
        >>> plain_type(pyarrow.list_(pyarrow.dictionary(pyarrow.int32(), pyarrow.string())))
        ListType(list<item: string>)
    """
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)))
    return kind


def text_of(array: Any, *, what: str) -> Any:
    """Check the strings in an array of any type, plain or dictionary-encoded, and return it with plain strings.

    A few bytes of parquet can expand to very long text, so `walloc_data.parquet` reads it as dictionaries, which are
    expanded here, after their length is checked.

    Raises:
        FormatError: a value is longer than 1 MiB, all values are longer than 256 MiB, a value is not text, or the type
            is a map or another nested type than lists and structs.

    Example:
        >>> import pyarrow
        >>> from walloc_data.tables import text_of
        >>> text_of(pyarrow.array(["a", "b", "a"]).dictionary_encode(), what="a column").to_pylist()
        ['a', 'b', 'a']
    """
    import pyarrow as pa

    try:
        if (total := _text_bytes(array, what)) > MAX_TEXTS_BYTES:
            raise FormatError(f"{what} has {total} bytes of text in {len(array)} rows; at most {MAX_TEXTS_BYTES}")
        if (plain := plain_type(array.type)) != array.type:
            array = array.cast(plain)
        array.validate(full=True)  # UTF-8 among others
    except pa.ArrowException as error:
        raise FormatError(f"{what} is not text ({error})") from error
    return array


def _text_bytes(array: Any, what: str) -> int:
    """Return how many bytes the dictionaries of an array unpack to."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        array.validate(full=True)  # a number beyond the dictionary would be read from beyond it
        lengths = pc.binary_length(array.dictionary)
        if (longest := pc.max(lengths).as_py() or 0) > MAX_TEXT_BYTES:
            raise FormatError(f"{what} has a text of {longest} bytes; at most {MAX_TEXT_BYTES} are read")
        return int(pc.sum(lengths.cast(pa.int64()).take(array.indices)).as_py() or 0)
    if pa.types.is_struct(array.type):
        return sum(_text_bytes(array.field(i), what) for i in range(array.type.num_fields))
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return _text_bytes(array.flatten(), what)
    if pa.types.is_nested(array.type):  # maps and lists with 64-bit offsets, which nothing here writes
        raise FormatError(f"{what} is of the type {array.type}, which is not read")
    return 0


def text_of_batch(batch: Any, *, context: str | None = None) -> Any:
    """Return a record batch whose columns are what `text_of` makes of them.

    Example:
        >>> import pyarrow
        >>> from walloc_data.tables import text_of_batch
        >>> text_of_batch(pyarrow.record_batch({"a": ["x"]})).to_pylist()
        [{'a': 'x'}]
    """
    import pyarrow as pa

    names = batch.schema.names
    start = f"{context}: " if context else ""
    arrays = [text_of(batch.column(i), what=f"{start}column {name!r}") for i, name in enumerate(names)]
    return pa.record_batch(arrays, names=names)


def read_parquet(file: BinaryIO | bytes, *, columns: Sequence[str] | None = None) -> Any:
    """Read a parquet file, or some of its columns, as a table of bounded size.

    Raises:
        FormatError: it is larger than 1 GiB, lacks a column, or claims what `walloc_data.parquet` refuses.
        pyarrow.ArrowException, OSError: it is no parquet file, or damaged.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.tables import read_parquet
        >>> read_parquet(Path("my-latents/index/train.parquet").read_bytes(), columns=["label"]).num_rows
        8
    """
    import pyarrow as pa

    parts, num_bytes = [], 0
    with open_parquet(file, columns=columns) as parquet:
        for batch in batches(parquet, num_rows=1024, columns=columns):
            parts.append(text_of_batch(batch))
            num_bytes += parts[-1].nbytes
            if num_bytes > MAX_TABLE_BYTES:
                raise FormatError(f"more than {MAX_TABLE_BYTES} bytes of values; refused")
        kinds = {field.name: field.with_type(plain_type(field.type)) for field in parquet.schema_arrow}
    if absent := [name for name in columns or () if name not in kinds]:
        raise FormatError(f"has no column {absent[0]!r}; its columns are {', '.join(kinds)}")
    schema = pa.schema([kinds[name] for name in (kinds if columns is None else columns)])
    return pa.Table.from_batches(parts, schema=schema).combine_chunks()


def shards_table(shards: Sequence[ShardRecord], *, root: str) -> bytes:
    """Return a list of shards as a parquet file; names are relative to `root`, the folder of the split.

    Example:
        >>> from walloc_data.format import ShardRecord
        >>> from walloc_data.tables import read_shards, shards_table
        >>> shards = (ShardRecord("data/train-00000.tar", 4, 10240, "0" * 64),)
        >>> read_shards(shards_table(shards, root=""), num_shards=1, root="", context="shards") == shards
        True
    """
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "name": pa.array([shard.name.removeprefix(root) for shard in shards], pa.string()),
        "num_samples": pa.array([shard.num_samples for shard in shards], pa.int64()),
        "num_bytes": pa.array([shard.num_bytes for shard in shards], pa.int64()),
        "sha256": pa.array([shard.sha256 for shard in shards], pa.string()),
    }
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table(columns), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def read_shards(data: bytes, *, num_shards: int, root: str, context: str) -> tuple[ShardRecord, ...]:
    """Parse a parquet file written by `shards_table`.

    Raises:
        FormatError: the data is not a list of `num_shards` shards.

    Example:
        >>> from walloc_data.tables import read_shards
        >>> read_shards(b"", num_shards=1, root="", context="train.shards.parquet")
        Traceback (most recent call last):
        walloc_data.errors.FormatError: train.shards.parquet: not a parquet file, or cut short
    """
    texts, numbers = ("name", "sha256"), ("num_samples", "num_bytes")
    records: list[ShardRecord] = []
    try:
        with open_parquet(data) as file:
            if file.metadata.num_rows != num_shards:
                raise FormatError(f"{file.metadata.num_rows} shards; the manifest says {num_shards}")
            for batch in batches(file, num_rows=1024, columns=[*texts, *numbers]):
                columns = {name: text_of(batch[name], what=f"column {name!r}").to_pylist() for name in texts}
                columns |= {name: batch[name].to_pylist() for name in numbers}
                for values in zip(*columns.values(), strict=True):
                    row = dict(zip(columns, values, strict=True))
                    row["name"] = root + str(row["name"])
                    records.append(ShardRecord.from_dict(row, context=f"shard {len(records)}"))
    except FormatError as error:
        raise FormatError(f"{context}: {error}") from error
    except Exception as error:  # pyarrow raises many kinds on damaged files
        raise FormatError(f"{context}: not a list of shards ({type(error).__name__}: {error})") from error
    return tuple(records)
