"""A folder of pictures, with one folder per class, or without classes."""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from walloc_data.errors import SourceError
from walloc_data.format import MANIFEST_NAME, load_json
from walloc_data.pictures import PICTURE_SUFFIXES
from walloc_data.sources.base import MAX_COLUMN_BYTES, PackedStrings, Sample, Source, fingerprint, json_columns
from walloc_data.sources.listing import Listing, as_text, stem_of
from walloc_data.sources.reading import NotAFileError, file_version, read_file, unreadable
from walloc_data.sources.stray import is_stray

__all__ = ["FolderSource"]

TEXT = "txt"  # the column of captions, as in tars
MAX_JSON_BYTES = 2**20


class FolderSource(Source):
    """Pictures below a folder, sorted by class, then by path. Class i is the i-th folder by name.

    A folder without class folders is unlabelled. Files with the name of a picture and another suffix belong to it, as
    written by img2dataset: ``.txt`` is its caption, the column ``txt``; the fields of ``.json`` (those of the first
    picture) are columns. Hidden and system files (`walloc_data.sources.stray`), other files and data sets of latents
    are left out, and noted with names and numbers.

    Args:
        label_column: "folder": the folders are classes, even if their names look like img2dataset's numbers; "none":
            encode without labels; None: decide by the names.

    Attributes:
        special: paths of the pipes and devices that are named like pictures, which are left out.
    """

    kind = "folder"

    def __init__(self, root: Path, *, location: str, label_column: str | None = None) -> None:
        self.root = root.absolute()
        if _is_encoded(self.root):
            raise SourceError(f"{location}: this is an encoded data set; use the folder of pictures as the source")
        self._arrange(_scan(self.root), location=location, label_column=label_column)

    def _arrange(self, listing: Listing, *, location: str, label_column: str | None) -> None:
        """Set the attributes of the source from a listing."""
        self.location = location
        listing.sort()
        if label_column != "none":
            listing.refuse_splits(location)
        found, folders = listing.pictures, listing.folders
        if not found:
            raise SourceError(
                f"{location}: no pictures below it (names ending in {', '.join(sorted(PICTURE_SUFFIXES))})"
            )
        sidecars = listing.sidecars()
        self.labelled, guess = False, None
        if label_column != "none":
            self.labelled, guess = listing.has_classes(context=location, sidecars=sidecars)
            self.labelled |= guess is not None and label_column == "folder"
            if label_column == "folder" and not self.labelled:
                raise SourceError(f"{location}: its pictures are not in folders, so there are no labels")
        self.class_names = tuple(as_text(name) for name in folders) if self.labelled else None
        self._paths = PackedStrings(path for path, _, _ in found)
        self._num_bytes = np.array([num_bytes for _, num_bytes, _ in found], dtype=np.int64)
        self._mtimes_ns = np.array([mtime_ns for _, _, mtime_ns in found], dtype=np.int64)
        self.num_items = len(found)
        if self.labelled:
            number = {name: index for index, name in enumerate(folders)}
            self._labels = np.array([number[path.partition("/")[0]] for path, _, _ in found], dtype=np.int32)
        stems = [stem_of(path) for path, _, _ in found]
        self._has_text = np.array([stem in sidecars[".txt"] for stem in stems], dtype=bool)
        self._has_json = np.array([stem in sidecars[".json"] for stem in stems], dtype=bool)
        self.notes = listing.notes() + ((guess,) if guess is not None and not self.labelled else ())
        named_like_pictures = (p for p in sorted(listing.special) if Path(p).suffix.lower() in PICTURE_SUFFIXES)
        self.special = tuple(map(as_text, named_like_pictures))
        self._locate()
        self.columns = self._columns()
        lengths = [f"{path}\t{num_bytes}" for path, num_bytes, _ in found]
        self.identity = fingerprint(
            [*lengths, *(f"{suffix}\t{sorted(of.items())}" for suffix, of in sidecars.items() if of)]
        )

    def _locate(self) -> None:
        """Find the files of pictures and sidecars; called when their list is complete, before the first is read."""

    def _columns(self) -> tuple[str, ...]:
        """Return the caption, and the fields of the first JSON that can be read."""
        fields: set[str] = set()
        for index in np.flatnonzero(self._has_json)[:100].tolist():
            try:
                fields = set(self._json(index))
            except (ValueError, RecursionError):
                continue
            break
        return tuple(sorted(fields | ({TEXT} if self._has_text.any() else set())))

    def _file(self, index: int, suffix: str | None = None, *, most: int | None = None) -> tuple[bytes, str]:
        """Return the bytes of a picture's file or sidecar (at most the first `most`), and its version.

        Raises:
            SourceError: the file cannot be read, or its length has changed since the source was opened.
            ValueError: the file is damaged.
        """
        path = self.root / (self._paths[index] if suffix is None else stem_of(self._paths[index]) + suffix)
        if most is None:
            return read_file(path, num_bytes=int(self._num_bytes[index]))
        try:
            with path.open("rb") as file:
                return file.read(most), ""
        except OSError as error:
            raise unreadable(path, error) from error

    def _json(self, index: int) -> dict[str, Any]:
        data, _ = self._file(index, ".json", most=MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"its JSON has more than {MAX_JSON_BYTES} bytes")
        return load_json(data, context="its JSON")

    def _sidecars(self, index: int) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        """Return the columns of a picture, and descriptions of what is left out of its sidecars."""
        values = self._json(index) if self._has_json[index] else {}
        if self._has_text[index]:
            data, _ = self._file(index, ".txt", most=MAX_COLUMN_BYTES + 1)
            values[TEXT] = data.decode("utf-8", "replace").rstrip("\r\n")
        columns, left_out = json_columns(values, self.columns)
        unknown = sorted(values.keys() - set(self.columns))
        return columns, left_out + tuple(f"JSON field {name!r}, which the first sample lacks" for name in unknown)

    def read(self, index: int) -> Sample:
        path = self._paths[index]
        label = int(self._labels[index]) if self.labelled else None
        num_bytes = int(self._num_bytes[index])
        columns: Mapping[str, Any] = dict.fromkeys(self.columns)
        left_out: tuple[str, ...] = ()
        if num_bytes < 0:
            return Sample(as_text(path), b"", label, columns, "a link to a file that is not there")
        try:
            if self.columns:
                columns, left_out = self._sidecars(index)
            data, version = self._file(index)
        except NotAFileError as error:
            problem = str(error).removeprefix(f"{self.root / path}: ")
            return Sample(as_text(path), b"", label, columns, problem)
        except SourceError:
            raise
        except (ValueError, RecursionError) as error:
            return Sample(as_text(path), b"", label, columns, f"cannot be read: {error}")
        return Sample(as_text(path), data, label, columns, None, left_out, version)

    def version(self, index: int) -> str | None:
        num_bytes = int(self._num_bytes[index])
        return file_version(num_bytes, int(self._mtimes_ns[index])) if num_bytes >= 0 else None


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder, or a link to one; False if this cannot be asked, as for a loop of links."""
    try:
        return entry.is_dir()
    except OSError:  # `_scan` finds out what it is
        return False


def _is_encoded(folder: Path) -> bool:
    """Return whether a folder is a data set of latents, finished or not."""
    try:
        return (folder / MANIFEST_NAME).is_file() or (folder / ".walloc").is_dir()
    except OSError:  # unreadable: reported by the scan
        return False


def _scan(root: Path) -> Listing:
    found = Listing()
    for prefix, entry in _files(root, found, prefix="", above=set()):
        try:
            status = entry.stat()
            num_bytes, mtime_ns, regular = status.st_size, status.st_mtime_ns, stat.S_ISREG(status.st_mode)
        except OSError as error:
            if not (entry.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP)):
                raise unreadable(root / prefix / entry.name, error) from error
            if error.errno == errno.ELOOP and Path(entry.name).suffix.lower() not in PICTURE_SUFFIXES:
                found.loops.append(prefix + entry.name)
                continue
            num_bytes, mtime_ns, regular = -1, 0, True  # a broken link becomes a failure when it is read
        if regular:
            found.add(prefix + entry.name, num_bytes=num_bytes, mtime_ns=mtime_ns)
        else:  # reading a pipe would block
            found.special.append(prefix + entry.name)
    return found


def _files(
    folder: Path, found: Listing, *, prefix: str, above: set[tuple[int, int]]
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield files below a folder, links followed, except links to a folder above."""
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
            found.strays[entry.name] += 1
        elif not _is_folder(entry):
            yield prefix, entry
        elif _is_encoded(Path(entry.path)):
            found.encoded.append(prefix + entry.name)
        else:
            if not prefix:
                found.folders.append(entry.name)
            yield from _files(Path(entry.path), found, prefix=f"{prefix}{entry.name}/", above=here)
