"""Assembly of a split from shards of others, which are kept, copied, or rewritten with other keys and labels."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walloc_data.convert.edit import delete_tree
from walloc_data.convert.inspect import local_file, open_manifest
from walloc_data.convert.journal import plan_name, read_plan
from walloc_data.convert.lock import conversion_lock, disk_errors
from walloc_data.convert.overwrite import recover
from walloc_data.format import Manifest, ShardRecord, SplitRecord, dump_json, index_name, shard_name
from walloc_data.maintain.index import SplitFiles, joined_columns, md5_of_shards, tables_of, write_failures
from walloc_data.maintain.shards import Change, check_shard, rewrite_shard
from walloc_data.storage import Store

__all__ = ["Built", "Part", "append_root", "build_split", "discard_append", "locked_dataset"]

Keep = Callable[[Mapping[str, Any]], bool]
_UNIT = re.compile(r"-([0-9]{5,12})(?:-[0-9]{3,12})?\.tar$")


@dataclass(frozen=True)
class Part:
    """Split that becomes part of another."""

    store: Store
    manifest: Manifest
    split: str
    change: Change

    @property
    def record(self) -> SplitRecord:
        """Record of the split."""
        return self.manifest.splits[self.split]


@dataclass
class Built:
    """New files of a split, published below `root`, and its record without `source` and `statistics`."""

    shards: tuple[ShardRecord, ...]
    made: set[str]  # names of shards below `root`
    latent_shape: tuple[int, int, int] | None
    index_sha256: str
    columns: Mapping[str, Any] | None
    num_failures: int


@contextmanager
def locked_dataset(store: Store) -> Iterator[Manifest]:
    """Context: lock a finished data set for writing, complete interrupted changes, and yield its manifest.

    Raises:
        BusyError: a conversion is writing there.
        FormatError: there is no finished data set.
    """
    open_manifest(store)  # before anything is written, such as a lock
    with disk_errors(store), conversion_lock(store):
        recover(store)
        manifest = open_manifest(store)
        _clean_appends(store, manifest)
        yield manifest


def append_root(split: str) -> str:
    """Return the folder, inside the data set, in which appended pictures are encoded; ends in '/'."""
    return f".walloc/{split}.append/"


def discard_append(store: Store, split: str) -> None:
    """Delete the files of an append, the plan first, so that it cannot be resumed half deleted."""
    store.delete(append_root(split) + plan_name(split))
    delete_tree(store, append_root(split))


def _clean_appends(store: Store, manifest: Manifest) -> None:
    """Delete the files of an interrupted append whose pictures are in the split already."""
    for name in store.list_folders(".walloc"):
        split, _, kind = name.partition(".")
        if kind != "append":
            continue
        inner = store.inside(append_root(split))
        plan = read_plan(inner, split)
        record = manifest.splits.get(split)
        sources = [] if record is None else record.source.get("parts", [record.source])
        if plan is None or record is None or plan.source.get("identity") in [s.get("identity") for s in sources]:
            discard_append(store, split)


def build_split(
    target: Store,
    split: str,
    parts: Sequence[Part],
    *,
    root: str,
    folder: Path,
    touched: Callable[[ShardRecord, Any], Keep | None] = lambda shard, table: None,
    dropped: Callable[[bytes], None] = lambda webp: None,
) -> Built:
    """Publish the shards, the index and the failures of a split below `root` of its data set.

    Unchanged shards of the data set stay in place and are not read.

    Args:
        target: the data set.
        split: name of the new split.
        parts: its parts, in order; `Part.change` gives the positions of samples in the source.
        root: "" or a folder that ends in '/'.
        folder: folder for unfinished files.
        touched: function of a shard and its rows, a `pyarrow.Table`, that returns a function of a row telling whether
            its sample is kept; None keeps all.
        dropped: receives the packed latent of each removed sample.

    Raises:
        CorruptShardError: a shard that must be read is damaged.
    """
    context = f"{target.url}: split {split!r}"
    columns = parts[0].record.columns
    for part in parts[1:]:
        columns = joined_columns(columns, part.record.columns, context=context)
    manifest = parts[0].manifest
    files = SplitFiles(folder, manifest.settings.mirror, columns, manifest.codec)
    units = [int(match[1]) for shard in parts[0].record.shards if (match := _UNIT.search(shard.name))]
    unit = max(units, default=-1) + 1
    made: set[str] = set()
    num_failures = 0
    failures = folder / "failures.jsonl"
    failures.touch()
    for part in parts:
        known = md5_of_shards(part.store, part.split, part.record.root)
        trivial = part.change == Change()
        for shard, table in tables_of(part.store, part.manifest, part.split):
            keep = touched(shard, table)
            name = shard.name.removeprefix(part.record.root)
            if part.change.new_keys:
                name, unit = shard_name(split, unit), unit + 1
            if trivial and keep is None and part.store.url == target.url and shard.name in known:
                files.add(shard, known[shard.name], table, part.record.columns, {})
                continue
            with local_file(part.store, shard.name) as file:
                place = part.store.location(shard.name)
                md5 = check_shard(file, shard, context=place)
                unfinished = folder / "shard.tar"
                if trivial and keep is None:
                    if part.store.url == target.url:
                        files.add(shard, md5, table, part.record.columns, {})
                        continue
                    shutil.copyfile(file, unfinished)
                    new = ShardRecord(name, shard.num_samples, shard.num_bytes, shard.sha256)
                    changes: dict[str, list[Any]] = {}
                else:
                    rows = table.to_pylist()
                    kept = keep if keep is not None else (lambda row: True)
                    found = rewrite_shard(
                        file,
                        rows,
                        unfinished,
                        name=name,
                        context=place,
                        change=part.change,
                        keep=kept,
                        dropped=dropped,
                    )
                    if found is None:
                        continue
                    new, md5, changes = found.record, found.md5, found.changes
                    table = table.filter([bool(kept(row)) for row in rows])
            target.publish(unfinished, root + new.name)
            made.add(new.name)
            files.add(new, md5, table, part.record.columns, changes)
        num_failures += write_failures(part.store, part.manifest, part.split, failures, change=part.change)
    index_sha256 = files.close()
    target.publish(files.index, root + index_name(split))
    target.publish(failures, f"{root}failures/{split}.jsonl")
    wids = {"wids_version": 1, "name": split, "shardlist": files.wids}
    target.write_bytes(f"{root}index/{split}.wids.json", dump_json(wids).encode())
    return Built(tuple(files.shards), made, files.latent_shape, index_sha256, columns, num_failures)
