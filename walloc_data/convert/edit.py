"""Changing a finished split: what stays of it is not touched, the rest grows beside it, one write changes over.

1. The shards that are new or made anew, the index and the failures are written into ``.walloc/{split}.edit/``.
2. The manifest is replaced by one that names the new shards and the index where they lie, and the shards that stay
   where they are. This is one write, and it is the change: before it readers see the old split, after it the new one.
3. The new files get their usual names, files of the split that are no part of it any more are deleted, and a last
   manifest names the usual places.
4. The folder is removed.

Killed before step 2, the split is as it was, and the folder is deleted by whatever writes to the data set next. Killed
after it, the same does the rest (`recover_edits`). A whole split is removed by one write of the manifest, too: an empty
folder ``.walloc/{split}.gone/`` says, until all is done, that its files must follow.

What a split was encoded from is then no longer what its plan says, so that the plan and the records of its shards go:
such a split is not resumed or repaired from its source any more.
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

__all__ = ["change_split", "delete_tree", "drop_split", "edit_root", "publish_manifest", "recover_edits"]

_GONE = ".gone/marker"


def edit_root(split: str) -> str:
    """Return the folder in which the changed files of a split are made, inside the data set; ends in '/'."""
    return f".walloc/{split}.edit/"


def change_split(
    store: Store, split: str, record: SplitRecord, made: Collection[str], *, class_names: tuple[str, ...] | None
) -> None:
    """Let a split's changed files, which are whole, take their places: steps 2 to 4. The caller holds the lock.

    Args:
        record: of the changed split, with the usual names of its shards.
        made: names of the shards that lie in `edit_root`, at least one.
        class_names: of the whole data set from now on.
    """
    manifest = read_manifest(store)
    if manifest is None or not made:
        raise FormatError(f"{store.url}: no manifest, or nothing was made")
    root = edit_root(split)
    shards = tuple(replace(s, name=root + s.name) if s.name in made else s for s in record.shards)
    splits = {**manifest.splits, split: replace(record, shards=shards)}
    changed = replace(manifest, splits=dict(sorted(splits.items())), class_names=class_names)
    write_manifest(store, changed)
    recover_edits(store)


def drop_split(store: Store, split: str) -> None:
    """Remove a split that is not the only one. The caller holds the lock."""
    manifest = read_manifest(store)
    if manifest is None or manifest.splits.keys() <= {split}:
        raise FormatError(f"{store.url}: {split!r} is its only split: delete the whole data set instead")
    manifest.split(split, context=store.url)
    store.write_bytes(f".walloc/{split}{_GONE}", b"1")
    others = {name: record for name, record in manifest.splits.items() if name != split}
    write_manifest(store, replace(manifest, splits=others))
    recover_edits(store)


def recover_edits(store: Store) -> None:
    """Complete what an interrupted change left to do, or to delete. The caller holds the lock."""
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
    """Do steps 3 and 4. Nothing that is deleted or replaced here is named by the manifest."""
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
        if _is_shard_of(split, path) and path not in kept:
            store.delete(path)
    settled = replace(manifest, splits={**manifest.splits, split: replace(record, shards=shards)})
    publish_manifest(store, settled)
    delete_tree(store, root)
    return settled


def publish_manifest(store: Store, manifest: Manifest) -> None:
    """Write the manifest, after what follows from it: the file for timm and the card."""
    store.write_bytes("_info.json", dump_json(timm_info(manifest)).encode())
    store.delete(PREVIEW_NAME)  # it may show pictures that are gone
    write_card(store, manifest)
    write_manifest(store, manifest)


def _is_shard_of(split: str, path: str) -> bool:
    return re.fullmatch(rf"data/{split}-[0-9]{{5,12}}(-[0-9]{{3,12}})?\.tar", path) is not None


def _side_files(split: str) -> tuple[str, ...]:
    return index_name(split), f"index/{split}.wids.json", f"failures/{split}.jsonl"


def _delete_split(store: Store, split: str, manifest: Manifest) -> None:
    _delete_work(store, split)
    for path in store.list("data"):
        if _is_shard_of(split, path):
            store.delete(path)
    for path in _side_files(split):
        store.delete(path)
    publish_manifest(store, manifest)


def _delete_work(store: Store, split: str) -> None:
    """Delete a split's plan, without which nothing goes on with the rest, and its records."""
    store.delete(plan_name(split))
    for path in store.list(work_folder(split)):
        store.delete(path)
    if store.local_path is not None:
        shutil.rmtree(store.local_path / work_folder(split), ignore_errors=True)


def delete_tree(store: Store, root: str) -> None:
    """Delete a folder of the data set with all that is in it; `root` ends in '/'."""
    folder = root.rstrip("/")
    for path in store.list(folder):
        store.delete(path)
    for name in store.list_folders(folder):
        delete_tree(store, f"{root}{name}/")
    if store.local_path is not None:
        shutil.rmtree(store.local_path / folder, ignore_errors=True)
