"""The rows of the index: a shard's, beside its done mark, and all of a split's, joined."""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from walloc_data.errors import FormatError
from walloc_data.format import MAX_INDEX_VALUE_BYTES, OPTIONAL_INDEX_COLUMNS, ColumnType, column_name, join_types
from walloc_data.tables import cast_column, index_schema, read_parquet, typed_columns

__all__ = ["SOURCE_CRC32", "SOURCE_VERSION", "ShardRows", "columns_that_fit", "join_column_types", "join_rows"]

SOURCE_VERSION, SOURCE_CRC32 = "source_version", "source_crc32"  # of the picture as its source had it

_ROWS_PER_GROUP = 2**17  # of the index's parquet file
_BYTES_PER_GROUP = 2**28  # or less rows, where their text is long
_COMPRESSION = "zstd"


class ShardRows:
    """The rows of one shard as it is written.

    Args:
        columns: names of the source's columns.
        declared: the types that the source states of some of them.
        mirror: whether mirrored latents are stored.
    """

    def __init__(self, columns: Sequence[str], declared: Mapping[str, Any], *, mirror: bool) -> None:
        self._declared = {column_name(name): kind for name, kind in declared.items()}
        self._schema = index_schema(mirror=mirror, columns={})
        self._rows: list[tuple[Any, ...]] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in columns}

    def append(
        self,
        place: Mapping[str, Any],
        files: Sequence[tuple[int, bytes]],
        columns: Mapping[str, Any],
        *,
        version: str | None,
        data: bytes,
    ) -> None:
        """Add one sample.

        Args:
            place: values of the index's columns, but for those that follow from `files`.
            files: where the packed latent begins in its shard, and its bytes; the same of the mirrored one.
            columns: the source's, as JSON values.
            version: of the picture, where its source can tell.
            data: the picture's own bytes.
        """
        values = dict(place)
        for prefix, (offset, file) in zip(("", "mirror_"), files, strict=False):
            values |= {f"{prefix}offset": offset, f"{prefix}length": len(file), f"{prefix}crc32": zlib.crc32(file)}
        self._rows.append((*(values[name] for name in self._schema.names), version, zlib.crc32(data)))
        for name, column in self._columns.items():
            column.append(columns.get(name))

    def to_parquet(self) -> tuple[bytes, dict[str, Any]]:
        """Return the rows as a parquet file, and the types of the source's columns in it."""
        import pyarrow as pa
        import pyarrow.parquet

        schema = self._schema.append(pa.field(SOURCE_VERSION, pa.string())).append(pa.field(SOURCE_CRC32, pa.uint32()))
        fields = zip(*self._rows, strict=True) if self._rows else ([] for _ in schema)
        arrays = {field.name: pa.array(values, field.type) for field, values in zip(schema, fields, strict=True)}
        typed, types = typed_columns({column_name(n): values for n, values in self._columns.items()}, self._declared)
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table(arrays | typed), sink, compression=_COMPRESSION)
        return sink.getvalue().to_pybytes(), types


def columns_that_fit(columns: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Return a sample's columns without the values that are too large for an index, and the names of these."""
    large = [name for name, value in columns.items() if _is_large(value)]
    return ({**columns, **dict.fromkeys(large)} if large else columns), large


def _is_large(value: Any) -> bool:
    if isinstance(value, str) and 6 * len(value) <= MAX_INDEX_VALUE_BYTES:  # a character is six bytes of JSON at most
        return False
    return isinstance(value, str | list | dict) and len(json.dumps(value)) > MAX_INDEX_VALUE_BYTES


def join_column_types(shards: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the types that hold every shard's columns; None where shards are of version 1, without any."""
    joined: dict[str, ColumnType] = {}
    for columns in shards:
        if columns is None:
            return None
        for name, described in columns.items():
            kind = ColumnType.from_json(described)
            joined[name] = join_types(joined[name], kind) if name in joined else kind
    return {name: kind.to_json() for name, kind in joined.items()}


def join_rows(
    shards: Iterable[tuple[str, bytes, Mapping[str, Any] | None, Callable[[Any], Any]]],
    target: Path,
    *,
    mirror: bool,
    columns: Mapping[str, Any] | None,
) -> set[int]:
    """Write the index: the rows of shards in order, where `shard` becomes the position among them.

    Args:
        shards: of each shard, what errors call its rows, their parquet file, the types of the source's columns, and
            what gives positions in the source for the numbers in `source_index`.
        target: the file to write.
        columns: the types of the source's columns; None: of version 1.

    Returns:
        The labels that occur.
    """
    import pyarrow as pa
    import pyarrow.parquet

    schema = index_schema(mirror=mirror, columns=columns)
    labels: set[int] = set()
    with pa.parquet.ParquetWriter(target, schema, compression=_COMPRESSION) as writer:
        waiting: list[Any] = []

        def flush() -> None:
            if waiting:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()

        for position, (context, data, types, in_source) in enumerate(shards):
            try:
                table = _as_schema(read_parquet(data), schema, types or {}, columns or {})
                place = schema.get_field_index("source_index")
                indices = pa.array(in_source(table["source_index"].to_numpy()))
                table = table.set_column(place, schema.field(place), indices)
            except (pa.ArrowException, LookupError, TypeError, ValueError) as error:
                raise FormatError(f"{context}: not the rows of an index ({error})") from error
            labels.update(table["label"].unique().drop_null().to_pylist())
            number = pa.array(np.full(len(table), position, dtype=np.int32))
            waiting.append(table.set_column(schema.get_field_index("shard"), schema.field("shard"), number))
            if sum(map(len, waiting)) >= _ROWS_PER_GROUP or sum(t.nbytes for t in waiting) >= _BYTES_PER_GROUP:
                flush()
        flush()
    return labels


def _as_schema(table: Any, schema: Any, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
    """Return a shard's rows with the columns and types of the whole index."""
    import pyarrow as pa

    arrays = []
    for field in schema:
        if field.name not in table.column_names and (field.name in OPTIONAL_INDEX_COLUMNS or field.name in wanted):
            arrays.append(pa.nulls(len(table), field.type))
        elif field.name in wanted:
            kinds = (ColumnType.from_json(types[field.name]) for types in (found, wanted))
            arrays.append(cast_column(table[field.name], *kinds))
        else:
            arrays.append(table[field.name].cast(field.type))
    return pa.table(arrays, schema=schema)
