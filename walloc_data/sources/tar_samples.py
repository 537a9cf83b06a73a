"""Conversion of WebDataset samples to pictures with labels and columns, by one layout per source."""

import json
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from walloc_data.errors import SourceError
from walloc_data.pictures import PICTURE_SUFFIXES
from walloc_data.sources.base import MAX_COLUMN_BYTES, Sample, json_columns, label_problem
from walloc_data.sources.reading import MAX_PICTURE_BYTES, file_version, open_file, unreadable
from walloc_data.sources.tar_members import Group

__all__ = [
    "FOLDER",
    "Layout",
    "Reader",
    "image_extension",
    "json_of",
    "layout_of",
    "left_out_members",
    "lines_of",
    "misplaced_labels",
    "no_picture",
    "parse_meta",
    "picture_of",
]

CLASS_NAME_FILES = ("classnames.txt", "classes.txt")
FOLDER = "folder"  # as a label column: the folders in the tar are the classes
TEXT = "txt"  # the member that holds a caption
MAX_META_BYTES = 2**20  # of a .cls or .json member
MAX_LABEL_BYTES = 256
MAX_OPEN_TARS = 64
_LABEL_FIELDS = ("label", "cls")
_NUMBER = re.compile(r"-?[0-9]{1,18}")  # int() also takes 1_0 and digits of other scripts


@dataclass(frozen=True)
class Layout:
    """Layout of samples, determined by the first picture, so that all samples have the same fields."""

    image_column: str | None  # the extension of the picture; None: the first that looks like one
    label_from: str | None  # "cls", a field of the JSON, FOLDER, or None
    class_names: tuple[str, ...] | None
    columns: tuple[str, ...]  # fields of the JSON; TEXT where it is a member
    reads_json: bool
    reads_text: bool


class _OpenTars:
    """Cache of the most recently read tars, kept open; not pickled."""

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
            self._files[path] = open_file(Path(path))
            if len(self._files) > MAX_OPEN_TARS:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


class Reader:
    """Converter of groups to samples, by one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.tars = _OpenTars()
        self._numbers = {name: index for index, name in enumerate(layout.class_names or ())}

    def sample(
        self, path: str, group: Group, *, name: str, folder_label: int | None = None, version: str | None = None
    ) -> Sample:
        """Return the picture of a group, with label and columns, or with a `problem`.

        Args:
            version: version of the tar; None: that of the file at `path`.

        Raises:
            SourceError: the tar cannot be read, or was truncated after it was opened.
        """
        layout = self.layout
        nothing: dict[str, Any] = dict.fromkeys(layout.columns)
        if group.problem is not None:
            return Sample(name, b"", None, nothing, group.problem)
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
            if span[1] > MAX_PICTURE_BYTES:
                return Sample(name, b"", label, columns, f"{span[1]} bytes; at most {MAX_PICTURE_BYTES} are read")
            data = self.tars.read(path, *span)
        except SourceError:
            raise
        except (ValueError, RecursionError) as error:
            return Sample(name, b"", None, nothing, f"cannot be read: {error}")
        problem = None
        if layout.label_from is not None:
            problem = label_problem(label, layout.class_names)
            label = None if problem else label
        return Sample(name, data, label, columns, problem, left_out, version or self.tars.version(path))

    def _label(self, path: str, group: Group, meta: Mapping[str, Any]) -> int | None:
        if self.layout.label_from is None:
            return None
        if self.layout.label_from == "cls":
            if "cls" not in group.members:
                return None
            offset, num_bytes = group.members["cls"]
            text = self.tars.read(path, offset, min(num_bytes, MAX_LABEL_BYTES)).decode("utf-8", "replace").strip()
            return int(text) if _NUMBER.fullmatch(text) else self._number(text)
        value = meta.get(self.layout.label_from)
        if isinstance(value, str):
            return self._number(value)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            raise ValueError(f"its label {name[:MAX_LABEL_BYTES]!r} is neither a number nor a class name")
        return self._numbers[name]

    def _text(self, path: str, group: Group) -> str:
        """Return a caption, or a little more of it than a column may hold."""
        offset, num_bytes = group.members[TEXT]
        return self.tars.read(path, offset, min(num_bytes, MAX_COLUMN_BYTES + 1)).decode("utf-8", "replace")


def _json_member(tars: _OpenTars, path: str, group: Group) -> dict[str, Any]:
    offset, num_bytes = group.members["json"]
    if num_bytes > MAX_META_BYTES:
        raise ValueError(f"its JSON has {num_bytes} bytes; at most {MAX_META_BYTES} are read")
    return parse_meta(tars.read(path, offset, num_bytes))


def parse_meta(data: bytes) -> dict[str, Any]:
    """Return the JSON of a sample; raise ValueError if it is invalid."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("its JSON is not an object")
    return value


def picture_of(group: Group, image_column: str | None) -> tuple[int, int] | None:
    """Return the position of a group's picture; None if it has none."""
    if image_column is not None:
        return group.members.get(image_column)
    return next((span for extension, span in group.members.items() if f".{extension}" in PICTURE_SUFFIXES), None)


def left_out_members(group: Group, layout: Layout) -> list[str]:
    """Return the extensions of a group's unused members."""
    taken = (
        ({"cls"} if layout.label_from in (None, "cls") else set())
        | ({"json"} if layout.reads_json else set())
        | ({TEXT} if layout.reads_text else set())
    )
    picture = picture_of(group, layout.image_column)
    return [f".{name}" for name, span in group.members.items() if name not in taken and span != picture]


def json_of(path: str, group: Group, *, context: str) -> dict[str, Any]:
    """Return the JSON of the first sample of a local tar, which determines the columns.

    Raises:
        SourceError: the sample cannot be read.
    """
    tars = _OpenTars()
    try:
        return _json_member(tars, path, group) if "json" in group.members else {}
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{context}: the first sample, {group.key!r}: {error}") from error
    finally:
        tars.close()


def layout_of(
    group: Group,
    meta: Mapping[str, Any],
    *,
    context: str,
    names: tuple[str, ...] | None,
    image: str | None,
    label: str | None,
) -> Layout:
    """Return the layout of a source whose first group with a picture is `group`, with the JSON `meta`.

    Raises:
        SourceError: the sample does not have this label.
    """
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
            f"{context}: the first sample, {group.key!r}, has no label {label!r}; "
            f"its members are {sorted(group.members)} and its JSON has {sorted(meta)}"
        )
    if label_from is not None and isinstance(meta.get(label_from), str) and not names:
        raise SourceError(
            f"{context}: labels are text, {meta[label_from][:MAX_LABEL_BYTES]!r} for the first sample: put a file "
            "classnames.txt with all of them, one per line, next to the tars; or encode without labels with "
            "label_column='none' (--label-column none), which keeps the text"
        )
    reads_text = TEXT in group.members and TEXT not in meta and image != TEXT
    columns = sorted({name for name in meta if name != label_from} | ({TEXT} if reads_text else set()))
    reads_json = "json" in group.members and image != "json"
    return Layout(image, label_from, names or None, tuple(columns), reads_json, reads_text)


def image_extension(image_column: str | None) -> str | None:
    """Return the extension given by `image_column`."""
    return image_column.lower().removeprefix(".") if image_column else None


def lines_of(data: bytes) -> tuple[str, ...]:
    """Return the names in a file of class names."""
    return tuple(line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip())


def no_picture(context: str, group: Group, image: str | None) -> SourceError:
    """Return the error for a source in which no sample has a picture; `group` is its first sample."""
    return SourceError(
        f"{context}: the first sample, {group.key!r}, has no {image or 'picture'} among its members "
        f"{sorted(group.members)}, nor has any other: name the picture's extension with image_column (--image-column)"
    )


def misplaced_labels(context: str, number: int) -> SourceError:
    """Return the error for labels that the first sample, which determines the layout, does not have."""
    return SourceError(
        f"{context}: {number} samples have a label (.cls), but the first with a picture has none. Members of one "
        "sample must follow each other (tar --sort=name); label_column='none' (--label-column none) encodes "
        "without labels"
    )
