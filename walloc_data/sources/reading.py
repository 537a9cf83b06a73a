"""Reading a source's files: what is a picture's own fault, and what is trouble of the machine or the store.

A picture that is damaged will be damaged tomorrow: it is a failure, and the conversion goes on. A disk that is not
mounted, a right that was taken away, a table of open files that is full are gone tomorrow: recorded as failures they
would leave a data set without pictures that are there. So they stop the conversion, which goes on from where it was.
"""

import errno
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from walloc_data.errors import SourceError, UnreadableError
from walloc_data.files import open_regular

__all__ = ["MAX_PICTURE_BYTES", "NotAFileError", "file_version", "open_file", "read_file", "unreadable"]

# A network file system that comes back answers these for a moment.
_ASK_AGAIN = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT)
MAX_ATTEMPTS = 3
MAX_PICTURE_BYTES = 2**31


class NotAFileError(SourceError):
    """A pipe, a device or a folder where a file was expected, or a file that is too long to be a picture."""


def unreadable(context: object, error: BaseException | str) -> UnreadableError:
    """Return the error for what cannot be read although it was there: not the picture's fault, so nothing is
    recorded.
    """
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    elif isinstance(error, MemoryError):
        reason = "memory ran out"
    else:
        reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    found = UnreadableError(
        f"{context}: cannot be read ({reason}). This is trouble of the machine or the store and no fault of the "
        "picture, so it is not recorded as one: what is published stays, and the same command goes on once it can be "
        "read. If that will never be, --on-error record-unreadable (on_error='record-unreadable') lists it as a failure"
    )
    found.name, found.reason = Path(str(context)).name, reason
    return found


def open_file(path: Path, *, max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading. Nothing else: a pipe would be waited for, and a device may have no end.

    Raises:
        NotAFileError: it is none, or longer than `max_bytes`.
        OSError: it cannot be opened.
    """
    try:
        return open_regular(path, max_bytes=max_bytes)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EINVAL, errno.EFBIG):
            raise NotAFileError(f"{path}: {error.strerror}") from error
        raise


def read_file(path: Path, *, num_bytes: int | None = None) -> tuple[bytes, str]:
    """Return a whole local file, and its version.

    Args:
        num_bytes: how long it was when the source was opened; None: not known.

    Raises:
        NotAFileError: it is no regular file, or longer than `MAX_PICTURE_BYTES`.
        SourceError: it cannot be read, or has another length than it had.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            with open_file(path, max_bytes=MAX_PICTURE_BYTES) as file:
                status = os.fstat(file.fileno())
                data = file.read(MAX_PICTURE_BYTES)
            break
        except OSError as error:
            if error.errno not in _ASK_AGAIN or attempt == MAX_ATTEMPTS:
                raise unreadable(path, error) from error
            time.sleep(0.3 * attempt)
    if num_bytes is not None and len(data) != num_bytes:
        raise SourceError(
            f"{path}: {len(data)} bytes, and {num_bytes} when the source was opened: it has changed meanwhile. What is "
            "published stays; the same command looks at the source anew"
        )
    return data, file_version(status.st_size, status.st_mtime_ns)


def file_version(num_bytes: int, mtime_ns: int) -> str:
    """Return what tells a file from another of the same name: its length and when it was last written."""
    seconds, nanoseconds = divmod(mtime_ns, 10**9)
    return f"{num_bytes} bytes of {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{nanoseconds:09d} UTC"
