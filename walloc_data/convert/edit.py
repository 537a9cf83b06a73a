"""Atomic changes of a finished split, which keep unchanged shards in place.

1. New and rewritten shards, the index and the failures are written into ``.walloc/{split}.edit/``.
2. The manifest is replaced by one that refers to the new files in that folder and to the unchanged shards. This single
   write is the change: readers see the old split before it and the new one after it.
3. The new files get their usual names, files that are no longer part of the split are deleted, and a last manifest
   refers to the usual names.
4. The folder is removed.

If the process is killed before step 2, the split is unchanged, and the next command that writes to the data set deletes
the folder. If it is killed later, the next command completes the change (`recover_edits`). A split is removed by one
write of the manifest, too; until its files are deleted, ``.walloc/{split}.gone/`` marks it.

The plan of a changed split no longer describes it, so the plan and the records of its shards are deleted: the split
cannot be resumed or repaired from its source any more.
"""

import re
import shutil
from collections.abc import Collection
from dataclasses import replace

from walloc_data.card import PREVIEW_NAME, write_card
from walloc_data.convert.join import timm_info
from walloc_data.convert.journal import plan_name, read_manifest, work_folder
from walloc_data.errors import FormatError
from walloc_data.format import Manifest, SplitRecord, dump_json, index_name
from walloc_data.storage import Store, write_manifest

__all__ = [
    "change_split",
    "delete_tree",
    "drop_split",
    "edit_root",
    "is_shard_of",
    "publish_manifest",
    "recover_edits",
]

_GONE = ".gone/marker"


def edit_root(split: str) -> str:
    """Return the folder, inside the data set, for the changed files of a split; ends in '/'."""
    return f".walloc/{split}.edit/"


def change_split(
    store: Store, split: str, record: SplitRecord, made: Collection[str], *, class_names: tuple[str, ...] | None
) -> None:
    """Publish the complete changed files of a split: steps 2 to 4. The caller holds the lock.

    Args:
        record: record of the changed split, with the usual names of its shards.
        made: names of the shards in `edit_root`, at least one.
        class_names: class names of the data set after the change.
    """
    manifest = read_manifest(store)
    if manifest is None or not made:
        raise FormatError(f"{store.url}: no manifest, or no changed shards")
    root = edit_root(split)
    shards = tuple(replace(s, name=root + s.name) if s.name in made else s for s in record.shards)
    splits = {**manifest.splits, split: replace(record, shards=shards)}
    changed = replace(manifest, splits=splits, class_names=class_names)
    write_manifest(store, changed)
    recover_edits(store)


def drop_split(store: Store, split: str) -> None:
    """Remove a split that is not the only one. The caller holds the lock."""
    manifest = read_manifest(store)
    if manifest is None or manifest.splits.keys() <= {split}:
        raise FormatError(f"{store.url}: {split!r} is the only split: delete the data set instead")
    manifest.split(split, context=store.url)
    store.write_bytes(f".walloc/{split}{_GONE}", b"1")
    others = {name: record for name, record in manifest.splits.items() if name != split}
    write_manifest(store, replace(manifest, splits=others))
    recover_edits(store)


def recover_edits(store: Store) -> None:
    """Complete or discard an interrupted change. The caller holds the lock."""
    manifest = read_manifest(store)
    for split, record in sorted(manifest.splits.items()) if manifest is not None else ():
        if manifest is not None and record.root == edit_root(split):
            manifest = _move_in(store, split, manifest)
    for name in store.list_folders(".walloc"):
        split, _, kind = name.partition(".")  # no split's name has a dot
        if kind == "edit":
            delete_tree(store, edit_root(split))
        elif kind == "gone" and manifest is not None:
            if split not in manifest.splits:
                _delete_split(store, split, manifest)
            delete_tree(store, f".walloc/{split}.gone/")


def _move_in(store: Store, split: str, manifest: Manifest) -> Manifest:
    """Do steps 3 and 4. The manifest does not refer to any file that is deleted or replaced here."""
    record, root = manifest.splits[split], edit_root(split)
    for shard in record.shards:
        if shard.name.startswith(root):
            store.copy(shard.name, shard.name.removeprefix(root))
    for path in _side_files(split):
        store.copy(root + path, path)
    _delete_work(store, split)
    shards = tuple(replace(shard, name=shard.name.removeprefix(root)) for shard in record.shards)
    kept = {shard.name for shard in shards}
    for path in store.list("data"):
        if is_shard_of(split, path) and path not in kept:
            store.delete(path)
    settled = replace(manifest, splits={**manifest.splits, split: replace(record, shards=shards)})
    publish_manifest(store, settled)
    delete_tree(store, root)
    return settled


def publish_manifest(store: Store, manifest: Manifest) -> None:
    """Write the file for timm, the card, and then the manifest."""
    store.write_bytes("_info.json", dump_json(timm_info(manifest)).encode())
    store.delete(PREVIEW_NAME)  # it may show removed pictures
    write_card(store, manifest)
    write_manifest(store, manifest)


def is_shard_of(split: str, path: str) -> bool:
    """Return whether a path in the data set is the usual name of a shard of a split."""
    return re.fullmatch(rf"data/{split}-[0-9]{{5,12}}(-[0-9]{{3,12}})?\.tar", path) is not None


def _side_files(split: str) -> tuple[str, ...]:
    return index_name(split), f"index/{split}.wids.json", f"failures/{split}.jsonl"


def _delete_split(store: Store, split: str, manifest: Manifest) -> None:
    _delete_work(store, split)
    for path in store.list("data"):
        if is_shard_of(split, path):
            store.delete(path)
    for path in _side_files(split):
        store.delete(path)
    publish_manifest(store, manifest)


def _delete_work(store: Store, split: str) -> None:
    """Delete a split's plan, then its records; without a plan, the records are ignored."""
    store.delete(plan_name(split))
    for path in store.list(work_folder(split)):
        store.delete(path)
    if store.local_path is not None:
        shutil.rmtree(store.local_path / work_folder(split), ignore_errors=True)


def delete_tree(store: Store, root: str) -> None:
    """Delete a folder of the data set and its contents; `root` ends in '/'."""
    folder = root.rstrip("/")
    for path in store.list(folder):
        store.delete(path)
    for name in store.list_folders(folder):
        delete_tree(store, f"{root}{name}/")
    if store.local_path is not None:
        shutil.rmtree(store.local_path / folder, ignore_errors=True)
