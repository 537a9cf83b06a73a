"""Deleting a split, in an order in which an interruption leaves something that can be resumed or deleted again."""

import shutil
from dataclasses import replace
from pathlib import Path

from walloc_data.convert.records import plan_name, work_folder
from walloc_data.convert.state import read_manifest
from walloc_data.format import MANIFEST_NAME, index_name
from walloc_data.storage import Store

__all__ = ["clean_leftovers", "remove_split"]


def clean_leftovers(store: Store, split: str) -> None:
    """Delete the unfinished files of killed runs. The caller holds the lock, so nobody is writing them."""
    if store.local_path is None:
        return  # an object store shows whole objects only
    for folder in ("", "data", "index", "failures", "codec", work_folder(split)):
        for path in (store.local_path / folder).glob(".*.partial"):
            path.unlink(missing_ok=True)
    _remove_tree(store.local_path / ".walloc" / "staging", keep=f"{split}-1-of-1")


def _remove_tree(folder: Path, *, keep: str) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name != keep:
                shutil.rmtree(path, ignore_errors=True)


def remove_split(store: Store, split: str) -> None:
    """Delete one split: first from the manifest, so that no reader finds half of it; last its plan."""
    manifest = read_manifest(store)
    splits = {name: record for name, record in manifest.splits.items() if name != split} if manifest else {}
    if manifest is not None and split in manifest.splits:
        if splits:
            store.write_bytes(MANIFEST_NAME, replace(manifest, splits=splits).to_json().encode())
        else:
            store.delete(MANIFEST_NAME)
    if not splits:
        store.delete("_info.json")  # README.md may hold what a person wrote
    for name in (index_name(split), f"index/{split}.wids.json", f"failures/{split}.jsonl"):
        store.delete(name)
    # Files before their marks: a mark without its file is work to do, a file without its mark is replaced.
    for path in store.list("data"):
        stem = path.rpartition("/")[2].removesuffix(".tar")
        if stem.rpartition("-")[0] == split and stem.rpartition("-")[2].isdigit():
            store.delete(path)
    plan = plan_name(split)
    for path in store.list(work_folder(split)):
        if path != plan:
            store.delete(path)
    if not splits and not any(store.exists(plan_name(name)) for name in store.list_folders(".walloc") if name != split):
        for path in sorted(store.list("codec")):
            store.delete(path)
    store.delete(plan)
