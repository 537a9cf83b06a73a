"""Locks that live beside what they protect and die with their holder.

`flock` where the system has it: the kernel frees the lock when its last holder ends, however it ends. Elsewhere
(Windows) the `filelock` package, with the same promise. Some file systems have no locks at all (Lustre mounted without
them, some NFS and FUSE mounts): there the lock is a file in this machine's temporary folder, named after the path. It
holds for the processes of one user on this machine, not for other machines.
"""

import errno
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walloc_data.errors import StorageError

__all__ = ["Lock", "file_lock", "machine_folder", "take_lock"]

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
_told: set[str] = set()  # folders whose file system has no locks: said once


@dataclass
class Lock:
    """A lock that is held until `release`.

    Attributes:
        descriptor: what processes inherit that hold it too; None where descriptors are not what holds it (Windows).
        beside: whether the lock file lies where it was asked for, so that it holds for all who see the folder; False
            where it lies in this machine's temporary folder.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.storage import take_lock
        >>> lock = take_lock(Path("my.lock"))
        >>> lock.beside, take_lock(Path("my.lock"), wait=False)
        (True, None)
        >>> lock.release()
    """

    descriptor: int | None
    beside: bool
    _other: Any = None

    def release(self) -> None:
        """Give the lock back, also where a process that was forked meanwhile has a copy of the descriptor."""
        if self.descriptor is None:
            if self._other is not None:
                self._other.release()
            return
        import fcntl

        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        finally:
            os.close(self.descriptor)


def machine_folder() -> Path:
    """A folder of this user in this machine's temporary folder, which nobody else can enter.

    Raises:
        StorageError: it cannot be made, or somebody else made it.

    Example:
        >>> from walloc_data.storage import machine_folder
        >>> machine_folder().is_dir()
        True
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"  # Windows: the temporary folder is the user's already
    folder = Path(tempfile.gettempdir()) / f"walloc_data-{user}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be made ({error.strerror}): set TMPDIR to a folder on a local disk"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
        raise StorageError(f"{folder}: belongs to somebody else: remove it, or set TMPDIR to a folder of yours")
    return folder


def take_lock(path: Path, *, shared: bool = False, wait: bool = True) -> Lock | None:
    """Take the lock of a file, which is made if absent; None where another holds it and `wait` is False.

    Threads of one process exclude each other too, because each call opens the file anew.

    Args:
        path: the lock file. It is left behind: removing it would let two processes hold two different files.
        shared: several may hold it at once, but not beside one who holds it alone. Without `fcntl` such a lock is not
            held at all.

    Raises:
        OSError: the file cannot be opened.
        StorageError: neither its file system nor that of the temporary folder has locks.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.storage import take_lock
        >>> lock = take_lock(Path("my.lock"), shared=True)
        >>> lock.release()
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return Lock(None, beside=True) if shared else _take_elsewhere(path, wait=wait)
    try:
        return _flock(path, shared=shared, wait=wait, beside=True)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    folder = machine_folder() / "locks"
    folder.mkdir(exist_ok=True)
    if str(path.parent) not in _told:
        _told.add(str(path.parent))
        logging.getLogger(__name__).warning(
            "%s: this file system has no file locks; they are kept in %s and do not hold against other machines",
            path.parent,
            folder,
        )
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    try:
        return _flock(folder / name, shared=shared, wait=wait, beside=False)
    except OSError as error:
        raise StorageError(
            f"{path}: this file system has no file locks, and neither has {folder} ({error.strerror}): set TMPDIR to a "
            "folder on a local disk"
        ) from error


def _flock(path: Path, *, shared: bool, wait: bool, beside: bool) -> Lock | None:
    import fcntl

    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return Lock(descriptor, beside)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Another user's lock file: it need not be written to be locked.
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            pass
        raise


def _take_elsewhere(path: Path, *, wait: bool) -> Lock | None:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        return None
    return Lock(None, beside=True, _other=lock)


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a file, which is made if absent; yields whether the lock was taken.

    The lock is free again when its holder ends, however it ends, so a killed process blocks nobody.

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
    lock = take_lock(path, wait=wait)
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
