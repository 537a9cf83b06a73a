"""Hugging Face data sets: from the Hub, saved to disk, or in parquet files; by position, or streamed in fragments."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from walloc_data.errors import SourceError
from walloc_data.files import real_path
from walloc_data.format import MAX_TYPE_DEPTH
from walloc_data.sources.base import Sample, Source, fingerprint, json_columns, label_problem
from walloc_data.sources.hub import import_datasets
from walloc_data.sources.reading import NotAFileError, read_file, unreadable
from walloc_data.sources.stray import names_listed

__all__ = ["HuggingFaceSource", "folders_of"]

_LABEL_NAMES = ("label", "labels", "class", "cls", "target")


class HuggingFaceSource(Source):
    """A `datasets.Dataset` or `datasets.IterableDataset` with one column of pictures.

    Pictures are decoded by workers. Other columns are stored; columns of bytes, pictures, sound, video or arrays are
    left out, with a note. A data set with a transform is refused, because the transform would not be applied.

    An `IterableDataset` is read in fragments, one per shard (`num_shards`), or as a single fragment if its contents
    depend on the order of shards (``take``, ``skip``, interleaving, ``shuffle``).

    A row may contain a path instead of bytes. Rows are untrusted, so such files are read only from `folders` and from
    the cache folders of the Hugging Face libraries.

    Args:
        folders: folders of the data set; None: the rows were made by the user's program and may name any file.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        location: str,
        identity: str | None = None,
        folders: Sequence[Path] | None = (),
        image_column: str | None = None,
        label_column: str | None = None,
        keep_pictures: Sequence[str] = (),
    ) -> None:
        datasets = import_datasets(location)
        self.location = location
        self._folders = None if folders is None else tuple(real_path(path) for path in (*folders, *_library_folders()))
        self.kind = "hf-stream" if isinstance(dataset, datasets.IterableDataset) else "hf"
        if _has_transform(dataset):
            raise SourceError(
                f"{location}: has a transform (with_transform), which encoding ignores: apply it with map(), or remove "
                "it with with_format(None)"
            )
        features = dataset.features
        if features is None:
            dataset = dataset._resolve_features()
            features = dataset.features
        if not features:
            raise SourceError(f"{location}: the columns of the stream are unknown; set its features")
        self._image = _image_column(features, image_column, location=location)
        self._label = _label_column(features, label_column, location=location)
        self.labelled = self._label is not None
        self.num_items = None if self.kind == "hf-stream" else len(dataset)
        if self.num_items == 0:
            raise SourceError(f"{location}: no rows")
        self._names: dict[str, int] | None = None
        if self._label is not None:
            self._read_classes(dataset, features[self._label])
        self.pictures = tuple(keep_pictures)
        for name in self.pictures:  # the same checks
            _image_column(features, name, location=location)
        others = [name for name in features if name not in (self._image, self._label, *self.pictures)]
        self.columns = tuple(sorted(name for name in others if _is_plain(features[name])))
        types = {name: _column_type(features[name], depth=0) for name in self.columns}
        self.column_types = {name: kind for name, kind in types.items() if kind is not None}
        classes = {name: _classes_in(features[name]) for name in self.columns}
        self.column_classes = {name: names for name, names in classes.items() if names is not None}
        if left_out := sorted(set(others) - set(self.columns)):
            self.notes += (f"left out: columns that hold bytes, media or arrays: {names_listed(left_out)}",)
        self.identity = identity or fingerprint([getattr(dataset, "_fingerprint", location), self.num_items])
        for name in (self._image, *self.pictures):
            if isinstance(features[name], datasets.Image):
                dataset = dataset.cast_column(name, datasets.Image(decode=False))
        keep = [self._image, *self.pictures, *self.columns, *([self._label] if self._label else [])]
        self._dataset = dataset.select_columns(keep).with_format(None)
        if self.num_items is None:
            self.num_fragments = _num_fragments(self._dataset)
        elif self._label is not None:
            first = self._dataset.select_columns([self._label])[0][self._label]
            if first is None or first == -1:
                raise SourceError(
                    f"{location}: the first label is {first}, as in test splits without labels: pass "
                    "label_column='none' (--label-column none) to encode without them"
                )

    def _read_classes(self, dataset: Any, feature: Any) -> None:
        import datasets

        if isinstance(feature, datasets.ClassLabel):
            self.class_names = tuple(feature.names)
        elif feature.dtype in ("string", "large_string"):
            if self.num_items is None:
                raise SourceError(
                    f"{self.location}: labels {self._label!r} are text, and a stream does not tell all of them in "
                    "advance: cast the column to ClassLabel, or read without streaming"
                )
            self.class_names = tuple(sorted(name for name in dataset.unique(self._label) if name is not None))
            self._names = {name: index for index, name in enumerate(self.class_names)}
            self._check_classes(len(self.class_names))
        elif self.num_items is not None:
            self._check_classes(len(dataset.unique(self._label)))

    def _check_classes(self, num_values: int) -> None:
        """Raise an error if all labels differ, as captions and identifiers do; add a note if most labels differ."""
        if num_values == self.num_items and num_values > 1:
            raise SourceError(
                f"{self.location}: column {self._label!r} has a different value in each of {num_values} rows, so it "
                "holds no classes: name another with label_column (--label-column), or none; cast it to ClassLabel if "
                "it does"
            )
        if self.num_items is not None and 2 * num_values > self.num_items > 2:
            self.notes += (f"labels {self._label!r}: {num_values} classes in {self.num_items} rows; are they classes?",)

    def read(self, index: int) -> Sample:
        if self.num_items is None:
            return super().read(index)
        return self._sample(self._dataset[index], str(index))

    def read_fragment(self, fragment: int, *, scratch: Path) -> Iterator[Sample]:
        if self.num_fragments is None:
            yield from super().read_fragment(fragment, scratch=scratch)
            return
        single = self.num_fragments == 1
        rows = iter(self._dataset if single else self._dataset.shard(self.num_fragments, fragment))
        for index in itertools.count():
            name = str(index) if single else f"{fragment}/{index}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # errors of http, parquet, tar, ...
                raise unreadable(f"{self.location}: sample {name}", error) from error
            yield self._sample(row, name)

    def _sample(self, row: Mapping[str, Any], name: str) -> Sample:
        columns, left_out = json_columns(row, self.columns)
        data, version, problem = self._bytes(row[self._image])
        if isinstance(row[self._image], Mapping) and (path := row[self._image].get("path")):
            name = self._name(str(path))
        pictures = {}
        for second in self.pictures:
            if row[second] is not None:
                pictures[second], _, wrong = self._bytes(row[second])
                problem = problem or (wrong and f"its {second}: {wrong}")
        label = row[self._label] if self._label is not None else None
        if self._names is not None and isinstance(label, str):
            label = self._names[label]
        if self.labelled:
            wrong = label_problem(label, self.class_names)
            if wrong:
                problem, label = problem or f"{wrong}; label_column='none' encodes without labels", None
        return Sample(name, data, label, columns, problem, left_out, version, pictures)

    def _bytes(self, picture: Any) -> tuple[bytes, str | None, str | None]:
        """Return the file of a cell of a column of pictures, its version, and its problem."""
        if isinstance(picture, bytes):
            return picture, None, None
        if picture is not None and picture.get("bytes") is not None:
            return picture["bytes"], None, None
        if picture is not None and picture.get("path"):
            return self._file(Path(picture["path"]))
        return b"", None, "the row has no picture"

    def _file(self, path: Path) -> tuple[bytes, str | None, str | None]:
        """Return the bytes of a file named by a row, its version, and its problem."""
        # Links are resolved, because they may lead out of the folder.
        if self._folders is not None and not any(real_path(path).is_relative_to(folder) for folder in self._folders):
            return b"", None, "the row names a file outside of its data set, which is not read"
        if path.parent.is_dir() and not path.exists():  # its folder exists, so the disk is not offline
            return b"", None, "the row names a file that is not in its folder"
        try:
            return *read_file(path), None
        except NotAFileError as error:
            return b"", None, str(error).removeprefix(f"{path}: ")

    def _name(self, path: str) -> str:
        """Return the path in a row for publication, without folders of this machine."""
        text = path.encode("utf-8", "replace").decode()
        if "://" in text or not Path(text).is_absolute():
            return text
        inside = (f for f in self._folders or () if Path(text).is_relative_to(f))
        return str(Path(text).relative_to(next(inside, Path(text).parent)))


def _library_folders() -> list[Path]:
    """Return the cache folders of `datasets` and `huggingface_hub`."""
    import datasets
    from huggingface_hub import constants

    config = datasets.config
    return [
        Path(str(path)) for path in (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    ]


def folders_of(dataset: Any) -> list[Path] | None:
    """Return the folders whose files the rows of a data set may name; None: any, for data sets made in memory."""
    builder = getattr(dataset.info, "builder_name", None)
    files = getattr(dataset, "cache_files", None) or []
    if builder in ("imagefolder", "generator") or (builder is None and not files):
        return None
    return [Path(file["filename"]).parent for file in files]


# Steps of an `IterableDataset` whose rows do not depend on the division into shards.
_SHARDED = frozenset(
    f"{name}Iterable"
    for name in (
        *("Examples", "ArrowExamples", "RebatchedArrowExamples", "FormattedExamples"),
        *("SelectColumns", "MappedExamples", "FilteredExamples"),
    )
)


def _num_fragments(dataset: Any) -> int:
    part = getattr(dataset, "_ex_iterable", None)
    if getattr(dataset, "_distributed", None) is not None:
        return 1
    while part is not None:
        counts = getattr(part, "with_indices", False) or getattr(part, "batched", False)  # they count in each shard
        if type(part).__name__ not in _SHARDED or counts:
            return 1
        part = getattr(part, "ex_iterable", None)
    return max(1, int(dataset.num_shards))


def _has_transform(dataset: Any) -> bool:
    """Return whether `set_transform` or `with_transform` was called on a `datasets.Dataset`."""
    shape = getattr(dataset, "format", None)
    return isinstance(shape, Mapping) and shape.get("type") == "custom"


def _image_column(features: Mapping[str, Any], wanted: str | None, *, location: str) -> str:
    import datasets

    if wanted is not None:
        if wanted not in features:
            raise SourceError(f"{location}: no column {wanted!r}; it has {sorted(features)}")
        feature = features[wanted]
        if not isinstance(feature, datasets.Image) and getattr(feature, "dtype", "") not in ("binary", "large_binary"):
            raise SourceError(f"{location}: column {wanted!r} holds {feature}, not pictures")
        return wanted
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        columns = {name: type(feature).__name__ for name, feature in features.items()}
        what = "several columns of pictures" if found else "no column of pictures"
        raise SourceError(f"{location}: {what}; its columns are {columns}: name one with image_column (--image-column)")
    return found[0]


def _label_column(features: Mapping[str, Any], wanted: str | None, *, location: str) -> str | None:
    import datasets

    if wanted == "none":
        return None
    if wanted is not None:
        if wanted not in features:
            raise SourceError(f"{location}: no column {wanted!r}; it has {sorted(features)}")
        if not _is_label(features[wanted]):
            raise SourceError(f"{location}: column {wanted!r} holds {features[wanted]}, not labels")
        return wanted
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    for name in (*classes, *_LABEL_NAMES) if len(classes) == 1 else _LABEL_NAMES:
        if name in features and _is_label(features[name]):
            return name
    if classes:
        raise SourceError(
            f"{location}: several columns of labels, {classes}: name one with label_column (--label-column), or 'none'"
        )
    return None


def _is_label(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and (feature.dtype in ("string", "large_string") or "int" in feature.dtype)
    )


def _is_plain(feature: Any) -> bool:
    """Return whether every leaf is a number, text, a date or nothing."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return True
    if isinstance(feature, datasets.Value):
        return "binary" not in feature.dtype
    if isinstance(feature, Mapping):
        return all(_is_plain(item) for item in feature.values())
    if isinstance(feature, list | tuple):
        return all(_is_plain(item) for item in feature)
    inner = getattr(feature, "feature", None)  # Sequence, List, LargeList
    return inner is not None and _is_plain(inner)


_TYPES = {
    "bool": "bool",
    "float16": "float32",
    "date32": "date",
    "date64": "date",
    **dict.fromkeys(("string", "large_string", "string_view"), "string"),
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    **{name: name for name in ("float32", "float64")},
}


def _column_type(feature: Any, *, depth: int) -> Any:
    """Return the `format.ColumnType` name of a scalar feature; None: inferred from values (times and decimals)."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return "int64"
    if isinstance(feature, datasets.Value):
        if feature.dtype.startswith("timestamp"):
            return "timestamp_utc" if "tz=" in feature.dtype else "timestamp"
        return _TYPES.get(feature.dtype)
    if depth == MAX_TYPE_DEPTH:
        return None
    if isinstance(feature, Mapping):
        fields = {str(name): _column_type(item, depth=depth + 1) for name, item in feature.items()}
        return {"struct": fields} if fields and None not in fields.values() else None
    if isinstance(feature, list | tuple):
        inner, length = (feature[0] if len(feature) == 1 else None), -1
    else:
        inner, length = getattr(feature, "feature", None), getattr(feature, "length", -1)
    item = None if inner is None else _column_type(inner, depth=depth + 1)
    if item is None:
        return None
    return {"list": item, "length": length} if isinstance(length, int) and length > 0 else {"list": item}


def _classes_in(feature: Any) -> tuple[str, ...] | None:
    """Return the class names of a column of class numbers, or of lists of class numbers."""
    import datasets

    if isinstance(feature, list):
        feature = feature[0] if len(feature) == 1 else None
    while not isinstance(feature, datasets.ClassLabel) and hasattr(feature, "feature"):
        feature = feature.feature
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
