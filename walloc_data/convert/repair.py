"""Which finished shards need to be made again: their files, records or rows are not what they were."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from walloc_data.convert.inspect import local_file
from walloc_data.convert.plan import ShardId
from walloc_data.convert.progress import ProgressMeter
from walloc_data.convert.records import ShardDone, rows_name
from walloc_data.convert.state import (
    done_marks,
    finished_shards,
    finished_units,
    planned_splits,
    read_manifest,
    read_plan,
)
from walloc_data.errors import FormatError, StorageError
from walloc_data.format import MANIFEST_NAME
from walloc_data.storage import Store

__all__ = ["damaged_shards", "drop_broken_manifest", "join_complete_splits", "shards_with_failures"]


def drop_broken_manifest(store: Store) -> None:
    """Delete a manifest that cannot be read: everything in it is made anew from the records of the shards."""
    try:
        read_manifest(store)
    except FormatError:
        store.delete(MANIFEST_NAME)


def join_complete_splits(store: Store) -> None:
    """Put every split that has all of its shards into the manifest, if it is not there."""
    from walloc_data.convert.finish import join_split

    manifest = read_manifest(store)
    for split in planned_splits(store):
        plan = read_plan(store, split)
        if (manifest is not None and split in manifest.splits) or plan is None or plan.is_old_stream:
            continue
        if finished_units(store, split, finished_shards(store, split)) >= set(range(plan.num_units)):
            join_split(store, split)


def shards_with_failures(store: Store, split: str) -> set[ShardId]:
    """The finished shards with pictures that could not be encoded."""
    shards = sorted(finished_shards(store, split))
    return {shard for shard, done in zip(shards, done_marks(store, split, shards), strict=True) if done.failures}


def damaged_shards(store: Store, split: str, shards: Iterable[ShardId], *, meter: ProgressMeter) -> dict[ShardId, str]:
    """Check every byte of finished shards, and that their records and rows of the index can be read.

    Args:
        shards: those that have a record.
        meter: told of every sample checked.

    Returns:
        What is wrong with each damaged shard.
    """
    damaged: dict[ShardId, str] = {}
    num_done = 0
    for shard in shards:
        try:
            [done] = done_marks(store, split, [shard])
            num_done += done.num_samples
            if problem := _problem(store, split, shard, done):
                damaged[shard] = problem
        except (FormatError, StorageError) as error:
            damaged[shard] = str(error)
        meter.tick(num_done=num_done, num_failures=0)
    return damaged


def _problem(store: Store, split: str, shard: ShardId, done: ShardDone) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet

    if done.shard is None:
        return None
    with local_file(store, done.shard.name) as file:
        if (num_bytes := file.stat().st_size) != done.shard.num_bytes:
            return f"{store.where(done.shard.name)}: {num_bytes} bytes, but its record says {done.shard.num_bytes}"
        if _sha256(file) != done.shard.sha256:
            return f"{store.where(done.shard.name)}: its SHA-256 is not its record's"
    path = rows_name(split, shard)
    try:
        num_rows = pa.parquet.read_table(pa.BufferReader(store.read_bytes(path, max_bytes=2**31))).num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"{store.where(path)}: not the rows of an index ({error})"
    if num_rows != done.shard.num_samples:
        return f"{store.where(path)}: {num_rows} rows for {done.shard.num_samples} samples"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
