"""Listing and removal of what is in a cache folder."""

import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from walloc_data.storage.cache import cache_errors, default_cache_folder

__all__ = ["CacheContents", "cache_contents", "clear_cache"]

# Names of ours: nothing else is removed, whatever folder is named.
_OURS = {
    "shards": re.compile(r"[0-9a-f]{64}\.tar"),  # not what is being fetched
    "arrays": re.compile(r"[0-9a-f]{32}(-mirror)?"),
    "index": re.compile(r"[0-9a-f]{32}\.(npy|arrow)"),
}


@dataclass(frozen=True)
class CacheContents:
    """Number and size of one kind of files in a cache folder.

    Attributes:
        kind: "shards", fetched; "arrays", of decoded latents; "index", tables and columns.
        num_items: shards, arrays, or tables.
        num_bytes: on disk.

    Example:
        >>> from walloc_data.storage import cache_contents
        >>> cache_contents("nowhere")[0]
        CacheContents(kind='shards', num_items=0, num_bytes=0)
    """

    kind: str
    num_items: int
    num_bytes: int


def _items(folder: Path, kind: str) -> list[Path]:
    try:
        with os.scandir(folder / kind) as entries:
            found = [entry for entry in entries if _OURS[kind].fullmatch(entry.name) and not entry.is_symlink()]
            return sorted(Path(entry.path) for entry in found if entry.is_dir() == (kind == "arrays"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size(item: Path) -> int:
    """Return the bytes on disk of a file, or of the files in a folder."""
    num_bytes = 0
    for path in item.iterdir() if item.is_dir() else [item]:
        with suppress(FileNotFoundError):  # evicted a moment ago
            num_bytes += path.lstat().st_size
    return num_bytes


def cache_contents(folder: str | os.PathLike[str] | None = None) -> list[CacheContents]:
    """Return what is in a cache folder; None is `default_cache_folder()`.

    Example:
        >>> from walloc_data.storage import cache_contents
        >>> [found.kind for found in cache_contents("cache")]
        ['shards', 'arrays', 'index']
    """
    root = default_cache_folder() if folder is None else Path(folder).expanduser()
    found = []
    for kind in _OURS:
        with cache_errors(root, what=kind):
            items = _items(root, kind)
            found.append(CacheContents(kind, len(items), sum(map(_size, items))))
    return found


def clear_cache(
    folder: str | os.PathLike[str] | None = None, *, kinds: Collection[str] = ("shards", "arrays", "index")
) -> list[CacheContents]:
    """Remove what a cache folder holds of some kinds, and return what that was.

    Only files of the names that the cache gives are removed. Those that a running process has open stay readable for
    it; it fetches others anew. Arrays that are being filled should be left alone: stop what reads them first.

    Example:
        >>> from walloc_data.storage import clear_cache
        >>> sum(found.num_bytes for found in clear_cache("cache", kinds=["shards"]))
        0
    """
    root = default_cache_folder() if folder is None else Path(folder).expanduser()
    removed = []
    for kind in _OURS:
        if kind not in kinds:
            continue
        num_items = num_bytes = 0
        with cache_errors(root, what=kind):
            for item in _items(root, kind):
                size = _size(item)
                if item.is_dir():
                    shutil.rmtree(item)
                else:
                    item.unlink(missing_ok=True)
                num_items, num_bytes = num_items + 1, num_bytes + size
        removed.append(CacheContents(kind, num_items, num_bytes))
    return removed
