"""Reading of a source's files, and the distinction between damaged pictures and errors of the machine or the store.

A damaged picture is recorded as a failure, and the conversion continues. Errors such as an unmounted disk, missing
permissions or too many open files may be temporary: recorded as failures, they would leave out good pictures. So they
stop the conversion, which can be resumed.
"""

import errno
import os
import time
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path

from walloc_data.errors import SourceError, UnreadableError
from walloc_data.files import open_regular, read_all

__all__ = ["MAX_PICTURE_BYTES", "NotAFileError", "file_version", "open_file", "read_file", "unreadable"]

# Errors of network file systems that recover within seconds.
_ASK_AGAIN = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT)
MAX_ATTEMPTS = 3
MAX_PICTURE_BYTES = 2**31


class NotAFileError(SourceError):
    """Error for a path that is a pipe, device or folder, or a file that is too long to be a picture."""


def unreadable(context: object, error: BaseException | str) -> UnreadableError:
    """Return the error for a file that exists but cannot be read, which stops the conversion."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    elif isinstance(error, MemoryError):
        reason = "out of memory"
    else:
        reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    found = UnreadableError(
        f"{context}: cannot be read ({reason}). This is an error of the machine or the store, not a damaged picture, "
        "so it is not recorded as a failure. Run the same command to resume when the file can be read; if it never "
        "can, use --on-error record-unreadable (on_error='record-unreadable') to record it as a failure"
    )
    found.name, found.reason = Path(str(context)).name, reason
    return found


def open_file(path: Path, *, max_bytes: int | None = None) -> BufferedReader:
    """Open a regular file for reading; pipes could block, and devices may have no end.

    Raises:
        NotAFileError: the path is not a regular file, or is longer than `max_bytes`.
        OSError: the file cannot be opened.
    """
    try:
        return open_regular(path, max_bytes=max_bytes)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EINVAL, errno.EFBIG):
            raise NotAFileError(f"{path}: {error.strerror}") from error
        raise


def read_file(path: Path, *, num_bytes: int | None = None) -> tuple[bytes, str]:
    """Return the bytes of a local file, and its version.

    Args:
        num_bytes: its length when the source was opened; None: unknown.

    Raises:
        NotAFileError: the path is not a regular file, or is longer than `MAX_PICTURE_BYTES`.
        SourceError: the file cannot be read, or its length has changed.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            with open_file(path, max_bytes=MAX_PICTURE_BYTES) as file:
                status = os.fstat(file.fileno())
                data = read_all(file, max_bytes=MAX_PICTURE_BYTES)
            break
        except OSError as error:
            if error.errno not in _ASK_AGAIN or attempt == MAX_ATTEMPTS:
                raise unreadable(path, error) from error
            time.sleep(0.3 * attempt)
    if num_bytes is not None and len(data) != num_bytes:
        raise SourceError(
            f"{path}: {len(data)} bytes, but {num_bytes} when the source was opened: it changed during the conversion. "
            "Run the same command to resume"
        )
    return data, file_version(status.st_size, status.st_mtime_ns)


def file_version(num_bytes: int, mtime_ns: int) -> str:
    """Return the version of a file: its length and modification time."""
    seconds, nanoseconds = divmod(mtime_ns, 10**9)
    return f"{num_bytes} bytes of {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{nanoseconds:09d} UTC"
