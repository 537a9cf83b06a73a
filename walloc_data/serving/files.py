"""Picture files and folders to classify, opened one at a time."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from walloc_data.errors import SourceError, UnreadableError
from walloc_data.files import read_regular
from walloc_data.pictures import MAX_FILE_BYTES, PictureError
from walloc_data.sources import Sample, open_source
from walloc_data.sources.folder import FolderSource

__all__ = ["picture_files", "short_reason"]


def picture_files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield (name, function that reads the bytes) of files, and of the pictures in folders."""
    for given in paths:
        if not isinstance(given, str | os.PathLike):
            raise SourceError(f"paths of pictures must be text or Path objects, not {type(given).__name__}")
        path = Path(given)
        if not path.is_dir():
            yield str(path), partial(read_regular, path, max_bytes=MAX_FILE_BYTES)
            continue
        try:
            source = open_source(path, label_column="none")
        except SourceError as error:
            yield str(path), partial(_raise, error)
            continue
        for index in range(source.num_items or 0):
            try:
                sample = source.read(index)
            except SourceError as error:
                yield str(error).partition(": ")[0], partial(_raise, error)
                continue
            yield str(path / sample.name), partial(_data, sample)
        for special in source.special if isinstance(source, FolderSource) else ():  # refused with the kind of file
            yield str(path / special), partial(read_regular, path / special, max_bytes=MAX_FILE_BYTES)


def _raise(error: Exception) -> bytes:
    raise error


def short_reason(error: Exception, *, name: str) -> str:
    """Return why a file cannot be classified, without the file's name."""
    if isinstance(error, UnreadableError):
        return error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).removeprefix(f"{name}: ")


def _data(sample: Sample) -> bytes:
    if sample.problem is not None:
        raise PictureError(sample.problem)
    return sample.data
