"""Cache files that end with their own SHA-256, so that damaged ones are detected and written again."""

import hashlib
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from walloc_data.errors import FormatError
from walloc_data.files import atomic_file, open_regular
from walloc_data.storage import cache_errors, file_lock

__all__ = ["DIGEST_BYTES", "Mapped", "checksummed_file"]

DIGEST_BYTES = hashlib.sha256().digest_size


class Mapped:
    """Memory-mapped file whose length is checked before each read: reading beyond its end kills the process (SIGBUS).

    Args:
        mapped: the memory map; None for an array without elements, which has none.
        path: path of the file, for errors.
    """

    def __init__(self, mapped: mmap.mmap | None, path: Path) -> None:
        self._mapped, self._path = mapped, path
        self._num_bytes = 0 if mapped is None else len(mapped)

    def check(self) -> None:
        """Check that the file is not shorter than when it was mapped.

        Raises:
            FormatError: the file was truncated.
        """
        if self._mapped is not None and self._mapped.size() < self._num_bytes:
            raise FormatError(f"{self._path}: truncated while it was in use: open the data set again")


def checksummed_file(path: Path, write: Callable[[BinaryIO], None], *, what: str, max_bytes: int) -> Path:
    """Return the path of an intact file; it is written first if it is missing or damaged.

    Args:
        path: path in the cache folder.
        write: function that writes the open file and leaves it at its end.
        what: description of the content, for errors of the disk.
        max_bytes: a longer file is damaged, and is not read to find that out.
    """
    with cache_errors(path.parent, what=what):
        if not _is_whole(path, max_bytes):  # an existing file may belong to another user: read it without a lock
            path.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(path.with_suffix(".lock")):
                if not _is_whole(path, max_bytes):  # not written by another process meanwhile
                    _write(path, write)
    return path


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    with atomic_file(path) as partial, partial.open("w+b") as file:
        write(file)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(digest)


def _is_whole(path: Path, max_bytes: int) -> bool:
    """Return whether a file exists and matches its checksum."""
    try:
        with open_regular(path) as file:
            left = os.fstat(file.fileno()).st_size - DIGEST_BYTES
            if not 0 < left <= max_bytes:
                return False
            digest = hashlib.sha256()
            while left > 0 and (data := file.read(min(left, 2**20))):
                digest.update(data)
                left -= len(data)
            return left == 0 and file.read() == digest.digest()
    except FileNotFoundError:
        return False
