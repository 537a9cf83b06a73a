"""Safe reading and atomic writing of files.

Writing: a file is written under a temporary name in the same folder, then renamed, so that it is complete or absent.
Reading: only regular files, and at most a given number of bytes: a pipe could block, and /dev/zero never ends.

Files made by `tempfile.mkstemp` (and by safetensors) are readable by their owner only. Files written here have the
mode that the process's umask gives to new files.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

__all__ = [
    "allocate",
    "atomic_file",
    "check_regular",
    "open_regular",
    "read_all",
    "read_regular",
    "real_path",
    "sync_file",
    "sync_folder",
]

_KINDS = (
    (stat.S_ISDIR, errno.EISDIR, "a folder"),
    (stat.S_ISFIFO, errno.EINVAL, "a named pipe"),
    (stat.S_ISSOCK, errno.EINVAL, "a socket"),
    (stat.S_ISCHR, errno.EINVAL, "a device"),
    (stat.S_ISBLK, errno.EINVAL, "a device"),
)


def open_regular(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> BufferedReader:
    """Open a regular file for reading; links are followed.

    Args:
        path: path of the file.
        max_bytes: largest accepted length; None: any length.

    Raises:
        OSError: the file cannot be opened, is a folder, pipe, socket or device, or is longer than `max_bytes`;
            `strerror` has the reason, `filename` is `path`.

    Example:
        >>> from walloc_data.files import open_regular
        >>> with open_regular("my-latents/walloc.json", max_bytes=2**20) as file:
        ...     file.read(1)
        b'{'
        >>> open_regular("my-latents/data")
        Traceback (most recent call last):
        IsADirectoryError: [Errno 21] a folder, not a file: 'my-latents/data'
    """
    # O_NONBLOCK: opening a pipe without a writer must not block. It has no effect on regular files.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        if os.path.isdir(path):  # noqa: PTH112  # Windows does not open folders
            raise OSError(errno.EISDIR, "a folder, not a file", os.fspath(path)) from None
        raise
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, a device without a driver
            raise OSError(errno.EINVAL, "a socket or a device, not a file", os.fspath(path)) from error
        raise
    try:
        _check(os.fstat(descriptor), path, max_bytes)
        return open(descriptor, "rb")  # noqa: PTH123
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> int:
    """Return the length in bytes of a file that another library will open; raise the same errors as `open_regular`.

    Example:
        >>> from walloc_data.files import check_regular
        >>> check_regular("my-latents/data/train-00000.tar", max_bytes=100)
        Traceback (most recent call last):
        OSError: [Errno 27] ... bytes; at most 100 are read: 'my-latents/data/train-00000.tar'
    """
    found = os.stat(path)  # noqa: PTH116
    _check(found, path, max_bytes)
    return found.st_size


def read_regular(path: str | os.PathLike[str], *, max_bytes: int) -> bytes:
    """Return the bytes of a regular file of at most `max_bytes`; raise the same errors as `open_regular`.

    Example:
        >>> from walloc_data.files import read_regular
        >>> read_regular("my-latents/walloc.json", max_bytes=2**20)[:1]
        b'{'
    """
    with open_regular(path, max_bytes=max_bytes) as file:
        data = read_all(file, max_bytes=max_bytes)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes} bytes; at most that many are read", os.fspath(path))
    return data


def read_all(file: BufferedReader, *, max_bytes: int) -> bytes:
    """Return the bytes of an open file from its position on, and a few more than `max_bytes` of a longer one.

    `file.read(max_bytes)` would allocate `max_bytes` first. The file may be growing, or report length 0 as in /proc.

    Example:
        >>> from walloc_data.files import open_regular, read_all
        >>> with open_regular("my-latents/walloc.json") as file:
        ...     data = read_all(file, max_bytes=2**20)
        >>> data[:1]
        b'{'
    """
    data = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
    while len(data) <= max_bytes and (more := file.read(2**20)):
        data += more
    return data


def _check(found: os.stat_result, path: str | os.PathLike[str], max_bytes: int | None) -> None:
    for is_kind, number, name in _KINDS:
        if is_kind(found.st_mode):
            raise OSError(number, f"{name}, not a file", os.fspath(path))
    if max_bytes is not None and found.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"{found.st_size} bytes; at most {max_bytes} are read", os.fspath(path))


@contextmanager
def atomic_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a new empty file to write, beside `target`; move it over `target` on success, remove it on an error.

    Args:
        target: the file's own path. Its folder must exist.

    Yields:
        The unfinished file's path, `.NAME.RANDOM.partial`. It may be opened and written, or replaced by another file.
        A process that is killed leaves it behind.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.files import atomic_file
        >>> with atomic_file("settings.json") as unfinished:
        ...     _ = unfinished.write_text("{}")
        >>> Path("settings.json").read_text(), sorted(path.name for path in Path().glob("*settings*"))
        ('{}', ['settings.json'])
    """
    target = Path(target)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # 0666 without the umask's bits. os.umask would have to change the umask, also for other threads, to read it.
        mode = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        yield unfinished
        # The bytes must reach the disk before the name does. Windows syncs only files that are open for writing.
        with unfinished.open("r+b" if os.name == "nt" else "rb") as file:
            os.fsync(file.fileno())
        if unfinished.stat().st_mode & 0o777 != mode:
            unfinished.chmod(mode)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def allocate(descriptor: int, num_bytes: int) -> None:
    """Extend a file with zeros to a length, and allocate the disk space for it.

    Where the system cannot allocate (macOS, Windows), only the length is set.

    Raises:
        OSError: the disk is full, or the quota exceeded.

    Example:
        >>> import os
        >>> from walloc_data.files import allocate
        >>> with open("table", "wb") as file:
        ...     allocate(file.fileno(), 4096)
        >>> os.path.getsize("table")
        4096
    """
    if num_bytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.ftruncate(descriptor, num_bytes)


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path without links. Unlike `Path.resolve`, it accepts a loop of links.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.files import real_path
        >>> real_path("my-latents/../my-latents") == Path.cwd().resolve() / "my-latents"
        True
    """
    return Path(os.path.realpath(path))


def sync_file(descriptor: int) -> None:
    """Wait until the data of a file is on the disk.

    Example:
        >>> from walloc_data.files import sync_file
        >>> with open("notes.txt", "wb", buffering=0) as file:
        ...     _ = file.write(b"kept")
        ...     sync_file(file.fileno())
    """
    getattr(os, "fdatasync", os.fsync)(descriptor)  # macOS and Windows have no fdatasync


def sync_folder(folder: Path) -> None:
    """Wait until the renames in a folder are on the disk. Does nothing on Windows, which cannot open folders.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.files import sync_folder
        >>> sync_folder(Path("."))
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
