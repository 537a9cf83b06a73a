"""The rows of the index: of single shards, and joined for a split."""

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

SOURCE_VERSION, SOURCE_CRC32 = "source_version", "source_crc32"  # of the picture in the source

_ROWS_PER_GROUP = 2**17  # of the index's parquet file
_BYTES_PER_GROUP = 2**28  # fewer rows if their text is long
_COMPRESSION = "zstd"


class ShardRows:
    """Rows of the index for one shard, collected while the shard is written.

    Args:
        columns: names of the source's columns.
        declared: types of columns that the source states.
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
            place: values of the columns of the index that do not follow from `files`.
            files: (offset in the shard, bytes) of the packed latent and of the mirrored one.
            columns: values of the source's columns, as JSON values.
            version: version of the picture, if the source has one.
            data: bytes of the picture file.
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
    """Return the columns of a sample without values too large for the index, and the names of the latter."""
    large = [name for name, value in columns.items() if _is_large(value)]
    return ({**columns, **dict.fromkeys(large)} if large else columns), large


def _is_large(value: Any) -> bool:
    if isinstance(value, str) and 6 * len(value) <= MAX_INDEX_VALUE_BYTES:  # a character has at most six bytes in JSON
        return False
    return isinstance(value, str | list | dict) and len(json.dumps(value)) > MAX_INDEX_VALUE_BYTES


def join_column_types(shards: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the joint types of the columns of all shards; None if shards are of version 1, which has no columns."""
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
    """Write the index: the rows of shards in order, with `shard` set to the position of the shard.

    Args:
        shards: for each shard, the context of error messages, the parquet file of its rows, the types of the source's
            columns, and the function that maps `source_index` to positions in the source.
        target: file to write.
        columns: types of the source's columns; None: an index of version 1.

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
                raise FormatError(f"{context}: not rows of an index ({error})") from error
            labels.update(table["label"].unique().drop_null().to_pylist())
            number = pa.array(np.full(len(table), position, dtype=np.int32))
            waiting.append(table.set_column(schema.get_field_index("shard"), schema.field("shard"), number))
            if sum(map(len, waiting)) >= _ROWS_PER_GROUP or sum(t.nbytes for t in waiting) >= _BYTES_PER_GROUP:
                flush()
        flush()
    return labels


def _as_schema(table: Any, schema: Any, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
    """Return the rows of a shard with the columns and types of the split's index."""
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
