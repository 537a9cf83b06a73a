"""WebDataset tars: local ones are indexed and read by position, remote ones are downloaded one by one."""

import fnmatch
import glob
import itertools
import math
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from walloc_data.errors import SourceError
from walloc_data.sources.base import PackedStrings, Sample, Source, fingerprint
from walloc_data.sources.remote_tars import RemoteTars
from walloc_data.sources.stray import listed
from walloc_data.sources.tar_folders import class_folders, folder_of
from walloc_data.sources.tar_members import DamagedTarError, Group, TarScan, groups
from walloc_data.sources.tar_samples import (
    CLASS_NAME_FILES,
    FOLDER,
    MAX_META_BYTES,
    TEXT,
    Layout,
    Reader,
    image_extension,
    json_of,
    layout_of,
    left_out_members,
    lines_of,
    misplaced_labels,
    no_picture,
    picture_of,
)
from walloc_data.storage import Store

__all__ = ["TarSource", "expand_urls", "open_tars"]

_RANGE = re.compile(r"\{([^{}]*)\}")
_DIGITS = re.compile(r"[0-9]{1,18}")
MAX_TARS = 10**6
_MEMBERS = ("cls", "json", TEXT)  # members whose positions `TarSource` stores, after the picture


def expand_urls(text: str) -> list[str]:
    """Expand ``a-{000..012}.tar``, ``{a,b}.tar`` and ``x.tar::y.tar`` to plain URLs, in order."""
    parts = [_alternatives(part) for part in text.split("::")]
    if sum(math.prod(map(len, part)) for part in parts) > MAX_TARS:
        raise SourceError(f"wds:{text}: more than a million tars")
    return ["".join(pieces) for part in parts for pieces in itertools.product(*part)]


def _alternatives(text: str) -> list[list[str]]:
    """Return the alternatives of each part of a URL: one outside of braces, several inside."""
    places: list[list[str]] = []
    end = 0
    for match in _RANGE.finditer(text):
        if "{" in text[end : match.start()]:
            raise SourceError(
                f"wds:{text}: braces inside braces; write the ranges one after another, with '::' between"
            )
        places.append([text[end : match.start()]])
        end = match.end()
        first, dots, last = match[1].partition("..")
        if not dots:
            places.append(match[1].split(","))
            continue
        if not (_DIGITS.fullmatch(first) and _DIGITS.fullmatch(last)) or not 0 <= int(last) - int(first) <= MAX_TARS:
            raise SourceError(f"wds:{text}: {match[0]} is not a range of numbers such as {{000..012}}")
        places.append([f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)])
    places.append([text[end:]])
    return places


class TarSource(Source):
    """Source of local tars, read by position. Their headers are read once, when it is opened.

    Labels are those of ``.cls`` members or of the JSON. Without both, if samples are only pictures in several folders,
    the folders are the classes, as for `FolderSource`. Class names are those of the folders, or of a file
    classnames.txt or classes.txt next to the tars, with one name per line.
    """

    kind = "wds"

    def __init__(
        self, paths: list[str], *, location: str, image_column: str | None = None, label_column: str | None = None
    ) -> None:
        self.location = location
        self._tars = paths
        names = _class_names({Path(path).parent for path in paths})
        image = image_extension(image_column)
        layout: Layout | None = None
        scan, others = TarScan(), Counter[str]()
        keys: list[str] = []
        spans = array("q")  # number of the tar, then two numbers per member
        self._problems: dict[int, str] = {}  # by position
        first: tuple[str, Group] | None = None
        num_with_label_files = 0
        for number, path in enumerate(paths):
            try:
                for group in groups(Path(path), context=path, scan=scan):
                    first = first or (path, group)
                    picture = picture_of(group, image)
                    if layout is None and picture is not None and group.problem is None:
                        meta = json_of(path, group, context=path)
                        layout = layout_of(group, meta, context=path, names=names, image=image, label=label_column)
                    if layout is not None and picture is not None:  # failures are reported separately
                        others.update(left_out_members(group, layout))
                    num_with_label_files += "cls" in group.members
                    if group.problem is not None:
                        self._problems[len(keys)] = group.problem
                    keys.append(group.key)
                    for span in (picture, *map(group.members.get, _MEMBERS)):
                        spans.extend(span or (-1, 0))
                    spans.append(number)
            except DamagedTarError as error:
                if first is None and len(paths) == 1:
                    raise
                self._problems[len(keys)] = str(error).removeprefix(f"{path}: ")
                keys.append("")
                spans.extend((-1, 0) * (1 + len(_MEMBERS)) + (number,))
        if first is None:
            damage = "".join(f"; {Path(paths[0]).name}: {problem}" for problem in [*self._problems.values()][:1])
            raise SourceError(f"{location}: no samples in {len(paths)} tars{damage}")
        if layout is None:
            raise no_picture(*first, image)
        if layout.label_from != "cls" and label_column is None and num_with_label_files:
            raise misplaced_labels(location, num_with_label_files)
        self._spans = np.frombuffer(spans, dtype=np.int64).reshape(len(keys), -1)
        self.notes = scan.notes()
        if others:
            self.notes += (f"left out: other members of samples: {listed(others)}",)
        if layout.label_from == FOLDER or (layout.label_from is None and label_column is None):
            layout = self._label_by_folders(keys, scan.folders, layout, names=names)
        self._keys = PackedStrings(keys)
        self._reader = Reader(layout)
        self.num_items = len(keys)
        self.labelled = layout.label_from is not None
        if layout.label_from != FOLDER:
            self.class_names = names if self.labelled else None
        self.columns = layout.columns
        sizes = [(Path(path).name, Path(path).stat().st_size) for path in paths]
        self.identity = fingerprint([self.num_items, image_column, layout.label_from, *sizes])

    def _label_by_folders(
        self, keys: list[str], folders: set[str], layout: Layout, *, names: tuple[str, ...] | None
    ) -> Layout:
        """Set labels by folders if they are classes, and return the resulting layout."""
        asked = layout.label_from == FOLDER
        has_picture = self._spans[:, 0] >= 0
        pictures = [key for key, has in zip(keys, has_picture, strict=True) if has]
        if not asked and (layout.reads_json or layout.reads_text):
            if len({folder_of(key) for key in pictures}) > 1:
                self.notes += (
                    "folders in the tars are not taken for classes, as samples have JSON or text: "
                    "label_column='folder' (--label-column folder) takes them",
                )
            return layout
        found = class_folders(pictures, folders, context=self.location, names=names)
        if found is None:
            if asked:
                raise SourceError(f"{self.location}: all its pictures are in one folder, so folders cannot be labels")
            return layout
        if 1 < len(pictures) == found.num_populated:
            raise SourceError(
                f"{self.location}: each of its {len(pictures)} pictures is in its own folder, so folders cannot be "
                "labels: encode without labels with label_column='none' (--label-column none)"
            )
        self.class_names = found.names
        self._labels = np.array([found.label(k) if p else -1 for k, p in zip(keys, has_picture, strict=True)], np.int32)
        if names is not None and found.names != names:
            self.notes += ("the file of class names does not hold all the folders' names, so it was not used",)
        return replace(layout, label_from=FOLDER, class_names=found.names)

    def read(self, index: int) -> Sample:
        *numbers, tar = self._spans[index].tolist()
        layout, path, key = self._reader.layout, self._tars[tar], self._keys[index]
        name = f"{Path(path).name}/{key}".rstrip("/")
        members = {
            member: (numbers[2 * i], numbers[2 * i + 1])
            for i, member in enumerate((layout.image_column or "jpg", *_MEMBERS))
            if numbers[2 * i] >= 0
        }
        label = int(self._labels[index]) if layout.label_from == FOLDER else None
        return self._reader.sample(path, Group(key, members, self._problems.get(index)), name=name, folder_label=label)

    def version(self, index: int) -> str | None:
        return self._reader.tars.version(self._tars[int(self._spans[index][-1])])


def _class_names(folders: set[Path]) -> tuple[str, ...] | None:
    for folder in sorted(folders):
        for name in CLASS_NAME_FILES:
            path = folder / name
            if path.is_file() and path.stat().st_size <= MAX_META_BYTES:
                return lines_of(path.read_bytes())
    return None


def open_tars(
    text: str,
    *,
    image_column: str | None,
    label_column: str | None,
    storage_options: Mapping[str, Any] | None,
) -> Source:
    """Open ``wds:URLS``: by position if all tars are local, in fragments otherwise."""
    location = f"wds:{text}"
    urls = expand_urls(text)
    remote = ["://" in url and not url.startswith("file://") for url in urls]
    if any(remote):
        if not all(remote):
            raise SourceError(f"{location}: local and remote tars in one source")
        found = [match for url in urls for match in _remote_matches(url, storage_options)]
        return RemoteTars(
            found,
            location=location,
            image_column=image_column,
            label_column=label_column,
            storage_options=storage_options,
        )
    paths: list[str] = []
    for url in urls:
        path = str(Path(url.removeprefix("file://")).expanduser())
        if Path(path).is_dir():
            path = f"{glob.escape(path)}/*.tar"
        matches = sorted(glob.glob(path)) if glob.has_magic(path) else [path]  # noqa: PTH207
        if not matches or not Path(matches[0]).is_file():
            raise SourceError(f"{location}: no such file: {url}")
        paths.extend(str(Path(match).absolute()) for match in matches)
    return TarSource(paths, location=location, image_column=image_column, label_column=label_column)


def _remote_matches(url: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    folder, _, name = url.rpartition("/")
    if not glob.has_magic(name):
        return [url]
    names = Store(folder, storage_options=storage_options).entries()
    found = [f"{folder}/{path}" for path in sorted(names) if fnmatch.fnmatchcase(path, name)]
    if not found:
        raise SourceError(f"wds:{url}: nothing matches")
    return found
