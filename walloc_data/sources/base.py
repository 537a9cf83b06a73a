"""Base class of sources: a description, and encoded pictures, by position or in fragments."""

import hashlib
import json
import tempfile
from abc import ABC
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, overload

import numpy as np

__all__ = [
    "PackedStrings",
    "Sample",
    "Source",
    "SourceWrapper",
    "fingerprint",
    "json_columns",
    "json_value",
    "label_problem",
]

MAX_COLUMN_BYTES = 2**20  # per value, as JSON


@dataclass(frozen=True)
class Sample:
    """Picture of a source, as the bytes of its file.

    `problem` is the reason why there is no picture or no valid label; the converter records it as a failure.

    Example:
        >>> from walloc_data.sources import open_source
        >>> sample = open_source("pictures").read(4)
        >>> sample.name, sample.label, sample.problem
        ('coffee/0.jpg', 1, None)
    """

    name: str  # a path or an id inside the source
    data: bytes
    label: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    left_out: tuple[str, ...] = ()  # what of this sample is not encoded, e.g. "column 'x' over 1024 KiB"; counted
    version: str | None = None  # version of the file, such as its time or ETag, if known
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # second pictures, as bytes of files


class Source(ABC):
    """Pictures in a fixed order, which workers read from a pickled copy of the source.

    If `num_items` is an integer, pictures are read by position: `read(i)` for i in [0, num_items). If it is None, they
    are read in fragments: `read_fragment(i)` for i in [0, num_fragments). A fragment is a tar in an object store, or a
    shard of a streamed Hugging Face data set; its number of pictures is known after it was read.

    Sources must be picklable, without open files. They are read by one thread at a time.

    Example:
        >>> from walloc_data.sources import open_source
        >>> source = open_source("pictures")
        >>> source.kind, source.num_items, source.class_names
        ('folder', 8, ('cat', 'coffee'))
        >>> [sample.label for sample in source.stream()]
        [0, 0, 0, 0, 1, 1, 1, 1]
    """

    kind: str
    location: str
    num_items: int | None  # None: read in fragments
    num_fragments: int | None = None  # None: read by position
    fragment_bytes: Sequence[int] | None = None  # length of each fragment, if known
    labelled: bool
    class_names: tuple[str, ...] | None = None
    columns: tuple[str, ...] = ()  # of every sample, besides picture and label
    column_types: Mapping[str, Any] = MappingProxyType({})  # as `format.ColumnType` describes them, where it is known
    column_classes: Mapping[str, Sequence[str]] = MappingProxyType({})  # names by number, of columns of class numbers
    pictures: tuple[str, ...] = ()  # second pictures of samples that are kept, such as masks
    notes: tuple[str, ...] = ()  # what a user should know: columns left out, files ignored
    identity: str = ""  # a cheap hash of the content: equal contents, equal identities

    def describe(self) -> dict[str, Any]:
        """Return the description for the manifest and the plan; a resumed conversion must have the same, except for its
        location and notes.
        """
        number = {} if self.num_fragments is None else {"num_fragments": self.num_fragments}
        return {
            "kind": self.kind,
            "location": published_location(self.location),
            "num_items": self.num_items,
            **number,
            "identity": self.identity,
            **({"pictures": list(self.pictures)} if self.pictures else {}),
            "labelled": self.labelled,
            "columns": list(self.columns),
            "column_types": dict(self.column_types),
            "column_classes": {name: list(names) for name, names in self.column_classes.items()},
            "notes": list(self.notes),
        }

    def read(self, index: int) -> Sample:
        """Return the sample at a position in [0, num_items).

        Raises:
            TypeError: the source is read in fragments.
        """
        raise TypeError(f"{self.location}: read in fragments, so that it has no positions")

    def version(self, index: int) -> str | None:
        """Return the version of the sample at a position (`Sample.version`), without reading it; None if unknown."""
        return None

    def read_fragment(self, fragment: int, *, scratch: Path) -> Iterator[Sample]:
        """Return the samples of a fragment in [0, num_fragments), in order.

        If the fragment is damaged, such as a truncated tar, the last sample has a `problem`.

        Args:
            scratch: folder for temporary files, which are deleted at the end.

        Raises:
            TypeError: the source is read by position.
        """
        raise TypeError(f"{self.location}: read by position, so that it has no fragments")

    def fragment_name(self, fragment: int) -> str:
        """Return a fragment's name for messages."""
        return f"fragment {fragment} of {self.num_fragments}"

    def fragment_version(self, fragment: int) -> str | None:
        """Return the version of a fragment, such as its ETag, without reading the fragment; None if unknown."""
        return None

    def stream(self) -> Iterator[Sample]:
        """Yield all samples in order."""
        if self.num_items is not None:
            yield from map(self.read, range(self.num_items))
            return
        with tempfile.TemporaryDirectory(prefix="walloc_data-") as scratch:
            for fragment in range(self.num_fragments or 0):
                yield from self.read_fragment(fragment, scratch=Path(scratch))


class SourceWrapper(Source):
    """Source that presents another source; subclasses change its samples or its description.

    Args:
        source: the other source, whose attributes are copied.

    Example:
        >>> from walloc_data.sources import open_source
        >>> from walloc_data.sources.base import SourceWrapper
        >>> SourceWrapper(open_source("pictures")).read(4).name
        'coffee/0.jpg'
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        for name in Source.__annotations__:
            setattr(self, name, getattr(source, name))

    def describe(self) -> dict[str, Any]:
        return self._source.describe()

    def read(self, index: int) -> Sample:
        return self._source.read(index)

    def version(self, index: int) -> str | None:
        return self._source.version(index)

    def read_fragment(self, fragment: int, *, scratch: Path) -> Iterator[Sample]:
        return self._source.read_fragment(fragment, scratch=scratch)

    def fragment_name(self, fragment: int) -> str:
        return self._source.fragment_name(fragment)

    def fragment_version(self, fragment: int) -> str | None:
        return self._source.fragment_version(fragment)


def label_problem(label: object, class_names: Sequence[str] | None) -> str | None:
    """Return the problem with a label, which must be the number of a class; None if it is valid.

    Example:
        >>> from walloc_data.sources.base import label_problem
        >>> label_problem(2, ("cat", "dog")), label_problem(None, None)
        ('label 2 is not in [0, 2), the numbers of the classes', 'it has no label')
    """
    if label is None:
        return "it has no label"
    limit = len(class_names) if class_names else 2**31
    if not isinstance(label, bool) and isinstance(label, int) and 0 <= label < limit:
        return None
    if class_names:
        return f"label {label!r} is not in [0, {limit}), the numbers of the classes"
    return f"label {label!r} is not the number of a class, an integer of at least 0"


def published_location(location: str) -> str:
    """Return the location of a source for publication: local paths without the folders above.

    Manifests are published with data sets, and should not contain paths of a machine.

    Example:
        >>> from walloc_data.sources.base import published_location
        >>> published_location("/home/me/photos"), published_location("wds:/data/me/cats/{000..012}.tar")
        ('photos', 'wds:cats/{000..012}.tar')
        >>> published_location("hf:uoft-cs/cifar10"), published_location("wds:s3://bucket/a.tar")
        ('hf:uoft-cs/cifar10', 'wds:s3://bucket/a.tar')
    """
    if location.startswith(("hf:", "datasets:")):
        return location
    prefix = next((kind for kind in ("folder:", "parquet:", "wds:") if location.startswith(kind)), "")
    return prefix + "::".join(map(_without_folders, location.removeprefix(prefix).split("::")))


def _without_folders(path: str) -> str:
    path = path.removeprefix("file://")
    if "://" in path:
        return path
    parts = PurePath(path).parts
    kept = 2 if parts and set(parts[-1]) & set("*?[{") else 1  # a pattern needs its folder to be informative
    return "/".join(part for part in parts[-kept:] if part not in ("/", "..", ".", "~"))


class PackedStrings(Sequence[str]):
    """Sequence of strings in one buffer, to save the memory of a Python object per file name."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "list[str]": ...
    def __getitem__(self, index: int | slice) -> "str | list[str]":
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return self._text[start : int(self._ends[index])].decode("utf-8", "surrogateescape")


def fingerprint(parts: Iterable[object]) -> str:
    """Return 16 hexadecimal digits that change when any part's text changes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(part).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def json_columns(values: Mapping[str, Any], names: Iterable[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the named values as JSON values, and descriptions of values that are left out."""
    columns = {name: json_value(values.get(name)) for name in names}
    lost = (name for name, value in columns.items() if value is None and values.get(name) is not None)
    return columns, tuple(f"value of column {name!r}, over {MAX_COLUMN_BYTES // 1024} KiB or not JSON" for name in lost)


def json_value(value: Any) -> Any:
    """Convert a value of a source to a JSON value (or NaN or infinity). Dates become ISO text.

    Values without a JSON representation, and values of more than 1 MiB, become None.
    """
    converted = _json(value)
    if isinstance(converted, str | list | dict) and len(json.dumps(converted)) > MAX_COLUMN_BYTES:
        return None
    return converted


def _json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # lone surrogates are not valid JSON text
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, np.generic):
        return _json(value.item())
    return None
