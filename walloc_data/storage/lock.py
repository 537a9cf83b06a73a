"""File locks next to the protected files, by the package `filelock` (`flock`), released when their holder ends.

Some file systems have no locks (Lustre mounted without them, some NFS and FUSE mounts). There the lock is a file in
this machine's temporary folder, named after the path; it excludes only processes of the same user on this machine.
"""

import errno
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from walloc_data.errors import StorageError
from walloc_data.text import printable

__all__ = ["HeldLock", "file_lock", "lock_path", "machine_folder"]

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
_told: set[str] = set()  # folders without locks, for which the warning was shown


@dataclass(frozen=True)
class HeldLock:
    """Held lock.

    Attributes:
        beside: whether the lock file is at the requested path, so that it holds for all processes that see the folder;
            False if it is in this machine's temporary folder.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.storage import file_lock
        >>> with file_lock(Path("my.lock")) as held:
        ...     held
        HeldLock(beside=True)
    """

    beside: bool


def machine_folder() -> Path:
    """Return a private folder of this user in the machine's temporary folder.

    Raises:
        StorageError: it cannot be created, or belongs to another user.

    Example:
        >>> from walloc_data.storage import machine_folder
        >>> machine_folder().is_dir()
        True
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"  # Windows has a temporary folder per user
    folder = Path(tempfile.gettempdir()) / f"walloc_data-{user}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be created ({error.strerror}): set TMPDIR to a folder on a local disk"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
        raise StorageError(f"{folder}: belongs to another user: remove it, or set TMPDIR to a folder of your own")
    return folder


def lock_path(path: Path) -> tuple[Path, bool]:
    """Return the file to lock, created if absent: `path`, or a file on a file system that has locks.

    Returns:
        The file, and whether it is `path`.

    Raises:
        OSError: the file cannot be created or opened.
        StorageError: neither its file system nor that of the temporary folder has locks.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.storage import lock_path
        >>> lock_path(Path("my.lock"))
        (PosixPath('my.lock'), True)
    """
    if _refusal(path) is None:
        return path, True
    folder = machine_folder() / "locks"
    folder.mkdir(exist_ok=True)
    if str(path.parent) not in _told:
        _told.add(str(path.parent))
        logging.getLogger(__name__).warning(
            "%s: this file system has no file locks; locks are in %s and do not exclude other machines",
            printable(str(path.parent)),
            folder,
        )
    elsewhere = folder / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    if (refusal := _refusal(elsewhere)) is not None:
        raise StorageError(
            f"{path}: neither this file system nor that of {folder} has file locks ({refusal}): set TMPDIR to a "
            "folder on a local disk"
        )
    return elsewhere, False


def _refusal(path: Path) -> str | None:
    """Return the reason why a file, created if absent, cannot be locked; None if it can."""
    try:
        import fcntl
    except ImportError:
        return None  # Windows has locks everywhere
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer would be waited for
    try:
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        descriptor = os.open(path, flags)  # another user's in a folder like /tmp, where O_CREAT fails
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "a pipe, a device or a folder, not a lock file: remove it", os.fspath(path))
        # All users of a shared cache may lock the file; nothing is ever written into it.
        if found.st_uid == os.geteuid() and found.st_mode & 0o666 != 0o666:
            os.fchmod(descriptor, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # only a test: fails on file systems without locks
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return error.strerror
    finally:
        os.close(descriptor)
    return None


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[HeldLock | None]:
    """Context: hold an exclusive lock on a file, which is created if absent; yield None if it was not acquired.

    The lock is released when its holder ends in any way. Threads of one process exclude each other, too.

    Args:
        path: lock file. It is not deleted afterwards, because two processes could then lock two different files.
        wait: False yields None at once if another process holds the lock.

    Raises:
        OSError: the file cannot be created or opened.
        StorageError: neither its file system nor that of the temporary folder has locks.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.storage import file_lock
        >>> with file_lock(Path("my.lock")) as held, file_lock(Path("my.lock"), wait=False) as held_again:
        ...     print(held, held_again)
        HeldLock(beside=True) None
    """
    from filelock import FileLock, Timeout

    place, beside = lock_path(path)
    lock = FileLock(place)
    held: HeldLock | None = None
    with suppress(Timeout):
        lock.acquire(blocking=wait)
        held = HeldLock(beside)
    try:
        yield held
    finally:
        if held is not None:
            lock.release()
