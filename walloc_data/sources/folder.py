"""A folder of pictures: one folder a class, or no classes at all."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from walloc_data.errors import SourceError
from walloc_data.format import MANIFEST_NAME
from walloc_data.pictures import PICTURE_SUFFIXES
from walloc_data.sources.base import Names, Sample, Source, fingerprint
from walloc_data.sources.reading import file_version, read_file, unreadable
from walloc_data.sources.stray import are_splits, is_stray, listed, names_listed, stray_note

__all__ = ["FolderSource"]


class FolderSource(Source):
    """Pictures below a folder, sorted by class, then by path. Class i is the i-th folder by name.

    A folder whose folders hold no pictures is unlabelled. Not part of the source, and noted with names and numbers:
    hidden and system files (`walloc_data.sources.stray`), files whose names do not end like a picture's, other data
    sets of latents.
    """

    kind = "folder"

    def __init__(self, root: Path, *, location: str, labelled: bool | None = None) -> None:
        self.root = root.absolute()
        self.location = location
        if _is_encoded(self.root):
            raise SourceError(
                f"{location}: a data set of latents, which is encoded already; its source is a folder of pictures"
            )
        scan = _scan(self.root)
        found, folders = scan.pictures, scan.folders
        if are_splits(folders) and labelled is not False:
            raise SourceError(
                f"{location}: its folders {folders} are named like splits, not classes: "
                f"name one of them, e.g. {Path(location.removeprefix('folder:')) / folders[0]}"
            )
        if not found:
            raise SourceError(
                f"{location}: no pictures below it (names ending in {', '.join(sorted(PICTURE_SUFFIXES))})"
            )
        top = [path for path, _, _ in found if "/" not in path]
        populated = {path.partition("/")[0] for path, _, _ in found if "/" in path}
        if labelled is None:
            labelled = bool(populated)
            if populated and top:
                raise SourceError(
                    f"{location}: {len(top)} pictures lie beside {len(populated)} folders, e.g. {top[0]!r}: "
                    "move them into class folders, or pass label_column='none' to encode all of it without labels"
                )
        self.labelled = labelled
        self.class_names = tuple(_text(name) for name in folders) if labelled else None
        self._paths = Names(path for path, _, _ in found)
        self._num_bytes = np.array([num_bytes for _, num_bytes, _ in found], dtype=np.int64)
        self._mtimes_ns = np.array([mtime_ns for _, _, mtime_ns in found], dtype=np.int64)
        self.num_items = len(found)
        self.identity = fingerprint(f"{path}\t{num_bytes}" for path, num_bytes, _ in found)
        if labelled:
            number = {name: index for index, name in enumerate(folders)}
            self._labels = np.array([number[path.partition("/")[0]] for path, _, _ in found], dtype=np.int32)
        self.notes = scan.notes()

    def read(self, index: int) -> Sample:
        path = self._paths[index]
        label = int(self._labels[index]) if self.labelled else None
        num_bytes = int(self._num_bytes[index])
        if num_bytes < 0:
            return Sample(_text(path), b"", label, problem="a link to a file that is not there")
        data, version = read_file(self.root / path, num_bytes=num_bytes)
        return Sample(_text(path), data, label, version=version)

    def version(self, index: int) -> str | None:
        num_bytes = int(self._num_bytes[index])
        return file_version(num_bytes, int(self._mtimes_ns[index])) if num_bytes >= 0 else None


def _text(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def _is_encoded(folder: Path) -> bool:
    """Return whether a data set of latents lies there, finished or not."""
    try:
        return (folder / MANIFEST_NAME).is_file() or (folder / ".walloc").is_dir()
    except OSError:  # unreadable: the scan says so
        return False


@dataclass
class _Scan:
    """What lies below a folder."""

    pictures: list[tuple[str, int, int]] = field(default_factory=list)  # path relative to the root, bytes, mtime in ns
    folders: list[str] = field(default_factory=list)  # in the root
    strays: Counter[str] = field(default_factory=Counter)  # by name
    others: Counter[str] = field(default_factory=Counter)  # by suffix
    encoded: list[str] = field(default_factory=list)  # data sets of latents

    def notes(self) -> tuple[str, ...]:
        notes = list(stray_note(self.strays))
        if self.encoded:
            notes.append(f"left out: data sets of latents: {names_listed(sorted(self.encoded))}")
        if self.others:
            notes.append(f"left out: files that are not named like pictures: {listed(self.others)}")
        return tuple(notes)


def _scan(root: Path) -> _Scan:
    scan = _Scan()
    for prefix, entry in _files(root, scan, prefix="", above=set()):
        suffix = Path(entry.name).suffix.lower()
        try:
            status = entry.stat()
            num_bytes, mtime_ns, regular = status.st_size, status.st_mtime_ns, stat.S_ISREG(status.st_mode)
        except OSError as error:
            if not (entry.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP)):
                raise unreadable(root / prefix / entry.name, error) from error
            num_bytes, mtime_ns, regular = -1, 0, True  # a broken link: a failure when it is read, not now
        if suffix in PICTURE_SUFFIXES and regular:
            scan.pictures.append((prefix + entry.name, num_bytes, mtime_ns))
        else:  # reading a pipe would wait for ever
            scan.others[(suffix or "without a suffix") if regular else "pipes and devices"] += 1
    # '/' before every other character, so that a class's pictures stay together.
    scan.pictures.sort(key=lambda item: [os.fsencode(part) for part in item[0].split("/")])
    scan.folders.sort(key=os.fsencode)
    return scan


def _files(
    folder: Path, scan: _Scan, *, prefix: str, above: set[tuple[int, int]]
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
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
        if is_stray(entry.name):
            scan.strays[entry.name] += 1
        elif not entry.is_dir():
            yield prefix, entry
        elif _is_encoded(Path(entry.path)):
            scan.encoded.append(prefix + entry.name)
        else:
            if not prefix:
                scan.folders.append(entry.name)
            yield from _files(Path(entry.path), scan, prefix=f"{prefix}{entry.name}/", above=here)
