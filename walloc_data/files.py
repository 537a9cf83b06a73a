"""Files that are there whole or not at all: written under another name beside their own, then renamed.

A file made by `tempfile.mkstemp`, as safetensors' writer makes one too, can be read by its owner alone and would keep
that mode after the rename. Ours have the mode that the process's umask gives to any new file.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole_file"]


@contextmanager
def whole_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a new empty file to write, beside `target`; move it over `target` on success, remove it on an error.

    Args:
        target: the file's own path. Its folder must exist.

    Yields:
        The unfinished file's path, `.NAME.RANDOM.partial`. It may be opened and written, or replaced by another file.
        A process that is killed leaves it behind.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.files import whole_file
        >>> with whole_file("settings.json") as unfinished:
        ...     _ = unfinished.write_text("{}")
        >>> Path("settings.json").read_text(), sorted(path.name for path in Path().glob("*settings*"))
        ('{}', ['settings.json'])
    """
    target = Path(target)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        # What the umask left of 0666: asking for the umask itself would change it for other threads meanwhile.
        mode = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        yield unfinished
        with unfinished.open("rb") as file:  # the name must not reach the disk before the bytes do
            os.fsync(file.fileno())
            if os.fstat(file.fileno()).st_mode & 0o777 != mode:
                os.fchmod(file.fileno(), mode)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
