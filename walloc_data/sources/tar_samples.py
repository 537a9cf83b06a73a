"""Samples of a WebDataset tar: members grouped as webdataset groups them, and made into pictures with labels."""

import json
import os
import re
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from walloc_data.errors import SourceError
from walloc_data.pictures import PICTURE_SUFFIXES
from walloc_data.sources.base import MAX_COLUMN_BYTES, Sample, json_columns
from walloc_data.sources.reading import file_version, unreadable
from walloc_data.sources.stray import is_stray, listed, stray_note

__all__ = ["FOLDER", "Group", "Layout", "Reader", "TarScan", "groups", "layout_of", "left_out_members", "picture_of"]

FOLDER = "folder"  # as a label column: the folders in the tar are the classes
TEXT = "txt"  # the member that holds a caption
MAX_MEMBER_BYTES = 2**31
MAX_META_BYTES = 2**20  # of a .cls or .json member
MAX_LABEL_BYTES = 256
MAX_OPEN_TARS = 64
_LABEL_FIELDS = ("label", "cls")
_META_MEMBER = re.compile(r"__[^/]*__(/|$)")  # webdataset keeps these names for itself


@dataclass(frozen=True)
class Group:
    """Adjacent members of one sample: extension to (offset, bytes) inside the tar."""

    key: str
    members: Mapping[str, tuple[int, int]]
    copies: int = 1  # samples side by side under this one key: none of them can be told from the others


@dataclass(frozen=True)
class Layout:
    """How to make a sample of a group; found once, from the first picture, so that all samples have the same fields."""

    image_column: str | None  # the extension of the picture; None: the first that looks like one
    label_from: str | None  # "cls", a field of the JSON, FOLDER, or None
    class_names: tuple[str, ...] | None
    columns: tuple[str, ...]  # fields of the JSON; TEXT where it is a member
    reads_json: bool
    reads_text: bool


@dataclass
class TarScan:
    """What a walk over tars' headers met besides samples."""

    strays: Counter[str] = field(default_factory=Counter)  # by name
    special: Counter[str] = field(default_factory=Counter)  # links and the like, by kind
    folders: set[str] = field(default_factory=set)

    def notes(self) -> tuple[str, ...]:
        """Return what was left out, with numbers."""
        special = (f"left out: members that are no plain files: {listed(self.special)}",) if self.special else ()
        return stray_note(self.strays) + special


def groups(path: Path, *, where: str, scan: TarScan | None = None) -> Iterator[Group]:
    """Samples of one local tar, by reading headers only.

    A key is the path up to the first dot of its last part. Members of one key that follow each other, once what
    `is_stray` names has been left out, are one sample, as in webdataset. Where an extension comes again, webdataset
    gives up; here each repetition is a sample of its own, with `copies` saying how many there are.
    """
    scan = scan if scan is not None else TarScan()
    try:
        with tarfile.open(path, "r:") as tar:
            key, members = "", dict[str, list[tuple[int, int]]]()
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
                name = _member_name(member, scan)
                if name is None:
                    continue
                folder, _, last = name.rpartition("/")
                stem, dot, extension = last.partition(".")
                if not stem or not dot:
                    continue
                this = f"{folder}/{stem}" if folder else stem
                if this != key and members:
                    yield from _apart(key, members)
                    members = {}
                key = this
                members.setdefault(extension.lower(), []).append((member.offset_data, member.size))
            if members:
                yield from _apart(key, members)
    except (OSError, tarfile.TarError) as error:
        remedy = "; compressed tars cannot be read by position: decompress them" if path.suffix != ".tar" else ""
        raise SourceError(f"{where}: not a readable tar ({error}){remedy}") from error


def _member_name(member: tarfile.TarInfo, scan: TarScan) -> str | None:
    """The name of a member that may belong to a sample; all others are counted."""
    name = member.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    stray = next((part for part in parts if is_stray(part)), None)
    if stray is not None:
        scan.strays[stray] += 1
    elif member.isdir():
        scan.folders.add("/".join(parts))
    elif _META_MEMBER.match(name):
        scan.special["webdataset metadata"] += 1
    elif not member.isreg() or member.issparse():
        scan.special["links" if member.islnk() or member.issym() else "pipes, devices or sparse files"] += 1
    else:
        return name
    return None


def _apart(key: str, members: Mapping[str, list[tuple[int, int]]]) -> Iterator[Group]:
    """One group, or as many as its most frequent extension occurs."""
    copies = max(map(len, members.values()))
    for number in range(copies):
        yield Group(key, {name: spans[number] for name, spans in members.items() if number < len(spans)}, copies)


class _OpenTars:
    """The few tars read last, kept open; none travels with a pickle."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": OrderedDict()}

    def __del__(self) -> None:
        self.close()

    def read(self, path: str, offset: int, num_bytes: int) -> bytes:
        try:
            file = self._open(path)
            file.seek(offset)
            data = file.read(num_bytes)
        except OSError as error:
            raise unreadable(path, error) from error
        if len(data) != num_bytes:
            raise unreadable(path, f"it ends {num_bytes - len(data)} bytes early, and did not when it was opened")
        return data

    def version(self, path: str) -> str:
        try:
            status = os.fstat(self._open(path).fileno())
            return file_version(status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise unreadable(path, error) from error

    def _open(self, path: str) -> BinaryIO:
        if path not in self._files:
            self._files[path] = Path(path).open("rb")  # noqa: SIM115  # closed by close
            if len(self._files) > MAX_OPEN_TARS:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


class Reader:
    """Makes samples of groups, by one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.tars = _OpenTars()
        self._numbers = {name: index for index, name in enumerate(layout.class_names or ())}

    def sample(
        self, path: str, group: Group, *, name: str, folder_label: int | None = None, version: str | None = None
    ) -> Sample:
        """The picture of a group, with its label and columns; what is wrong with it is the sample's problem.

        Args:
            version: of the tar; None: that of the file at `path`.

        Raises:
            SourceError: the tar cannot be read, or not as far as it could be when it was opened.
        """
        layout = self.layout
        nothing: dict[str, Any] = dict.fromkeys(layout.columns)
        if group.copies > 1:
            reason = (
                f"{group.copies} samples of this tar follow each other under the one name {group.key!r}: which label "
                "belongs to which picture cannot be told; give each a name of its own"
            )
            return Sample(name, b"", None, nothing, reason)
        try:
            meta = _json_member(self.tars, path, group) if layout.reads_json and "json" in group.members else {}
            label = folder_label if layout.label_from == FOLDER else self._label(path, group, meta)
            if layout.reads_text and TEXT in group.members:
                meta[TEXT] = self._text(path, group)
            columns, left_out = json_columns(meta, layout.columns)
            unknown = sorted(meta.keys() - {*layout.columns, layout.label_from})
            left_out += tuple(f"JSON field {field!r}, which the first sample lacks" for field in unknown)
            span = picture_of(group, layout.image_column)
            if span is None:
                return Sample(name, b"", label, columns, f"no picture among its members {sorted(group.members)}")
            if span[1] > MAX_MEMBER_BYTES:
                return Sample(name, b"", label, columns, f"{span[1]} bytes; at most {MAX_MEMBER_BYTES} are read")
            data = self.tars.read(path, *span)
        except SourceError:
            raise
        except (ValueError, RecursionError) as error:
            return Sample(name, b"", None, nothing, f"cannot be read: {error}")
        problem = None
        if layout.label_from is not None:
            limit = len(layout.class_names) if layout.class_names else 2**31
            if label is None or not 0 <= label < limit:
                problem, label = f"label {label} is not in [0, {limit})", None
        return Sample(name, data, label, columns, problem, left_out, version or self.tars.version(path))

    def _label(self, path: str, group: Group, meta: Mapping[str, Any]) -> int | None:
        if self.layout.label_from is None:
            return None
        if self.layout.label_from == "cls":
            if "cls" not in group.members:
                return None
            offset, num_bytes = group.members["cls"]
            text = self.tars.read(path, offset, min(num_bytes, MAX_LABEL_BYTES)).decode("utf-8", "replace").strip()
            return int(text) if text.removeprefix("-").isdecimal() else self._number(text)
        value = meta.get(self.layout.label_from)
        if isinstance(value, str):
            return self._number(value)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            raise ValueError(f"its label {name[:MAX_LABEL_BYTES]!r} is neither a number nor a class name")
        return self._numbers[name]

    def _text(self, path: str, group: Group) -> str:
        """A caption, or a little more of it than a column may hold."""
        offset, num_bytes = group.members[TEXT]
        return self.tars.read(path, offset, min(num_bytes, MAX_COLUMN_BYTES + 1)).decode("utf-8", "replace")


def _json_member(tars: _OpenTars, path: str, group: Group) -> dict[str, Any]:
    offset, num_bytes = group.members["json"]
    if num_bytes > MAX_META_BYTES:
        raise ValueError(f"its JSON has {num_bytes} bytes; at most {MAX_META_BYTES} are read")
    value = json.loads(tars.read(path, offset, num_bytes))
    if not isinstance(value, dict):
        raise ValueError("its JSON is not an object")
    return value


def picture_of(group: Group, image_column: str | None) -> tuple[int, int] | None:
    """Return where a group's picture lies; None if it has none."""
    if image_column is not None:
        return group.members.get(image_column)
    return next((span for extension, span in group.members.items() if f".{extension}" in PICTURE_SUFFIXES), None)


def left_out_members(group: Group, layout: Layout) -> list[str]:
    """Extensions of a group's members that no sample takes up."""
    taken = {"cls"} | ({"json"} if layout.reads_json else set()) | ({TEXT} if layout.reads_text else set())
    picture = picture_of(group, layout.image_column)
    return [f".{name}" for name, span in group.members.items() if name not in taken and span != picture]


def layout_of(
    path: str, group: Group, *, where: str, names: tuple[str, ...] | None, image: str | None, label: str | None
) -> Layout:
    """The layout of a source whose first group with a picture is `group`.

    Raises:
        SourceError: it has no such label, or its JSON cannot be read.
    """
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
            label_from = next((name for name in _LABEL_FIELDS if isinstance(meta.get(name), int | str)), None)
    elif (
        label_from is not None
        and label_from not in meta
        and not (label_from == "cls" and "cls" in group.members)
        and label_from != FOLDER
    ):
        raise SourceError(
            f"{where}: the first sample, {group.key!r}, has no label {label!r}; "
            f"its members are {sorted(group.members)} and its JSON has {sorted(meta)}"
        )
    if label_from is not None and isinstance(meta.get(label_from), str) and not names:
        raise SourceError(
            f"{where}: labels are text, {meta[label_from][:MAX_LABEL_BYTES]!r} for the first sample: put a file "
            "classnames.txt with all of them, one a line, beside the tars; or encode without labels with "
            "label_column='none' (--label-column none), which keeps the text"
        )
    reads_text = TEXT in group.members and TEXT not in meta and image != TEXT
    columns = sorted({name for name in meta if name != label_from} | ({TEXT} if reads_text else set()))
    reads_json = "json" in group.members and image != "json"
    return Layout(image, label_from, names or None, tuple(columns), reads_json, reads_text)
