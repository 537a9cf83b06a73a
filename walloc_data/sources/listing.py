"""Listing of a folder or an archive: pictures, their sidecars, and files that are left out."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from walloc_data.errors import SourceError
from walloc_data.pictures import PICTURE_SUFFIXES
from walloc_data.sources.stray import are_splits, listed, names_listed, stray_note

__all__ = ["SIDECARS", "Listing", "as_text", "stem_of"]

SIDECARS = (".txt", ".json")  # files with the picture's name: a caption, and a JSON object of columns
_NUMBERED = re.compile(r"[0-9]{3,}")  # img2dataset's folders: 00000, 00001, ...


@dataclass
class Listing:
    """Paths below a root, separated by '/'."""

    pictures: list[tuple[str, int, int]] = field(default_factory=list)  # path, bytes (-1: a broken link), mtime in ns
    folders: list[str] = field(default_factory=list)  # in the root
    beside: dict[str, int] = field(default_factory=dict)  # files that may belong to a picture, and their bytes
    strays: Counter[str] = field(default_factory=Counter)  # by name
    others: Counter[str] = field(default_factory=Counter)  # by suffix
    encoded: list[str] = field(default_factory=list)  # data sets of latents
    special: list[str] = field(default_factory=list)  # pipes, sockets and devices, whatever their names
    loops: list[str] = field(default_factory=list)  # links that lead back to themselves

    def add(self, path: str, *, num_bytes: int, mtime_ns: int) -> None:
        """Add a file, by its name."""
        suffix = PurePosixPath(path).suffix.lower()
        if suffix in PICTURE_SUFFIXES:
            self.pictures.append((path, num_bytes, mtime_ns))
        elif suffix in SIDECARS and num_bytes >= 0:
            self.beside[path] = num_bytes
        else:
            self.others[suffix or "without a suffix"] += 1

    def sort(self) -> None:
        """Sort pictures by path, with '/' before all other characters, so that classes stay together."""
        self.pictures.sort(key=lambda item: [os.fsencode(part) for part in item[0].split("/")])
        self.folders.sort(key=os.fsencode)

    def sidecars(self) -> dict[str, dict[str, int]]:
        """Return the sidecars of pictures, by suffix: stem of the picture and bytes; remove them from `beside`."""
        stems = {stem_of(path) for path, _, _ in self.pictures}
        found: dict[str, dict[str, int]] = {suffix: {} for suffix in SIDECARS}
        for path, num_bytes in list(self.beside.items()):
            stem, suffix = stem_of(path), PurePosixPath(path).suffix
            if stem in stems and suffix in SIDECARS:
                found[suffix][stem] = num_bytes
            else:
                self.others[suffix.lower()] += 1
        self.beside = {}
        return found

    def notes(self) -> tuple[str, ...]:
        """Return notes on files that are left out, with names and numbers."""
        notes = list(stray_note(self.strays))
        if self.encoded:
            notes.append(f"left out: data sets of latents: {names_listed(sorted(self.encoded))}")
        if self.special:
            number = len(self.special)
            what = "1 pipe or device, which is" if number == 1 else f"{number} pipes or devices, which are"
            notes.append(f"left out: {what} not read")
        if self.loops:
            notes.append(f"left out: links that lead back to themselves: {names_listed(sorted(self.loops))}")
        if self.others:
            notes.append(f"left out: files that are not named like pictures: {listed(self.others)}")
        return tuple(notes)

    def has_classes(self, *, context: str, sidecars: Mapping[str, Mapping[str, int]]) -> tuple[bool, str | None]:
        """Return whether the folders in the root are classes, and a note if this is a guess.

        Raises:
            SourceError: there are pictures next to the folders.
        """
        top = [path for path, _, _ in self.pictures if "/" not in path]
        populated = {path.partition("/")[0] for path, _, _ in self.pictures if "/" in path}
        if not populated:
            return False, None
        if top:
            raise SourceError(
                f"{context}: {len(top)} pictures lie beside {len(populated)} folders, e.g. {top[0]!r}: "
                "move them into class folders, or pass label_column='none' to encode all of it without labels"
            )
        if any(sidecars.values()) and all(_NUMBERED.fullmatch(name) for name in populated):
            return False, (
                "folders are numbered and pictures have captions or JSON, as img2dataset writes them, so that folders "
                "are not taken for classes: label_column='folder' (--label-column folder) takes them"
            )
        return True, None

    def refuse_splits(self, context: str) -> None:
        """Raise SourceError if the folders in the root are named like splits."""
        if are_splits(self.folders):
            path = context.removeprefix("folder:").rstrip("/")
            raise SourceError(
                f"{context}: its folders {self.folders} are named like splits, not classes: name one of them, e.g. "
                f"{path}/{self.folders[0]}, or encode all of them (--split all)"
            )


def as_text(path: str) -> str:
    """Return a path as valid text: bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def stem_of(path: str) -> str:
    """Return a path without the suffix of its last part."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.rpartition(".")[0]
