"""Memory maps of shards, and how many of them a process may hold open.

Python's `mmap` keeps a file descriptor for as long as its map lives (until 3.13, where it need not), and a process may
have 1024 of them by default: a data set of more shards than that cannot have all of them mapped at once.
"""

import errno
import mmap
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from walloc_data.errors import CorruptShardError, StorageError

__all__ = ["ShardMaps", "map_file", "max_open_maps"]

_MOST = 4096  # maps cost address space, not memory; the kernel allows 65530 of a process
_FEWEST = 4

_all: "weakref.WeakSet[ShardMaps]" = weakref.WeakSet()
_clock = count()
_locks: dict[int, threading.Lock] = {}  # by process: a lock that another thread held does not come through a fork free


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
    options: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    with path.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != num_bytes:
            raise CorruptShardError(
                f"{where}: {found} bytes; its record says {num_bytes}. Was it changed or cut short?"
            )
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ, **options))


def max_open_maps() -> int:
    """Return how many maps to hold open: half of the descriptors it may have (``ulimit -n``), 4096 at most.

    Example:
        >>> from walloc_data.storage import max_open_maps
        >>> 4 <= max_open_maps() <= 4096
        True
    """
    if sys.version_info >= (3, 13):  # no descriptor stays open
        return _MOST
    try:
        import resource
    except ImportError:  # Windows, where a map is no descriptor
        return _MOST
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(_FEWEST, min(_MOST, soft // 2))


class ShardMaps:
    """Open maps by shard number; the longest unused is closed where there are too many.

    All `ShardMaps` of a process share `max_open_maps`. A map that is dropped here is closed when the last slice of it
    is gone.

    Args:
        most: open maps of this one; None is as many as the process may have.

    Example:
        >>> from walloc_data.storage import ShardMaps
        >>> maps = ShardMaps(most=2)
        >>> for number in (0, 1, 2):
        ...     view = maps.get(number, lambda: memoryview(b"a shard"))
        >>> bytes(view), len(maps)
        (b'a shard', 2)
    """

    def __init__(self, *, most: int | None = None) -> None:
        self.most = most
        self._open: OrderedDict[int, tuple[int, memoryview]] = OrderedDict()  # (last used, map)
        _all.add(self)

    def __reduce__(self) -> tuple[Callable[[int | None], "ShardMaps"], tuple[int | None]]:
        return _again, (self.most,)  # maps stay in their process

    def __len__(self) -> int:
        return len(self._open)

    def get(self, number: int, open_shard: Callable[[], memoryview]) -> memoryview:
        """The map of a shard, made by `open_shard` if it is not open.

        Raises:
            StorageError: the process has no descriptors left, and closing ours made none free.
        """
        with _lock():
            if number in self._open:
                _, view = self._open.pop(number)
                self._open[number] = next(_clock), view
                return view
        try:
            view = open_shard()
        except OSError as error:
            if not _out_of_descriptors(error):
                raise
            _close_to(0)  # others in this process took more than their half
            view = self._open_at_last(open_shard)
        with _lock():
            self._open[number] = next(_clock), view
            if self.most is not None:
                while len(self._open) > self.most:
                    self._open.popitem(last=False)
        _close_to(max_open_maps())
        return view

    def drop(self, number: int) -> None:
        """Close the map of a shard, if it is open: the next `get` opens it anew."""
        with _lock():
            self._open.pop(number, None)

    @staticmethod
    def _open_at_last(open_shard: Callable[[], memoryview]) -> memoryview:
        try:
            return open_shard()
        except OSError as error:
            if not _out_of_descriptors(error):
                raise
            raise StorageError(
                f"this process has too many open files to open a shard ({error}): raise the limit with `ulimit -n`"
            ) from error


def _again(most: int | None) -> ShardMaps:
    return ShardMaps(most=most)


def _lock() -> threading.Lock:
    return _locks.setdefault(os.getpid(), threading.Lock())


def _close_to(limit: int) -> None:
    """Close the longest unused maps of this process until so many are open."""
    with _lock():
        held = [maps._open for maps in list(_all) if maps._open]
        for _ in range(sum(map(len, held)) - limit):
            oldest = min((maps for maps in held if maps), key=lambda maps: next(iter(maps.values()))[0])
            oldest.popitem(last=False)


def _out_of_descriptors(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__
    return False
