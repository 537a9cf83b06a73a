"""Atomic replacement of a split: the new one is made in a separate folder and published when it is complete.

Object stores cannot rename, so the split is kept readable by the order of writes:

1. The new split is made in ``.walloc/{split}.new/``, which is a data set of its own. The old one is unchanged.
   (With retried failures: in ``.walloc/{split}.retry/``, which starts with the shards without failures.)
2. The manifest is replaced by one that refers to the new shards and the new index in that folder. This single write is
   the change: readers see the old split before it and the new one after it.
3. The new files get their usual names (by hard links, or copies within the store), old files without a successor are
   deleted, and a last manifest refers to the usual names.
4. The folder is removed.

If the process is killed before step 2, the old split is unchanged, and the same command resumes the new one. If it is
killed later, the next conversion or `finish` completes the replacement. Two limits remain: a reader that opened the old
split before step 2 may find shards missing or changed, which it detects by their checksums; and if the only split is
overwritten with another codec, the folder ``codec/`` is the old codec between steps 2 and 3, which decoders detect.
"""

import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Literal

from walloc_data.convert.edit import is_shard_of, recover_edits
from walloc_data.convert.join import clean_partial_files, join_split
from walloc_data.convert.journal import (
    done_name,
    end_name,
    finished_shards,
    finished_units,
    plan_name,
    planned_splits,
    read_manifest,
    rows_name,
    work_folder,
)
from walloc_data.convert.plan import ShardId
from walloc_data.errors import ConversionError
from walloc_data.format import MANIFEST_NAME, Manifest, shard_name
from walloc_data.storage import Store, write_manifest

__all__ = [
    "Kind",
    "copy_kept_shards",
    "discard",
    "is_begun",
    "is_only_split",
    "publish_replacement",
    "recover",
    "refuse_interrupted",
    "replaced_splits",
    "replacement",
]

Kind = Literal["new", "retry"]  # all shards are new; or shards of the old split without failures are kept


def _root(split: str, kind: Kind) -> str:
    return f".walloc/{split}.{kind}/"  # names of splits have no dots


def replacement(store: Store, split: str, *, kind: Kind = "new") -> Store:
    """Return the folder of a split's replacement, as a store."""
    return store.inside(_root(split, kind))


def replaced_splits(store: Store) -> list[tuple[str, Kind]]:
    """Return the splits that have a replacement, complete or not, and its kind."""
    parts = [name.partition(".") for name in store.list_folders(".walloc")]
    kinds: tuple[Kind, ...] = ("new", "retry")
    return [(split, kind) for split, _, end in parts for kind in kinds if end == kind]


def copy_kept_shards(store: Store, split: str, shards: Collection[ShardId], *, kind: Kind) -> None:
    """Copy finished shards of the old split into its replacement, unless it has them already."""
    inside = replacement(store, split, kind=kind)
    there = finished_shards(inside, split)
    names = {name for folder in ("data", work_folder(split)) for name in store.list(folder)}
    for shard in shards:
        for name in (shard_name(split, *shard), rows_name(split, shard), done_name(split, shard)):  # the mark last
            if shard not in there and name in names:
                store.copy(name, _root(split, kind) + name)
    for unit in finished_units(store, split, shards):
        if (name := end_name(split, unit)) in names and not inside.exists(name):
            store.copy(name, _root(split, kind) + name)


def is_begun(store: Store, split: str) -> bool:
    """Return whether a split exists, finished or not."""
    manifest = read_manifest(store)
    return store.exists(plan_name(split)) or (manifest is not None and split in manifest.splits)


def is_only_split(store: Store, split: str) -> bool:
    """Return whether there is no other split, finished or not, so that codec and settings may change."""
    manifest = read_manifest(store)
    return not ({*planned_splits(store), *(manifest.splits if manifest else ())} - {split})


def publish_replacement(store: Store, split: str, *, kind: Kind) -> None:
    """Publish the complete replacement of a split: steps 2 to 4. The caller holds the lock."""
    manifest, new = read_manifest(store), read_manifest(replacement(store, split, kind=kind))
    root = _root(split, kind)
    if new is None:
        raise ConversionError(f"{store.location(root)}: not finished")
    record = new.splits[split]
    record = replace(record, shards=tuple(replace(shard, name=root + shard.name) for shard in record.shards))
    splits = {**(manifest.splits if manifest else {}), split: record}
    names = new.class_names if new.class_names is not None or manifest is None else manifest.class_names
    changed = replace(new, splits=splits, class_names=names)
    write_manifest(store, changed)
    recover(store)


def recover(store: Store) -> None:
    """Complete an interrupted replacement or change. The caller holds the lock, which no other writer shares."""
    manifest = read_manifest(store)
    for split, record in manifest.splits.items() if manifest else ():
        kind: Kind
        for kind in ("new", "retry"):
            if record.root == _root(split, kind):
                _move_in(store, split, kind)
    for split, kind in replaced_splits(store):
        if _is_done_with(store, split, kind):
            discard(store, split, kind=kind)
    recover_edits(store)
    clean_partial_files(store)  # of a step 3 that was killed while it made a link


def _is_done_with(store: Store, split: str, kind: Kind) -> bool:
    """Return whether the folder of a replacement is left from an interrupted removal."""
    inside = replacement(store, split, kind=kind)
    if not inside.exists(plan_name(split)):
        return True
    new, manifest = read_manifest(inside), read_manifest(store)
    return new is not None and manifest is not None and manifest.splits.get(split) == new.splits.get(split)


def refuse_interrupted(store: Store, split: str, manifest: Manifest | None) -> None:
    """Raise an error if a replacement was interrupted: a part must not complete it."""
    if manifest is not None and split in manifest.splits and manifest.splits[split].root:
        raise ConversionError(
            f"{store.url}: overwriting split {split!r} was interrupted before its files were moved to their final "
            "places: run `walloc-data finish` first"
        )


def _move_in(store: Store, split: str, kind: Kind) -> None:
    """Do steps 3 and 4. The manifest does not refer to any file that is deleted or replaced here."""
    inside, root = replacement(store, split, kind=kind), _root(split, kind)
    for folder in ("data", work_folder(split)):
        new = inside.list(folder)
        for path in new:
            store.copy(root + path, path)
        for path in store.list(folder):
            if path not in new and (folder != "data" or is_shard_of(split, path)):
                store.delete(path)
    if is_only_split(store, split):
        new = inside.list("codec")
        for path in sorted(new, key=lambda path: path.endswith("codec.json")):  # last: it marks the folder as complete
            store.copy(root + path, path)
        for path in store.list("codec"):
            if path not in new:
                store.delete(path)
    join_split(store, split)
    discard(store, split, kind=kind)


def discard(store: Store, split: str, *, kind: Kind) -> None:
    """Delete the replacement of a split, its plan first, so that it cannot be resumed half deleted."""
    inside = replacement(store, split, kind=kind)
    for path in (plan_name(split), MANIFEST_NAME, *_files(inside, split)):
        inside.delete(path)
    if inside.local_path is not None:
        shutil.rmtree(inside.local_path, ignore_errors=True)


def _files(inside: Store, split: str) -> Iterator[str]:
    yield from ("README.md", "_info.json")
    for folder in ("data", "index", "failures", "codec", work_folder(split)):
        yield from inside.list(folder)
