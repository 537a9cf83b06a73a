"""Open shards, and a limit on their number per process.

Shards are read with pread, not memory-mapped: if a mapped file is truncated, or the disk fails, the process is killed
(SIGBUS), whereas a read raises an error. Processes may have 1024 open files by default, which larger data sets exceed.
"""

import errno
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from pathlib import Path

from walloc_data.errors import CorruptShardError, StorageError
from walloc_data.files import open_regular

__all__ = ["OpenShards", "ShardFile", "max_open_shards"]

_MOST = 4096
_FEWEST = 4

_all: "weakref.WeakSet[OpenShards]" = weakref.WeakSet()
_clock = count()
_locks: dict[int, threading.Lock] = {}  # by process: a lock held by another thread stays locked after a fork


class ShardFile:
    """Open shard for reading at any offset, which threads may share. It is closed when it is garbage collected.

    Args:
        path: path of a regular file.
        num_bytes: required length, from the record of the shard, so that stored offsets are inside.
        context: text that begins error messages.

    Raises:
        CorruptShardError: the length differs.
        OSError: the file cannot be opened, or is not a regular file.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.storage import ShardFile
        >>> path = Path("my-latents/data/train-00000.tar")
        >>> shard = ShardFile(path, num_bytes=path.stat().st_size, context=str(path))
        >>> shard.read(257, 5)  # what makes it a tar
        b'ustar'
    """

    def __init__(self, path: Path, *, num_bytes: int, context: str) -> None:
        self.location, self._num_bytes = context, num_bytes
        self._file = open_regular(path).detach()
        self._turn = None if hasattr(os, "pread") else threading.Lock()  # Windows has no pread
        found = os.fstat(self._file.fileno()).st_size
        if found != num_bytes:
            self._file.close()
            raise CorruptShardError(
                f"{context}: {found} bytes, but its record says {num_bytes}: it was changed or truncated"
            )

    def __len__(self) -> int:
        return self._num_bytes

    def __del__(self) -> None:
        if file := getattr(self, "_file", None):
            file.close()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length) of the shard.

        Raises:
            CorruptShardError: the file was truncated after it was opened.
            StorageError: the disk failed.
        """
        try:
            data = self._at(offset, length)
            while len(data) < length and (more := self._at(offset + len(data), length - len(data))):
                data += more
        except OSError as error:
            raise StorageError(f"{self.location}: cannot be read ({error.strerror or error})") from error
        if len(data) != length:
            raise CorruptShardError(
                f"{self.location}: ends before byte {offset + length}, but its record says {self._num_bytes} bytes: it "
                "was truncated after it was opened"
            )
        return data

    def _at(self, offset: int, length: int) -> bytes:
        if self._turn is None:
            return os.pread(self._file.fileno(), length, offset)
        with self._turn:
            self._file.seek(offset)
            return self._file.read(length) or b""


def max_open_shards() -> int:
    """Return the limit of open shards: half of the process's limit of open files (``ulimit -n``), at most 4096.

    Example:
        >>> from walloc_data.storage import max_open_shards
        >>> 4 <= max_open_shards() <= 4096
        True
    """
    try:
        import resource
    except ImportError:  # Windows, where the C library allows 512
        return 256
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(_FEWEST, min(_MOST, soft // 2))


class OpenShards:
    """Pool of open shards by number; the least recently used is closed if there are too many.

    All `OpenShards` of a process share `max_open_shards`. A dropped shard is closed when no reader holds it any more.

    Args:
        most: limit of this pool; None: that of the process.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.storage import OpenShards, ShardFile
        >>> path = Path("my-latents/data/train-00000.tar")
        >>> shards = OpenShards(most=2)
        >>> for number in (0, 1, 2):
        ...     shard = shards.get(number, lambda: ShardFile(path, num_bytes=path.stat().st_size, context=str(path)))
        >>> len(shards)
        2
    """

    def __init__(self, *, most: int | None = None) -> None:
        self.most = most
        self._open: OrderedDict[int, tuple[int, ShardFile]] = OrderedDict()  # (last used, shard)
        with _lock():  # `_close_to` iterates over it in other threads
            _all.add(self)

    def __reduce__(self) -> tuple[Callable[[int | None], "OpenShards"], tuple[int | None]]:
        return _again, (self.most,)  # open files cannot be pickled

    def __len__(self) -> int:
        return len(self._open)

    def get(self, number: int, open_shard: Callable[[], ShardFile]) -> ShardFile:
        """Return a shard, opened by `open_shard` if it is not open.

        Raises:
            StorageError: the process has no file descriptors left, even after closing shards.
        """
        with _lock():
            if number in self._open:
                _, shard = self._open.pop(number)
                self._open[number] = next(_clock), shard
                return shard
        try:
            shard = open_shard()
        except OSError as error:
            if not _out_of_descriptors(error):
                raise
            _close_to(0)  # other code of this process uses more than half of the limit
            shard = self._open_at_last(open_shard)
        with _lock():
            self._open[number] = next(_clock), shard
            if self.most is not None:
                while len(self._open) > self.most:
                    self._open.popitem(last=False)
        _close_to(max_open_shards())
        return shard

    def drop(self, number: int) -> None:
        """Close a shard if it is open; the next `get` opens it again."""
        with _lock():
            self._open.pop(number, None)

    @staticmethod
    def _open_at_last(open_shard: Callable[[], ShardFile]) -> ShardFile:
        try:
            return open_shard()
        except OSError as error:
            if not _out_of_descriptors(error):
                raise
            raise StorageError(
                f"this process has too many open files to open a shard ({error}): raise the limit with `ulimit -n`"
            ) from error


def _again(most: int | None) -> OpenShards:
    return OpenShards(most=most)


def _lock() -> threading.Lock:
    return _locks.setdefault(os.getpid(), threading.Lock())


def _close_to(limit: int) -> None:
    """Close the least recently used shards of this process down to a number."""
    with _lock():
        held = [shards._open for shards in list(_all) if shards._open]
        for _ in range(sum(map(len, held)) - limit):
            oldest = min((opened for opened in held if opened), key=lambda opened: next(iter(opened.values()))[0])
            oldest.popitem(last=False)


def _out_of_descriptors(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__
    return False
