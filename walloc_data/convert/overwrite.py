"""Replacing a split: the new one grows in a folder of its own, and takes the old one's place once it is whole.

The order of writes is what keeps a split readable, on disks and on object stores alike, where nothing can be renamed:

1. The new split is made in ``.walloc/{split}.new/``, which is a data set of its own. The old one is not touched.
   (Failed pictures are done again in ``.walloc/{split}.retry/``, which begins with the shards that have none.)
2. The manifest is replaced by one that names the new shards and the new index where they lie. This is one write, and it
   is the change: before it readers see the old split, after it the new one, each whole.
3. The new files get their usual names (hard links, or copies that the store makes), old ones without a successor are
   deleted, and a last manifest names the usual places.
4. The folder is removed.

Killed before step 2, the old split is as it was, and the same command goes on with the new one. Killed after it, the
new split is whole, and the next conversion or `finish` does the rest. What remains: a reader that had opened the old
split before step 2 finds shards missing or changed after it, which their checksums tell it; and where the only split
is overwritten with another codec, the folder ``codec/`` is the old codec's from step 2 until step 3 has copied the new
one, which whoever decodes is told.
"""

import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Literal

from walloc_data.convert.edit import recover_edits
from walloc_data.convert.join import join_split
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
    "discard",
    "is_begun",
    "is_only_split",
    "recover",
    "refuse_halfway",
    "replaced_splits",
    "replacement",
    "take_along",
    "take_over",
]

Kind = Literal["new", "retry"]  # made from its first shard; or with the shards of the old one that have no failures


def _root(split: str, kind: Kind) -> str:
    return f".walloc/{split}.{kind}/"  # no split's name has a dot


def replacement(store: Store, split: str, *, kind: Kind = "new") -> Store:
    """Return the folder in which a split's replacement grows, as a store."""
    return store.inside(_root(split, kind))


def replaced_splits(store: Store) -> list[tuple[str, Kind]]:
    """Return splits of which a replacement is there, whole or not, and the replacement's kind."""
    parts = [name.partition(".") for name in store.list_folders(".walloc")]
    kinds: tuple[Kind, ...] = ("new", "retry")
    return [(split, kind) for split, _, end in parts for kind in kinds if end == kind]


def take_along(store: Store, split: str, shards: Collection[ShardId], *, kind: Kind) -> None:
    """Give a replacement finished shards of the split that it is to replace, those that it does not have yet."""
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
    """Return whether there is anything of a split, finished or not."""
    manifest = read_manifest(store)
    return store.exists(plan_name(split)) or (manifest is not None and split in manifest.splits)


def is_only_split(store: Store, split: str) -> bool:
    """Return whether no other split is there, finished or not: then codec and settings may change with this one."""
    manifest = read_manifest(store)
    return not ({*planned_splits(store), *(manifest.splits if manifest else ())} - {split})


def take_over(store: Store, split: str, *, kind: Kind) -> None:
    """Put a split's replacement, which is whole, into its place: steps 2 to 4. The caller holds the lock."""
    manifest, new = read_manifest(store), read_manifest(replacement(store, split, kind=kind))
    root = _root(split, kind)
    if new is None:
        raise ConversionError(f"{store.location(root)}: not finished")
    record = new.splits[split]
    record = replace(record, shards=tuple(replace(shard, name=root + shard.name) for shard in record.shards))
    splits = {**(manifest.splits if manifest else {}), split: record}
    names = new.class_names if new.class_names is not None or manifest is None else manifest.class_names
    changed = replace(new, splits=dict(sorted(splits.items())), class_names=names)
    write_manifest(store, changed)
    recover(store)


def recover(store: Store) -> None:
    """Complete what an interrupted replacement left to do. The caller holds the lock."""
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


def _is_done_with(store: Store, split: str, kind: Kind) -> bool:
    """Return whether a replacement's folder is what an interrupted removal left of it."""
    inside = replacement(store, split, kind=kind)
    if not inside.exists(plan_name(split)):
        return True
    new, manifest = read_manifest(inside), read_manifest(store)
    return new is not None and manifest is not None and manifest.splits.get(split) == new.splits.get(split)


def refuse_halfway(store: Store, split: str, manifest: Manifest | None) -> None:
    """Refuse to run a part beside an interrupted replacement, which no part may complete."""
    if manifest is not None and split in manifest.splits and manifest.splits[split].root:
        raise ConversionError(
            f"{store.url}: the files of split {split!r} are not in their places yet, as overwriting it was interrupted "
            "at its end: run `walloc-data finish` first"
        )


def _move_in(store: Store, split: str, kind: Kind) -> None:
    """Do steps 3 and 4. Nothing that is deleted or replaced here is named by the manifest."""
    inside, root = replacement(store, split, kind=kind), _root(split, kind)
    for folder in ("data", work_folder(split)):
        new = inside.list(folder)
        for path in new:
            store.copy(root + path, path)
        for path in store.list(folder):
            if path not in new and (folder != "data" or _is_shard_of(split, path)):
                store.delete(path)
    if is_only_split(store, split):
        new = inside.list("codec")
        for path in sorted(new, key=lambda path: path.endswith("codec.json")):  # the one that says the rest is there
            store.copy(root + path, path)
        for path in store.list("codec"):
            if path not in new:
                store.delete(path)
    join_split(store, split)
    discard(store, split, kind=kind)


def _is_shard_of(split: str, path: str) -> bool:
    return re.fullmatch(rf"data/{split}-[0-9]{{5,12}}(-[0-9]{{3,12}})?\.tar", path) is not None


def discard(store: Store, split: str, *, kind: Kind) -> None:
    """Delete a split's replacement, its plan first: without one nothing goes on with it."""
    inside = replacement(store, split, kind=kind)
    for path in (plan_name(split), MANIFEST_NAME, *_files(inside, split)):
        inside.delete(path)
    if inside.local_path is not None:
        shutil.rmtree(inside.local_path, ignore_errors=True)


def _files(inside: Store, split: str) -> Iterator[str]:
    yield from ("README.md", "_info.json")
    for folder in ("data", "index", "failures", "codec", work_folder(split)):
        yield from inside.list(folder)
