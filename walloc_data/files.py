"""Files that are there whole or not at all: written under another name beside their own, then renamed.

A file made by `tempfile.mkstemp`, as safetensors' writer makes one too, can be read by its owner alone and would keep
that mode after the rename. Ours have the mode that the process's umask gives to any new file.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["sync_file", "sync_folder", "whole_file"]


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
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # What the umask left of 0666: asking for the umask itself would change it for other threads meanwhile.
        mode = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        yield unfinished
        # The name must not reach the disk before the bytes do; Windows syncs only what may be written.
        with unfinished.open("r+b" if os.name == "nt" else "rb") as file:
            os.fsync(file.fileno())
        if unfinished.stat().st_mode & 0o777 != mode:
            unfinished.chmod(mode)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_file(descriptor: int) -> None:
    """Wait until what was written to a file is on the disk.

    Example:
        >>> from walloc_data.files import sync_file
        >>> with open("notes.txt", "wb", buffering=0) as file:
        ...     _ = file.write(b"kept")
        ...     sync_file(file.fileno())
    """
    getattr(os, "fdatasync", os.fsync)(descriptor)  # macOS and Windows have no fdatasync


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut, where the system can (Windows cannot open a folder).

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
