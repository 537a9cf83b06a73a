"""Listing and deletion of the contents of a cache folder."""

import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from walloc_data.errors import StorageError
from walloc_data.storage.cache import cache_errors, default_cache_folder

__all__ = ["CacheContents", "cache_contents", "clear_cache"]

# Only files with these names are deleted, in case another folder is given.
_OURS = {
    "shards": re.compile(r"[0-9a-f]{64}\.tar"),  # running downloads are left alone
    "arrays": re.compile(r"[0-9a-f]{32}(-mirror)?"),
    "index": re.compile(r"[0-9a-f]{32}\.(npy|arrow)"),
}


@dataclass(frozen=True)
class CacheContents:
    """Number and size of one kind of files in a cache folder.

    Attributes:
        kind: "shards" (downloaded), "arrays" (decoded latents) or "index" (tables and columns).
        num_items: number of shards, arrays or tables.
        num_bytes: bytes on disk.

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
    with suppress(FileNotFoundError):  # deleted by another process
        for path in item.iterdir() if item.is_dir() else [item]:
            with suppress(FileNotFoundError):
                num_bytes += path.lstat().st_size
    return num_bytes


def cache_contents(folder: str | os.PathLike[str] | None = None) -> list[CacheContents]:
    """Return the contents of a cache folder; None: `default_cache_folder()`.

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
    """Delete files of some kinds from a cache folder, and return what was deleted.

    Only files with names of the cache are deleted. A running process can still read the files that it has open, and
    downloads others again. Stop processes that use ``cache="array"`` first.

    Args:
        folder: folder of the cache; None: `default_cache_folder()`.
        kinds: "shards", "arrays", "index", or several of them.

    Raises:
        StorageError: a kind is unknown, or a file cannot be deleted.

    Example:
        >>> from walloc_data.storage import clear_cache
        >>> sum(found.num_bytes for found in clear_cache("cache", kinds=["shards"]))
        0
    """
    if unknown := sorted(set(kinds) - set(_OURS)):
        raise StorageError(f"a cache has no {', '.join(unknown)}: its kinds are {', '.join(_OURS)}")
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
