"""WebDataset tars: local ones are indexed and read by position, remote ones are fetched one by one and streamed."""

import fnmatch
import glob
import json
import os
import re
import tarfile
import tempfile
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from walloc_data.errors import SourceError, StorageError
from walloc_data.sources.base import PICTURE_SUFFIXES, Names, Sample, Source, fingerprint, json_value
from walloc_data.storage import Store

__all__ = ["TarSource", "TarStream", "expand_urls"]

CLASS_NAME_FILES = ("classnames.txt", "classes.txt")
MAX_MEMBER_BYTES = 2**31
MAX_META_BYTES = 2**20  # of a .cls or .json member
MAX_OPEN_TARS = 64
_RANGE = re.compile(r"\{([^{}]*)\}")
_LABEL_FIELDS = ("label", "cls")


@dataclass(frozen=True)
class _Group:
    """Adjacent members of one sample: extension to (offset, bytes) inside the tar."""

    key: str
    members: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class _Layout:
    """How to make a sample of a group; found once, from the first sample, so that all samples have the same fields."""

    image_column: str | None  # the extension of the picture; None: the first that looks like one
    label_from: str | None  # "cls", a field of the JSON, or None
    num_classes: int | None
    columns: tuple[str, ...]


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
    first, dots, last = match[1].partition("..")
    if dots:
        if not (first.isdigit() and last.isdigit()) or int(last) < int(first) or int(last) - int(first) > 10**6:
            raise SourceError(f"wds:{text}: {match[0]} is not a range of numbers such as {{000..012}}")
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = match[1].split(",")
    return [text[: match.start()] + choice + tail for choice in choices for tail in _expand(text[match.end() :])]


def _groups(path: Path, *, where: str) -> Iterator[_Group]:
    """Samples of one local tar, by reading headers only."""
    try:
        with tarfile.open(path, "r:") as tar:
            key, members = "", dict[str, tuple[int, int]]()
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
                folder, _, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                if not member.isreg() or not stem or not dot:
                    continue
                this = f"{folder}/{stem}" if folder else stem
                if this != key and members:
                    yield _Group(key, members)
                    members = {}
                key = this
                members[extension.lower()] = (member.offset_data, member.size)
            if members:
                yield _Group(key, members)
    except (OSError, tarfile.TarError) as error:
        remedy = "; compressed tars cannot be read by position: decompress them" if path.suffix != ".tar" else ""
        raise SourceError(f"{where}: not a readable tar ({error}){remedy}") from error


class _OpenTars:
    """The few tars read last, kept open; none travels with a pickle."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": OrderedDict()}

    def read(self, path: str, offset: int, num_bytes: int) -> bytes:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
            if len(self._files) > MAX_OPEN_TARS:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(path)
        data = os.pread(self._files[path], num_bytes, offset)
        if len(data) != num_bytes:
            raise OSError(f"the tar ends {num_bytes - len(data)} bytes early")
        return data

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])


class _Reader:
    """Makes samples of groups, by one layout."""

    def __init__(self, layout: _Layout) -> None:
        self.layout = layout
        self.tars = _OpenTars()

    def sample(self, path: str, group: _Group, *, name: str) -> Sample:
        layout = self.layout
        try:
            meta, label = self._meta(path, group)
            columns = {column: json_value(meta.get(column)) for column in layout.columns}
            span = _picture_span(group, layout.image_column)
            if span is None:
                return Sample(name, b"", label, columns, f"no picture among its members {sorted(group.members)}")
            if span[1] > MAX_MEMBER_BYTES:
                return Sample(name, b"", label, columns, f"{span[1]} bytes; at most {MAX_MEMBER_BYTES} are read")
            data = self.tars.read(path, *span)
        except (OSError, ValueError, RecursionError) as error:
            return Sample(name, b"", None, dict.fromkeys(layout.columns), f"cannot be read: {error}")
        problem = None
        if layout.label_from is not None:
            limit = layout.num_classes or 2**31
            if label is None or not 0 <= label < limit:
                problem, label = f"label {label} is not in [0, {limit})", None
        return Sample(name, data, label, columns, problem)

    def _meta(self, path: str, group: _Group) -> tuple[dict[str, Any], int | None]:
        meta: dict[str, Any] = {}
        if "json" in group.members and (self.layout.columns or self.layout.label_from not in (None, "cls")):
            meta = _json_member(self.tars, path, group)
        if self.layout.label_from is None:
            return meta, None
        if self.layout.label_from == "cls":
            if "cls" not in group.members:
                return meta, None
            offset, num_bytes = group.members["cls"]
            return meta, int(self.tars.read(path, offset, min(num_bytes, 32)))
        value = meta.get(self.layout.label_from)
        return meta, value if isinstance(value, int) and not isinstance(value, bool) else None


def _json_member(tars: _OpenTars, path: str, group: _Group) -> dict[str, Any]:
    offset, num_bytes = group.members["json"]
    if num_bytes > MAX_META_BYTES:
        raise ValueError(f"its JSON has {num_bytes} bytes; at most {MAX_META_BYTES} are read")
    value = json.loads(tars.read(path, offset, num_bytes))
    if not isinstance(value, dict):
        raise ValueError("its JSON is not an object")
    return value


def _picture_span(group: _Group, image_column: str | None) -> tuple[int, int] | None:
    if image_column is not None:
        return group.members.get(image_column)
    return next((span for extension, span in group.members.items() if f".{extension}" in PICTURE_SUFFIXES), None)


def _layout(
    path: str, group: _Group, *, where: str, names: tuple[str, ...] | None, image: str | None, label: str | None
) -> _Layout:
    image = image.lower().removeprefix(".") if image else None
    if _picture_span(group, image) is None:
        raise SourceError(
            f"{where}: the first sample, {group.key!r}, has no {image or 'picture'} among its members "
            f"{sorted(group.members)}: name the picture's extension with image_column (--image-column)"
        )
    tars = _OpenTars()
    try:
        meta = _json_member(tars, path, group) if "json" in group.members else {}
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{where}: the first sample, {group.key!r}: {error}") from error
    finally:
        tars.close()
    label_from = None if label == "none" else label
    if label is None:
        if "cls" in group.members:
            label_from = "cls"
        else:
            label_from = next((name for name in _LABEL_FIELDS if isinstance(meta.get(name), int)), None)
    elif label_from is not None and label_from not in meta and not (label_from == "cls" and "cls" in group.members):
        raise SourceError(
            f"{where}: the first sample, {group.key!r}, has no label {label!r}; "
            f"its members are {sorted(group.members)} and its JSON has {sorted(meta)}"
        )
    columns = tuple(sorted(name for name in meta if name != label_from))
    return _Layout(image, label_from, len(names) if names else None, columns)


class TarSource(Source):
    """Local tars, by position. Their headers are read once, here; pictures when a worker asks for them.

    Class names come from a file classnames.txt or classes.txt beside the tars, one name a line.
    """

    kind = "wds"

    def __init__(
        self, paths: list[str], *, location: str, image_column: str | None = None, label_column: str | None = None
    ) -> None:
        self.location = location
        self._tars = paths
        names = _class_names({Path(path).parent for path in paths})
        layout: _Layout | None = None
        keys: list[str] = []
        spans = array("q")  # seven numbers a sample
        for number, path in enumerate(paths):
            for group in _groups(Path(path), where=path):
                if layout is None:
                    layout = _layout(path, group, where=path, names=names, image=image_column, label=label_column)
                keys.append(group.key)
                picture = _picture_span(group, layout.image_column) or (-1, 0)
                for span in ((number,), picture, group.members.get("cls", (-1, 0)), group.members.get("json", (-1, 0))):
                    spans.extend(span)
        if layout is None:
            raise SourceError(f"{location}: no samples in {len(paths)} tars")
        self._spans = np.frombuffer(spans, dtype=np.int64).reshape(-1, 7)
        self._keys = Names(keys)
        self._reader = _Reader(layout)
        self.num_items = len(keys)
        self.labelled = layout.label_from is not None
        self.class_names = names if self.labelled else None
        self.columns = layout.columns
        sizes = [(Path(path).name, Path(path).stat().st_size) for path in paths]
        self.identity = fingerprint([self.num_items, image_column, layout.label_from, *sizes])

    def read(self, index: int) -> Sample:
        tar, *numbers = (int(value) for value in self._spans[index])
        members = {
            name: (numbers[2 * i], numbers[2 * i + 1])
            for i, name in enumerate((self._reader.layout.image_column or "jpg", "cls", "json"))
            if numbers[2 * i] >= 0
        }
        path, key = self._tars[tar], self._keys[index]
        return self._reader.sample(path, _Group(key, members), name=f"{Path(path).name}/{key}")


class TarStream(Source):
    """Remote tars in order, each fetched whole (with the store's retries) to a temporary file and read there."""

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
        with tempfile.TemporaryDirectory(prefix="walloc_data-") as folder:
            names = self._class_names(urls[0])
            path = self._fetch(urls[0], Path(folder))
            group = next(_groups(path, where=urls[0]), None)
            if group is None:
                raise SourceError(f"{urls[0]}: no samples")
            self._layout = _layout(str(path), group, where=urls[0], names=names, image=image_column, label=label_column)
        self.labelled = self._layout.label_from is not None
        self.class_names = names if self.labelled else None
        self.columns = self._layout.columns
        self.identity = fingerprint([image_column, self._layout.label_from, *(url.rpartition("/")[2] for url in urls)])

    def _fetch(self, url: str, folder: Path) -> Path:
        parent, _, name = url.rpartition("/")
        target = folder / "input.tar"
        try:
            Store(parent, storage_options=self._options).download(name, target)
        except StorageError as error:
            raise SourceError(f"{url}: {error}; run the same command to resume") from error
        return target

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
                reader = _Reader(self._layout)
                try:
                    for group in _groups(path, where=url):
                        yield reader.sample(str(path), group, name=f"{url.rpartition('/')[2]}/{group.key}")
                finally:
                    reader.tars.close()


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
