"""Locks that live beside what they protect and die with their holder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["file_lock"]


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a file, which is made if absent; yields whether the lock was taken.

    The kernel frees the lock when its holder ends, however it ends, so a killed process blocks nobody (flock(2)).
    Threads of one process exclude each other too, because each call opens the file anew.

    Args:
        path: the lock file. It is left behind: removing it would let two processes hold two different files.
        wait: False yields False at once where another holds the lock.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.storage import file_lock
        >>> with file_lock(Path("my.lock")) as taken, file_lock(Path("my.lock"), wait=False) as taken_again:
        ...     print(taken, taken_again)
        True False
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            # Closing alone would not do: a process forked meanwhile has the descriptor too, and with it the lock.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
