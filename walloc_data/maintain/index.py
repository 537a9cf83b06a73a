"""Reading and rewriting of the index of a finished split, shard by shard."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from walloc_data.convert.inspect import check_rows, failure_lines, local_file
from walloc_data.dataset.index import check_index
from walloc_data.errors import FormatError
from walloc_data.format import CodecSpec, ColumnType, Manifest, ShardRecord, join_types, sample_key
from walloc_data.maintain.shards import Change
from walloc_data.parquet import batches, open_parquet
from walloc_data.storage import Store
from walloc_data.tables import MAX_TABLE_BYTES, cast_column, index_schema, text_of_batch

__all__ = ["SplitFiles", "joined_columns", "md5_of_shards", "tables_of", "write_failures"]

_BATCH_ROWS = 2**16


def tables_of(store: Store, manifest: Manifest, split: str) -> Iterator[tuple[ShardRecord, Any]]:
    """Yield each shard of a split with its rows of the index, a `pyarrow.Table`, in memory that does not grow with the
    split.

    Raises:
        FormatError: the index does not match the manifest.
    """
    import pyarrow as pa

    record = manifest.splits[split]
    context = store.location(record.index_name(split))
    schema = index_schema(mirror=manifest.settings.mirror, columns=record.columns)
    check_index(store, split=split, record=record, spec=manifest.codec)
    with local_file(store, record.index_name(split)) as file:
        try:
            with open_parquet(file, context=f"{context}: not a readable index") as parquet:
                waiting = schema.empty_table()
                parts = batches(parquet, num_rows=_BATCH_ROWS)
                for shard in record.shards:
                    while len(waiting) < shard.num_samples and (batch := next(parts, None)) is not None:
                        batch = text_of_batch(batch, context=context)
                        check_rows(batch, context=context)
                        table = pa.table(_filled(batch, schema), schema=schema)
                        waiting = pa.concat_tables([waiting, table])
                        if waiting.nbytes > MAX_TABLE_BYTES:
                            raise FormatError(f"{context}: more than {MAX_TABLE_BYTES} bytes of rows of {shard.name}")
                    if len(waiting) < shard.num_samples:
                        raise FormatError(f"{context}: ends inside {shard.name}")
                    yield shard, waiting.slice(0, shard.num_samples).combine_chunks()
                    waiting = waiting.slice(shard.num_samples)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise FormatError(f"{context}: not a readable index ({error})") from error


def _filled(batch: Any, schema: Any) -> list[Any]:
    """Return the columns of a batch; missing checksums of early versions as nulls."""
    import pyarrow as pa

    names = batch.schema.names
    return [
        batch.column(field.name).cast(field.type) if field.name in names else pa.nulls(len(batch), field.type)
        for field in schema
    ]


def joined_columns(
    first: Mapping[str, Any] | None, second: Mapping[str, Any] | None, *, context: str
) -> dict[str, Any] | None:
    """Return the types of the columns of two parts of one split.

    Raises:
        FormatError: one part is of version 1 of the format, whose index has no columns of the source.
    """
    if (first is None) != (second is None):
        raise FormatError(
            f"{context}: one part was written by version 1 of the format, whose index lacks columns of the other: "
            "encode it again"
        )
    if first is None or second is None:
        return None
    null = ColumnType("null")
    found = {name: ColumnType.from_json(kind) for name, kind in first.items()}
    for name, kind in second.items():
        found[name] = join_types(found.get(name, null), ColumnType.from_json(kind))
    return {name: kind.to_json() for name, kind in sorted(found.items())}  # as the manifest's JSON has them


@dataclass
class SplitFiles:
    """Writer of the files that describe a changed split (index, wids, shards), shard by shard in order.

    Args:
        folder: folder in which the index is written.
        mirror: whether mirrored latents are stored.
        columns: types of the source's columns in the changed split.
        spec: description of the codec.
    """

    folder: Path
    mirror: bool
    columns: Mapping[str, Any] | None
    spec: CodecSpec
    shards: list[ShardRecord] = field(default_factory=list)
    wids: list[dict[str, Any]] = field(default_factory=list)
    shapes: set[tuple[int, int, int]] = field(default_factory=set)
    _writer: Any = None

    @property
    def index(self) -> Path:
        """The index's file; complete after `close`."""
        return self.folder / "index.parquet"

    def add(
        self,
        shard: ShardRecord,
        md5: str,
        table: Any,
        columns: Mapping[str, Any] | None,
        changes: Mapping[str, Sequence[Any]],
    ) -> None:
        """Add a shard.

        Args:
            table: the rows of its samples.
            columns: the types of the source's columns in `table`.
            changes: changed columns of the index.
        """
        import pyarrow as pa
        import pyarrow.parquet

        schema = index_schema(mirror=self.mirror, columns=self.columns)
        if self._writer is None:
            self._writer = pa.parquet.ParquetWriter(self.index, schema, compression="zstd")
        replaced = {**changes, "shard": np.full(len(table), len(self.shards), dtype=np.int32)}
        arrays = []
        for item in schema:
            if item.name in replaced:
                arrays.append(pa.array(replaced[item.name], item.type))
            elif item.name not in table.column_names:
                arrays.append(pa.nulls(len(table), item.type))
            elif self.columns is not None and item.name in self.columns and columns is not None:
                kinds = (ColumnType.from_json(types[item.name]) for types in (columns, self.columns))
                arrays.append(cast_column(table[item.name], *kinds))
            else:
                arrays.append(table[item.name])
        self._writer.write_table(pa.table(arrays, schema=schema))
        sides = np.stack([table["height"].to_numpy(), table["width"].to_numpy()])
        self.shapes |= {self.spec.latent_shape(int(h), int(w)) for h, w in np.unique(sides, axis=1).T}
        self.shards.append(shard)
        self.wids.append(
            {"url": f"../{shard.name}", "md5sum": md5, "nsamples": shard.num_samples, "filesize": shard.num_bytes}
        )

    def close(self) -> str:
        """End the index; return its SHA-256."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        with self.index.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def latent_shape(self) -> tuple[int, int, int] | None:
        """(C, h, w) of all latents; None if shapes differ."""
        return next(iter(self.shapes)) if len(self.shapes) == 1 else None


def md5_of_shards(store: Store, split: str, root: str) -> dict[str, str]:
    """Return the MD5 of shards by name, as far as the file for wids has them."""
    try:
        value = json.loads(store.read_bytes(f"{root}index/{split}.wids.json", max_bytes=2**28))
        return {f"{root}{str(entry['url']).removeprefix('../')}": str(entry["md5sum"]) for entry in value["shardlist"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def write_failures(store: Store, manifest: Manifest, split: str, target: Path, *, change: Change) -> int:
    """Append a split's failures to a file, with their new positions; return their number."""
    path = f"{manifest.splits[split].root}failures/{split}.jsonl"
    number = 0
    with local_file(store, path) as file, target.open("a", encoding="utf-8") as lines:
        for line in failure_lines(file, context=store.location(path)):
            index = line["source_index"] + change.offset
            moved = line | {"source_index": index} | ({"key": sample_key(index)} if change.new_keys else {})
            lines.write(json.dumps(moved, sort_keys=True) + "\n")
            number += 1
    return number
