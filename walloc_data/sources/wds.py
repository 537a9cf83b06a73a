"""WebDataset tars: local ones are indexed and read by position, remote ones are fetched one by one and streamed."""

import fnmatch
import glob
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from walloc_data.errors import SourceError, StorageError
from walloc_data.sources.base import Names, Sample, Source, fingerprint
from walloc_data.sources.stray import listed
from walloc_data.sources.tar_folders import class_folders, folder_of
from walloc_data.sources.tar_samples import (
    FOLDER,
    MAX_META_BYTES,
    TEXT,
    Group,
    Layout,
    Reader,
    TarScan,
    groups,
    layout_of,
    left_out_members,
    picture_of,
)
from walloc_data.storage import Store

__all__ = ["TarSource", "TarStream", "expand_urls"]

CLASS_NAME_FILES = ("classnames.txt", "classes.txt")
_RANGE = re.compile(r"\{([^{}]*)\}")
_MEMBERS = ("cls", "json", TEXT)  # whose places `TarSource` keeps, after the picture's


def expand_urls(text: str) -> list[str]:
    """``a-{000..012}.tar``, ``{a,b}.tar`` and ``x.tar::y.tar`` as plain URLs, in order."""
    urls: list[str] = []
    for part in text.split("::"):
        urls.extend(_expand(part))
        if len(urls) > 10**6:
            raise SourceError(f"wds:{text}: more than a million tars")
    return urls


def _expand(text: str) -> list[str]:
    match = _RANGE.search(text)
    if match is None:
        return [text]
    if "{" in text[: match.start()]:
        raise SourceError(f"wds:{text}: braces inside braces; write the ranges one after another, with '::' between")
    first, dots, last = match[1].partition("..")
    if dots:
        if not (first.isdigit() and last.isdigit()) or int(last) < int(first) or int(last) - int(first) > 10**6:
            raise SourceError(f"wds:{text}: {match[0]} is not a range of numbers such as {{000..012}}")
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = match[1].split(",")
    return [text[: match.start()] + choice + tail for choice in choices for tail in _expand(text[match.end() :])]


def _image_extension(image_column: str | None) -> str | None:
    return image_column.lower().removeprefix(".") if image_column else None


def _no_picture(where: str, group: Group, image: str | None) -> SourceError:
    return SourceError(
        f"{where}: the first sample, {group.key!r}, has no {image or 'picture'} among its members "
        f"{sorted(group.members)}, nor has any other: name the picture's extension with image_column (--image-column)"
    )


class TarSource(Source):
    """Local tars, by position. Their headers are read once, here; pictures when a worker asks for them.

    Labels are those of ``.cls`` members or of the JSON. Where there are neither, and samples are pictures alone that
    lie in several folders, the folders are the classes, as they are for `FolderSource`. Class names come from a file
    classnames.txt or classes.txt beside the tars, one name a line, or from the folders.
    """

    kind = "wds"

    def __init__(
        self, paths: list[str], *, location: str, image_column: str | None = None, label_column: str | None = None
    ) -> None:
        self.location = location
        self._tars = paths
        names = _class_names({Path(path).parent for path in paths})
        image = _image_extension(image_column)
        layout: Layout | None = None
        scan, others = TarScan(), Counter[str]()
        keys: list[str] = []
        spans = array("q")  # a tar's number, copies, then two numbers for each member
        first: tuple[str, Group] | None = None
        num_with_label_files = 0
        for number, path in enumerate(paths):
            for group in groups(Path(path), where=path, scan=scan):
                first = first or (path, group)
                picture = picture_of(group, image)
                if layout is None and picture is not None:
                    layout = layout_of(path, group, where=path, names=names, image=image, label=label_column)
                if layout is not None and picture is not None:  # a failure names its members itself
                    others.update(left_out_members(group, layout))
                num_with_label_files += "cls" in group.members
                keys.append(group.key)
                spans.extend((number, group.copies, *(picture or (-1, 0))))
                for name in _MEMBERS:
                    spans.extend(group.members.get(name, (-1, 0)))
        if first is None:
            raise SourceError(f"{location}: no samples in {len(paths)} tars")
        if layout is None:
            raise _no_picture(*first, image)
        if layout.label_from is None and label_column is None and num_with_label_files:
            raise SourceError(
                f"{location}: {num_with_label_files} samples have a label (.cls), but the first with a picture has "
                "none. Members of one sample must follow each other (tar --sort=name); label_column='none' "
                "(--label-column none) encodes without labels"
            )
        self._spans = np.frombuffer(spans, dtype=np.int64).reshape(-1, 4 + 2 * len(_MEMBERS))
        self.notes = scan.notes()
        if others:
            self.notes += (f"left out: other members of samples: {listed(others)}",)
        if layout.label_from == FOLDER or (layout.label_from is None and label_column is None):
            layout = self._label_by_folders(keys, scan.folders, layout, names=names)
        self._keys = Names(keys)
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
        """Make labels of folders where they are classes, and give the layout that follows."""
        asked = layout.label_from == FOLDER
        has_picture = self._spans[:, 2] >= 0
        pictures = [key for key, has in zip(keys, has_picture, strict=True) if has]
        if not asked and (layout.reads_json or layout.reads_text):
            if len({folder_of(key) for key in pictures}) > 1:
                self.notes += (
                    "folders in the tars are not taken for classes, as samples have JSON or text: "
                    "label_column='folder' (--label-column folder) takes them",
                )
            return layout
        found = class_folders(pictures, folders, where=self.location, names=names)
        if found is None:
            if asked:
                raise SourceError(f"{self.location}: all its pictures lie in one folder, so folders are no labels")
            return layout
        if 1 < len(pictures) == found.num_populated:
            raise SourceError(
                f"{self.location}: each of its {len(pictures)} pictures lies in a folder of its own, so folders are no "
                "labels: encode without labels with label_column='none' (--label-column none)"
            )
        self.class_names = found.names
        self._labels = np.array([found.label(k) if p else -1 for k, p in zip(keys, has_picture, strict=True)], np.int32)
        if names is not None and found.names != names:
            self.notes += ("the file of class names does not hold all the folders' names, so it was not used",)
        return replace(layout, label_from=FOLDER, class_names=found.names)

    def read(self, index: int) -> Sample:
        tar, copies, *numbers = (int(value) for value in self._spans[index])
        layout = self._reader.layout
        members = {
            name: (numbers[2 * i], numbers[2 * i + 1])
            for i, name in enumerate((layout.image_column or "jpg", *_MEMBERS))
            if numbers[2 * i] >= 0
        }
        path, key = self._tars[tar], self._keys[index]
        label = int(self._labels[index]) if layout.label_from == FOLDER else None
        group = Group(key, members, copies)
        return self._reader.sample(path, group, name=f"{Path(path).name}/{key}", folder_label=label)

    def version(self, index: int) -> str | None:
        return self._reader.tars.version(self._tars[int(self._spans[index][0])])


class TarStream(Source):
    """Remote tars in order, each fetched whole (with the store's retries) to a temporary file and read there.

    Folders are classes where `TarSource` would say so, if the class names beside the tars hold their names: a stream
    does not tell all of them in advance.
    """

    kind = "wds-stream"
    num_items = None

    def __init__(
        self,
        urls: list[str],
        *,
        location: str,
        image_column: str | None = None,
        label_column: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.location = location
        self._urls = urls
        self._options = dict(storage_options or {})
        image = _image_extension(image_column)
        with tempfile.TemporaryDirectory(prefix="walloc_data-") as folder:
            names = self._class_names(urls[0])
            path = self._fetch(urls[0], Path(folder))
            found = list(groups(path, where=urls[0]))
            if not found:
                raise SourceError(f"{urls[0]}: no samples")
            pictures = [group for group in found if picture_of(group, image) is not None]
            if not pictures:
                raise _no_picture(urls[0], found[0], image)
            layout = layout_of(str(path), pictures[0], where=urls[0], names=names, image=image, label=label_column)
        bare = label_column is None and layout.label_from is None and not (layout.reads_json or layout.reads_text)
        if layout.label_from == FOLDER or (bare and len({folder_of(group.key) for group in pictures}) > 1):
            layout = replace(layout, label_from=FOLDER)
            if names is None or not any(set(folder_of(group.key)) & set(names) for group in pictures):
                example = pictures[0].key
                raise SourceError(
                    f"{location}: its pictures lie in folders, e.g. {example!r}, and a stream does not tell all of "
                    "them in advance: put a file classnames.txt with the folders' names, one a line, beside the tars; "
                    "or encode without labels with label_column='none' (--label-column none)"
                )
        self._layout = layout
        self._numbers = {name: index for index, name in enumerate(names or ())}
        self.labelled = layout.label_from is not None
        self.class_names = names if self.labelled else None
        self.columns = layout.columns
        self.identity = fingerprint([image_column, layout.label_from, *(url.rpartition("/")[2] for url in urls)])

    def _fetch(self, url: str, folder: Path) -> Path:
        parent, _, name = url.rpartition("/")
        target = folder / "input.tar"
        try:
            Store(parent, storage_options=self._options).download(name, target)
        except StorageError as error:
            raise SourceError(f"{url}: {error}; run the same command to resume") from error
        return target

    def _version(self, url: str) -> str:
        parent, _, name = url.rpartition("/")
        etag = Store(parent, storage_options=self._options).etag(name)
        return f"a tar with the ETag {etag}" if etag else "a tar without an ETag"

    def _class_names(self, url: str) -> tuple[str, ...] | None:
        store = Store(url.rpartition("/")[0], storage_options=self._options)
        for name in CLASS_NAME_FILES:
            if store.exists(name):
                return _lines(store.read_bytes(name, max_bytes=MAX_META_BYTES))
        return None

    def read(self, index: int) -> Sample:
        raise TypeError("a stream has no positions")

    def stream(self) -> Iterator[Sample]:
        with tempfile.TemporaryDirectory(prefix="walloc_data-") as folder:
            for url in self._urls:
                path = self._fetch(url, Path(folder))
                version = self._version(url)
                reader, scan = Reader(self._layout), TarScan()
                try:
                    for group in groups(path, where=url, scan=scan):
                        label = next(
                            (self._numbers[part] for part in folder_of(group.key)[::-1] if part in self._numbers), None
                        )
                        name = f"{url.rpartition('/')[2]}/{group.key}"
                        sample = reader.sample(str(path), group, name=name, folder_label=label, version=version)
                        yield replace(sample, left_out=sample.left_out + self._left_out(group, scan))
                finally:
                    reader.tars.close()

    def _left_out(self, group: Group, scan: TarScan) -> tuple[str, ...]:
        """A group's other members, and what was met in the tar since the group before."""
        members = left_out_members(group, self._layout) if picture_of(group, self._layout.image_column) else []
        passed = [*scan.strays.elements(), *scan.special.elements()]
        scan.strays.clear()
        scan.special.clear()
        return (*(f"member {name}" for name in members), *(f"member {name}, not a sample's" for name in passed))


def _class_names(folders: set[Path]) -> tuple[str, ...] | None:
    for folder in sorted(folders):
        for name in CLASS_NAME_FILES:
            path = folder / name
            if path.is_file() and path.stat().st_size <= MAX_META_BYTES:
                return _lines(path.read_bytes())
    return None


def _lines(data: bytes) -> tuple[str, ...]:
    return tuple(line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip())


def open_tars(
    text: str,
    *,
    image_column: str | None,
    label_column: str | None,
    storage_options: Mapping[str, Any] | None,
) -> Source:
    """The source that fits ``wds:URLS``: by position where all tars are local, a stream otherwise."""
    location = f"wds:{text}"
    urls = expand_urls(text)
    remote = ["://" in url and not url.startswith("file://") for url in urls]
    if any(remote):
        if not all(remote):
            raise SourceError(f"{location}: local and remote tars in one source")
        found = [match for url in urls for match in _remote_matches(url, storage_options)]
        return TarStream(
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
    root, _, last = folder.rpartition("/")
    if root.endswith("/"):
        raise SourceError(f"wds:{url}: a pattern directly in a bucket is not listed; use a range such as {{000..012}}")
    store = Store(root, storage_options=storage_options)
    found = [f"{root}/{path}" for path in store.list(last) if fnmatch.fnmatchcase(path.rpartition("/")[2], name)]
    if not found:
        raise SourceError(f"wds:{url}: nothing matches")
    return found
