"""A folder of whole shards, shared by every worker, rank and trainer of a machine.

    cache_folder/
      shards/{sha256}.tar                  a fetched shard, named by its content, so data sets may share it
      shards/{sha256}.{bytes}.partial      being fetched; its bytes count against the limit from the start
      locks/{sha256}.lock                  held while a shard is fetched
      locks/room.lock                      held while old shards make room

A file under its final name is complete and matched its sha256 when it was put there. Shards are read through memory
maps, which stay valid when the file is evicted, so eviction never asks who reads.
"""

import errno
import hashlib
import mmap
import os
import re
import shutil
from pathlib import Path

from walloc_data.errors import CorruptShardError, StorageError
from walloc_data.format import ShardRecord
from walloc_data.storage.lock import file_lock
from walloc_data.storage.store import Store

__all__ = ["DEFAULT_MAX_CACHE_BYTES", "ShardCache", "default_cache_folder", "map_file"]

DEFAULT_MAX_CACHE_BYTES = 64 * 2**30  # ImageNet-1k at 256 px is about a tenth of it
DOWNLOADS_OF_A_CORRUPT_SHARD = 3

_PARTIAL = re.compile(r"[0-9a-f]{64}\.\d+\.partial")


def default_cache_folder() -> Path:
    """``$XDG_CACHE_HOME/walloc_data``, or ``~/.cache/walloc_data``.

    Example:
        >>> import os
        >>> from walloc_data.storage import default_cache_folder
        >>> os.environ["XDG_CACHE_HOME"] = "/scratch/me"
        >>> default_cache_folder()
        PosixPath('/scratch/me/walloc_data')
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "walloc_data"


def map_file(path: Path, *, num_bytes: int, where: str) -> memoryview:
    """Map a file for reading; its length must be what its record says, so that no stored offset points outside.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.storage import map_file
        >>> path = Path("my-latents/data/train-00000.tar")
        >>> shard = map_file(path, num_bytes=path.stat().st_size, where=str(path))
        >>> bytes(shard[257:262])  # what makes it a tar
        b'ustar'
    """
    with path.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != num_bytes:
            raise CorruptShardError(
                f"{where}: {found} bytes; its record says {num_bytes}. Was it changed or cut short?"
            )
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class ShardCache:
    """Shards of remote data sets on local disk, the longest unused evicted first.

    Args:
        folder: where; None is `default_cache_folder()`. Made when first needed.
        max_bytes: what the shards in it may occupy, unfinished ones included. Shards that are still mapped keep their
            disk space until their reader closes them.

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
        """Where a shard lies, if it is here."""
        return self.folder / "shards" / f"{record.sha256}.tar"

    def open(self, store: Store, record: ShardRecord) -> memoryview:
        """The bytes of a shard, memory-mapped; fetched and checked first if they are not here."""
        path = self.path(record)
        while True:
            try:
                view = map_file(path, num_bytes=record.num_bytes, where=store.where(record.name))
                os.utime(path)  # used now
                return view
            except FileNotFoundError:  # not fetched yet, or evicted a moment ago
                self.fetch(store, record)
            except CorruptShardError:  # somebody touched the cache: what is there is not what was put there
                path.unlink(missing_ok=True)

    def fetch(self, store: Store, record: ShardRecord) -> None:
        """Bring a shard here unless it is; whoever comes second waits for the first.

        Raises:
            CorruptShardError: what arrived is not what the manifest promised, three times.
            StorageError: the store refused, or the shard does not fit here.
        """
        for name in ("shards", "locks"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        path = self.path(record)
        with file_lock(self.folder / "locks" / f"{record.sha256}.lock"):
            if path.exists():
                return
            partial = path.with_name(f"{record.sha256}.{record.num_bytes}.partial")
            partial.unlink(missing_ok=True)  # left by one that was killed: we hold its lock now
            try:
                self._make_room(record, partial, where=store.where(record.name))
                for attempt in range(1, DOWNLOADS_OF_A_CORRUPT_SHARD + 1):
                    store.download_into(record.name, partial)
                    if (problem := _problem(partial, record)) is None:
                        break
                    if attempt == DOWNLOADS_OF_A_CORRUPT_SHARD:
                        raise CorruptShardError(
                            f"{store.where(record.name)}: {problem}, {attempt} times. The shard was damaged or "
                            "replaced after its manifest was written: verify the data set at its source"
                        )
                partial.replace(path)
            except OSError as error:
                if _is_full(error):
                    free = shutil.disk_usage(self.folder).free
                    raise StorageError(
                        f"{self.folder}: no room for {store.where(record.name)} ({record.num_bytes} bytes, {free} free "
                        "on the disk): free some space, set cache_folder to another disk, or lower max_cache_bytes"
                    ) from error
                raise
            finally:
                partial.unlink(missing_ok=True)

    def _make_room(self, record: ShardRecord, partial: Path, *, where: str) -> None:
        if record.num_bytes > self.max_bytes:
            raise StorageError(
                f"{where}: {record.num_bytes} bytes do not fit a cache of max_cache_bytes={self.max_bytes}: raise it"
            )
        with file_lock(self.folder / "locks" / "room.lock"):
            used, finished = 0, []
            for entry in os.scandir(self.folder / "shards"):
                if _PARTIAL.fullmatch(entry.name):
                    used += self._reserved(entry.name)
                else:
                    status = entry.stat()
                    finished.append((status.st_mtime_ns, status.st_size, entry.path))
                    used += status.st_size
            for _, num_bytes, path in sorted(finished):
                if used + record.num_bytes <= self.max_bytes:
                    break
                Path(path).unlink(missing_ok=True)
                used -= num_bytes
            partial.touch()  # from now on its bytes are spoken for

    def _reserved(self, name: str) -> int:
        """Bytes that an unfinished file will take; one whose writer is gone takes none and is removed."""
        sha256, num_bytes, _suffix = name.split(".")
        with file_lock(self.folder / "locks" / f"{sha256}.lock", wait=False) as abandoned:
            if abandoned:
                (self.folder / "shards" / name).unlink(missing_ok=True)
                return 0
        return int(num_bytes)


def _problem(path: Path, record: ShardRecord) -> str | None:
    """What is wrong with a downloaded shard, or None."""
    num_bytes = path.stat().st_size
    if num_bytes != record.num_bytes:
        return f"{num_bytes} bytes arrived where the manifest says {record.num_bytes}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == record.sha256 else f"sha256 {digest} where the manifest says {record.sha256}"


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False
