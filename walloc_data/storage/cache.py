"""The cache of downloaded shards, shared by all workers, ranks and trainers of a machine.

    cache_folder/
      shards/{sha256}.tar                    a shard, named by its content, so data sets may share it
      shards/{sha256}.{bytes}.{who}.partial  a running download; its bytes count from the start
      locks/{sha256}.lock                    held while a shard is downloaded
      locks/room.lock                        held while old shards are evicted, and while a download gets its final name

A file under its final name is complete and its sha256 was checked, so it is read without a lock, also by other users
with read-only access. An open file stays readable after its eviction, so readers need no lock. On file systems without
locks between machines, a shard may be downloaded twice, and concurrent downloads may exceed the limit.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from walloc_data.errors import CorruptShardError, StorageError, WallocDataError
from walloc_data.files import check_regular, open_regular
from walloc_data.format import ShardRecord
from walloc_data.storage.lock import file_lock
from walloc_data.storage.shards import ShardFile
from walloc_data.storage.store import Store

__all__ = ["DEFAULT_MAX_CACHE_BYTES", "ShardCache", "cache_errors", "default_cache_folder"]

DEFAULT_MAX_CACHE_BYTES = 64 * 2**30  # ImageNet-1k at 256 px is about a tenth of it
DOWNLOADS_OF_A_CORRUPT_SHARD = 3

_FINISHED = re.compile(r"[0-9a-f]{64}\.tar")
_PARTIAL = re.compile(r"(?P<sha256>[0-9a-f]{64})\.(?P<num_bytes>\d+)\.(?:[0-9a-f]+\.)?partial")
_MORE_BYTES = 2**20  # downloaded of a shard beyond the length in its record, before it is refused
_ROOM_POLL_S = 0.05
_ABANDONED_AFTER_S = 3600.0  # age of partial files that are deleted, if locks do not tell


def default_cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/walloc_data``, or ``~/.cache/walloc_data``.

    Raises:
        StorageError: there is no home folder.

    Example:
        >>> import os
        >>> from walloc_data.storage import default_cache_folder
        >>> os.environ["XDG_CACHE_HOME"] = "/scratch/me"
        >>> default_cache_folder()
        PosixPath('/scratch/me/walloc_data')
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "walloc_data"
    except RuntimeError as error:
        raise StorageError(f"no home folder for the cache ({error}): set XDG_CACHE_HOME, or cache_folder") from error


@contextmanager
def cache_errors(folder: Path, *, what: str) -> Iterator[None]:
    """Context: turn errors of an unwritable or full cache folder into a StorageError with a remedy.

    Args:
        what: description of the file for messages.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.storage import cache_errors
        >>> with cache_errors(Path("cache"), what="the index"):
        ...     raise PermissionError(13, "Permission denied", "cache/index")
        Traceback (most recent call last):
        walloc_data.errors.StorageError: cache: cannot store the index (Permission denied: cache/index): set...
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, WallocDataError) and not _is_full(error):
            raise
        if _is_full(error):
            raise StorageError(
                f"{folder}: no space for {what} ({_free(folder)} bytes are free on the disk): free some space, set "
                "cache_folder to another disk, or lower max_cache_bytes"
            ) from error
        raise StorageError(
            f"{folder}: cannot store {what} ({error.strerror or error}: {error.filename or folder}): set "
            "cache_folder, or XDG_CACHE_HOME, to a writable folder"
        ) from error


class ShardCache:
    """Cache of shards of remote data sets on the local disk; the least recently used are evicted first.

    Args:
        folder: folder of the cache, created when needed; None: `default_cache_folder()`.
        max_bytes: limit of the shards in it, including running downloads. Evicted shards that are still open keep their
            disk space until they are closed.

    Example:
        >>> from walloc_data.storage import ShardCache, Store, read_manifest
        >>> store = Store("my-latents")
        >>> shard = read_manifest(store).splits["train"].shards[0]
        >>> len(ShardCache("cache", max_bytes=2**30).open(store, shard)) == shard.num_bytes
        True
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, max_bytes: int = DEFAULT_MAX_CACHE_BYTES
    ) -> None:
        if max_bytes < 1:
            raise StorageError(f"max_cache_bytes must be at least 1, not {max_bytes}")
        self.folder = Path(folder).expanduser() if folder is not None else default_cache_folder()
        self.max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"ShardCache({str(self.folder)!r}, max_bytes={self.max_bytes})"

    def path(self, record: ShardRecord) -> Path:
        """Return where a shard is in the cache, or will be once it is downloaded."""
        return self.folder / "shards" / f"{record.sha256}.tar"

    @property
    def _room(self) -> Path:
        return self.folder / "locks" / "room.lock"

    def open(self, store: Store, record: ShardRecord) -> ShardFile:
        """Open a shard for reading; download and check it first if it is not in the cache."""
        path = self.path(record)
        while True:
            try:
                shard = ShardFile(path, num_bytes=record.num_bytes, context=store.location(record.name))
            except FileNotFoundError:  # not downloaded yet, or just evicted
                if (fetched := self._fetch(store, record)) is not None:
                    return fetched
            except CorruptShardError:  # the file in the cache was changed
                with cache_errors(self.folder, what=f"another copy of {store.location(record.name)}"):
                    path.unlink(missing_ok=True)
            except PermissionError as error:
                raise StorageError(
                    f"{path}: owned by another user and not readable ({error.strerror}): set cache_folder, or "
                    "XDG_CACHE_HOME, to a folder of your own"
                ) from error
            except OSError as error:  # a folder, a pipe, a failing disk
                if isinstance(error, WallocDataError):
                    raise
                raise StorageError(f"{path}: {error.strerror or error}: remove it from the cache") from error
            else:
                with suppress(OSError):  # owned by another user
                    os.utime(path)  # marks it as used
                return shard

    def fetch(self, store: Store, record: ShardRecord) -> None:
        """Download a shard unless it is in the cache. If another process downloads it, wait for that.

        Also waits while the downloads of other processes leave no space for this one.

        Raises:
            CorruptShardError: three downloads did not match the manifest.
            StorageError: the store refused, or the shard does not fit into the cache.
        """
        self._fetch(store, record)

    def remove_damaged(self, record: ShardRecord) -> bool:
        """Remove a shard from the cache if it no longer matches its sha256, so that it is downloaded again.

        Returns:
            Whether it was removed.
        """
        path = self.path(record)
        with (
            cache_errors(self.folder, what=f"another copy of {record.name}"),
            file_lock(self.folder / "locks" / f"{record.sha256}.lock"),
        ):
            if not path.exists() or _problem(path, record) is None:
                return False
            path.unlink(missing_ok=True)
            return True

    def _fetch(self, store: Store, record: ShardRecord) -> ShardFile | None:
        """Download a shard and open it before it can be evicted. None if it was in the cache already."""
        path = self.path(record)
        if path.exists():  # without a lock, so that a read-only cache works, too
            return None
        context = store.location(record.name)
        if record.num_bytes > self.max_bytes:
            raise StorageError(
                f"{context}: {record.num_bytes} bytes do not fit a cache of max_cache_bytes={self.max_bytes}: raise it"
            )
        with cache_errors(self.folder, what=f"{context} ({record.num_bytes} bytes)"):
            for name in ("shards", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            with file_lock(self.folder / "locks" / f"{record.sha256}.lock"):
                if path.exists():
                    return None
                partial = path.with_name(f"{record.sha256}.{record.num_bytes}.{secrets.token_hex(4)}.partial")
                try:
                    self._make_room(record, partial)
                    self._download(store, record, partial)
                    shard = ShardFile(partial, num_bytes=record.num_bytes, context=context)
                    # Else one that makes room might see the shard under neither name, and exceed the limit.
                    with file_lock(self._room):
                        partial.replace(path)
                    return shard
                finally:
                    with suppress(OSError):
                        partial.unlink(missing_ok=True)

    def _download(self, store: Store, record: ShardRecord, partial: Path) -> None:
        for attempt in range(1, DOWNLOADS_OF_A_CORRUPT_SHARD + 1):
            store.download_into(record.name, partial, max_bytes=record.num_bytes + _MORE_BYTES)
            if (problem := _problem(partial, record)) is None:
                return
            if attempt == DOWNLOADS_OF_A_CORRUPT_SHARD:
                raise CorruptShardError(
                    f"{store.location(record.name)}: {problem}, {attempt} times. The shard was damaged or replaced "
                    "after its manifest was written: run `walloc-data verify` on the original data set"
                )

    def _make_room(self, record: ShardRecord, partial: Path) -> None:
        """Evict the least recently used shards until this one fits, and reserve its bytes by its partial file.

        Running downloads of other processes cannot be evicted: if they leave no space, wait until they are finished.
        """
        while True:
            with file_lock(self._room):
                reserved, finished = 0, []
                with os.scandir(self.folder / "shards") as found:
                    entries = list(found)
                for entry in entries:
                    if match := _PARTIAL.fullmatch(entry.name):
                        # Left by a killed process: this process holds the lock of that shard.
                        mine = match["sha256"] == record.sha256
                        reserved += self._reserved(Path(entry.path), match, mine=mine)
                    elif _FINISHED.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):  # ignore others
                        with suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            finished.append((status.st_mtime_ns, status.st_size, entry.path))
                if reserved + record.num_bytes <= self.max_bytes:
                    used = reserved + sum(num_bytes for _, num_bytes, _ in finished)
                    for _, num_bytes, path in sorted(finished):
                        if used + record.num_bytes <= self.max_bytes:
                            break
                        # Owned by another user, or, on Windows, open in another process: it stays and counts.
                        with suppress(PermissionError):
                            Path(path).unlink(missing_ok=True)
                            used -= num_bytes
                    partial.touch()  # reserves its bytes
                    return
            time.sleep(_ROOM_POLL_S)

    def _reserved(self, partial: Path, match: re.Match[str], *, mine: bool) -> int:
        """Return the bytes reserved by a partial file; if its writer has died, remove it and return 0."""
        num_bytes, lock = int(match["num_bytes"]), self.folder / "locks" / f"{match['sha256']}.lock"
        with nullcontext() if mine else file_lock(lock, wait=False) as held:
            if held is None and not mine:
                return num_bytes
            with suppress(OSError):
                if held is not None and not held.beside and time.time() - partial.stat().st_mtime < _ABANDONED_AFTER_S:
                    return num_bytes  # its writer may be on another machine
                partial.unlink(missing_ok=True)
            return 0


def _problem(path: Path, record: ShardRecord) -> str | None:
    """Return the problem with a downloaded shard, or None."""
    num_bytes = check_regular(path)
    if num_bytes != record.num_bytes:
        return f"{num_bytes} bytes were received, but the manifest says {record.num_bytes}"
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == record.sha256 else f"its sha256 is {digest}, but the manifest says {record.sha256}"


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
