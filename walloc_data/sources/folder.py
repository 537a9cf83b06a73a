"""A folder of pictures: one folder a class, or no classes at all."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from walloc_data.errors import SourceError
from walloc_data.sources.base import PICTURE_SUFFIXES, Names, Sample, Source, fingerprint

__all__ = ["FolderSource"]

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


class FolderSource(Source):
    """Pictures below a folder, sorted by class, then by path. Class i is the i-th folder by name.

    A folder with pictures and no folders is unlabelled. Hidden files, and files whose names do not end like a
    picture's, are not part of the source; their number is noted.
    """

    kind = "folder"

    def __init__(self, root: Path, *, location: str, labelled: bool | None = None) -> None:
        self.root = root.absolute()
        self.location = location
        try:
            entries = sorted(os.scandir(self.root), key=lambda entry: os.fsencode(entry.name))
            folders = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        except OSError as error:
            raise SourceError(f"{location}: cannot be read ({error})") from error
        if folders and {name.lower() for name in folders} <= _SPLIT_NAMES and labelled is not False:
            raise SourceError(
                f"{location}: its folders {folders} are named like splits, not classes: "
                f"name one of them, e.g. {Path(location.removeprefix('folder:')) / folders[0]}"
            )
        found, ignored = _pictures(self.root)
        top = [index for index, (path, _) in enumerate(found) if "/" not in path]
        if not found:
            raise SourceError(
                f"{location}: no pictures below it (names ending in {', '.join(sorted(PICTURE_SUFFIXES))})"
            )
        if labelled is None:
            labelled = bool(folders) and not top
            if folders and top:
                raise SourceError(
                    f"{location}: {len(top)} pictures lie beside {len(folders)} folders, e.g. {found[top[0]][0]!r}: "
                    "move them into class folders, or pass label_column='none' to encode all of it without labels"
                )
        self.labelled = labelled
        self.class_names = tuple(_text(name) for name in folders) if labelled else None
        self._paths = Names(path for path, _ in found)
        self.num_items = len(found)
        self.identity = fingerprint(f"{path}\t{num_bytes}" for path, num_bytes in found)
        if labelled:
            number = {name: index for index, name in enumerate(folders)}
            self._labels = np.array([number[path.partition("/")[0]] for path, _ in found], dtype=np.int32)
        if ignored:
            self.notes = (f"{ignored} files that are not named like pictures were ignored",)

    def read(self, index: int) -> Sample:
        path = self._paths[index]
        label = int(self._labels[index]) if self.labelled else None
        try:
            return Sample(_text(path), (self.root / path).read_bytes(), label)
        except OSError as error:
            return Sample(_text(path), b"", label, problem=f"cannot be read: {error.strerror}")


def _text(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def _pictures(root: Path) -> tuple[list[tuple[str, int]], int]:
    """(path relative to root, bytes) of every picture, sorted; and the number of other files."""
    found: list[tuple[str, int]] = []
    ignored = 0
    for prefix, entry in _files(root, prefix="", above=set()):
        if Path(entry.name).suffix.lower() in PICTURE_SUFFIXES:
            try:
                num_bytes = entry.stat().st_size
            except OSError:  # a broken link: a failure when it is read, not now
                num_bytes = -1
            found.append((prefix + entry.name, num_bytes))
        else:
            ignored += 1
    # '/' before every other character, so that a class's pictures stay together.
    found.sort(key=lambda item: [os.fsencode(part) for part in item[0].split("/")])
    return found, ignored


def _files(folder: Path, *, prefix: str, above: set[tuple[int, int]]) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Files below a folder, links followed, except links to a folder above."""
    try:
        status = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror})") from error
    here = above | {(status.st_dev, status.st_ino)}
    if (status.st_dev, status.st_ino) in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(Path(entry.path), prefix=f"{prefix}{entry.name}/", above=here)
        else:
            yield prefix, entry
