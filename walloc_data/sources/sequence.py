"""Pictures from Python: torch and torchvision data sets, and any sequence of (picture, target)."""

import operator
import os
import pickle
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from walloc_data.errors import SourceError, UnreadableError
from walloc_data.sources.as_files import NoPictureError, as_file, is_picture
from walloc_data.sources.base import Sample, Source, fingerprint, json_columns, json_value, label_problem
from walloc_data.sources.listing import as_text
from walloc_data.sources.reading import read_file, unreadable

__all__ = ["SequenceSource", "is_sequence"]

_IMAGE_NAMES = ("image", "img", "picture")
_LABEL_NAMES = ("label", "labels", "class", "cls", "target")
_TARGET = "target"  # column for targets that are not labels
_NUM_COMPARED = 16  # pictures that are hashed into the identity


def is_sequence(value: Any) -> bool:
    """Return whether something has a length and items by position."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | bytes | Mapping)


class SequenceSource(Source):
    """Source of the items of a sequence: pictures, (picture, target) pairs, or mappings with picture and label.

    Pictures are paths, bytes of files, PIL pictures, arrays or tensors (`walloc_data.sources.as_files`). Pixels are
    unchanged, and original files are used if available, as for torchvision's `ImageFolder` without transforms.

    Integer targets are labels, text targets must be class names: those of the attribute `classes`, as in torchvision,
    also of data sets wrapped in torch's `Subset` or `ConcatDataset`. Other targets go into the column ``target``. The
    first item decides.

    Transforms of the sequence are applied. Random ones are refused, because items must be the same when read again.
    """

    kind = "sequence"

    def __init__(
        self,
        sequence: Any,
        *,
        location: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        keep_pictures: Sequence[str] = (),
    ) -> None:
        kind = type(sequence)
        self.location = location or f"python:{kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
        self._sequence = sequence
        self.num_items = len(sequence)
        if self.num_items == 0:
            raise SourceError(f"{self.location}: no items")
        first = self._first()
        self._image, self._label = self._columns(first, image_column, label_column)
        self.pictures = tuple(keep_pictures)
        if self.pictures and not (isinstance(first, Mapping) and set(self.pictures) <= set(first)):
            raise SourceError(f"{self.location}: its items have no pictures named {list(self.pictures)}")
        target = self._target(first)
        self.class_names = _class_names(sequence)
        self.labelled = label_column != "none" and _is_label(target)
        if label_column not in (None, "none") and not self.labelled:
            raise SourceError(
                f"{self.location}: label_column {label_column!r}: the first item's is {target!r}, no label"
            )
        if not self.labelled:
            self.class_names = None
        elif isinstance(target, str) and self.class_names is None:
            self.class_names = self._names_of_targets()
        self._numbers = {name: number for number, name in enumerate(self.class_names or ())}
        others = self._others(first)
        self.columns = tuple(sorted(name for name, value in others.items() if json_value(value) is not None))
        if left_out := sorted(set(others) - set(self.columns)):
            self.notes += (f"left out: parts of items that are not numbers or text: {', '.join(left_out)}",)
        self._check_pictures(first)
        self.identity = self._fingerprint()

    def _item(self, index: int) -> Any:
        """Return an item; of torchvision's `ImageFolder`, the path and the label, so that its file is not decoded here.

        Raises:
            SourceError: the sequence has no such item.
            OSError: the item cannot be read.
            Exception: any exception of the sequence; it becomes a failure of this item.
        """
        file = _file_of(self._sequence, index)
        try:
            return file if file is not None else self._sequence[index]
        except IndexError as error:
            raise SourceError(f"{self.location}: its length is {self.num_items}, but it has no item {index}") from error

    def _columns(self, first: Any, image: str | None, label: str | None) -> tuple[str | None, str | None]:
        """Return the names of picture and label if items are mappings."""
        if not isinstance(first, Mapping):
            if image is not None or label not in (None, "none"):
                raise SourceError(f"{self.location}: its items are {type(first).__name__}s and have no columns")
            return None, None
        found = [name for name in _IMAGE_NAMES if name in first] or [key for key in first if is_picture(first[key])]
        names = [str(name) for name in first]
        if image is None and not found:
            raise SourceError(f"{self.location}: no picture among the items' {names}: name it with image_column")
        for name in (image, label):
            if name not in (None, "none") and name not in first:
                raise SourceError(f"{self.location}: no {name!r} among the items' {names}")
        if label is None:
            label = next((name for name in _LABEL_NAMES if name in first and _is_label(first[name])), None)
        return image or found[0], label if label != "none" else None

    def _picture(self, item: Any) -> Any:
        if self._image is not None:
            return item[self._image]
        return item[0] if isinstance(item, tuple | list) and item else item

    def _target(self, item: Any) -> Any:
        if self._image is not None:
            return None if self._label is None else item[self._label]
        return item[1] if isinstance(item, tuple | list) and len(item) > 1 else None

    def _others(self, item: Any) -> dict[str, Any]:
        """Return the columns of an item besides picture and label."""
        if self._image is not None:
            used = (self._image, self._label if self.labelled else None, *self.pictures)
            return {str(name): value for name, value in item.items() if name not in used}
        if not isinstance(item, tuple | list):
            return {}
        more = {f"item_{number}": value for number, value in enumerate(item[2:], start=2)}
        target = self._target(item)
        return more if self.labelled or target is None else {_TARGET: target, **more}

    def _names_of_targets(self) -> tuple[str, ...]:
        if not isinstance(self._sequence, list | tuple):
            raise SourceError(
                f"{self.location}: labels are text: set the attribute `classes` of the sequence to the list of all of "
                "them, in the order of their numbers"
            )
        return tuple(sorted({target for item in self._sequence if isinstance(target := self._target(item), str)}))

    def _first(self) -> Any:
        """Return the first item that can be read, which determines the structure of all items.

        Raises:
            SourceError: none of the first hundred items can be read.
        """
        problems: list[Exception] = []
        for index in range(min(self.num_items or 0, 100)):
            try:
                return self._item(index)
            except SourceError:
                raise
            except Exception as error:  # the sequence may raise any exception
                problems.append(error)
        raise SourceError(
            f"{self.location}: its items cannot be read ({type(problems[0]).__name__}: {problems[0]})"
        ) from problems[0]

    def _check_pictures(self, first: Any) -> None:
        """Raise an error if the first item is not a picture, or differs when it is read again."""
        picture = self._picture(first)
        try:
            if not isinstance(picture, str | os.PathLike):
                as_file(picture)
        except NoPictureError as error:
            raise SourceError(f"{self.location}: its first item: {error}") from error
        once, again = self.read(0), self.read(0)
        if (once.data, once.label) != (again.data, again.label):
            raise SourceError(
                f"{self.location}: its first item differs each time it is read: remove random transforms, and apply "
                "them to latents in training (walloc_data.transforms)"
            )

    def _fingerprint(self) -> str:
        number = self.num_items or 0
        compared = sorted({i * (number - 1) // (_NUM_COMPARED - 1) for i in range(_NUM_COMPARED)})
        samples = [self._described(index) for index in compared]
        targets = getattr(self._sequence, "targets", None)
        return fingerprint(
            [
                number,
                *(self.class_names or ()),
                "" if targets is None else zlib.crc32(repr(list(map(str, targets))).encode("utf-8", "replace")),
                *samples,
            ]
        )

    def _described(self, index: int) -> tuple[Any, ...]:
        """Return the parts of an item for the identity; its position if it cannot be read."""
        try:
            sample = self.read(index)
        except UnreadableError:
            return index, "unreadable"
        return sample.name, sample.label, zlib.crc32(sample.data)

    def read(self, index: int) -> Sample:
        name, nothing = str(index), dict.fromkeys(self.columns)
        try:
            item = self._item(index)
            picture, target = self._picture(item), self._target(item)
            columns, left_out = json_columns(self._others(item), self.columns)
            version = None
            if isinstance(picture, str | os.PathLike):
                path = Path(picture)
                name = as_text("/".join(path.parts[-2:]))  # published, so without the folders above
                if path.parent.is_dir() and not path.is_file():  # its folder exists, so the disk is not offline
                    return Sample(name, b"", None, columns, "there is no such file")
                data, version = read_file(path)
            else:
                data = as_file(picture)
            pictures = {name: as_file(item[name]) for name in self.pictures if item.get(name) is not None}
        except SourceError:
            raise
        except MemoryError as error:
            raise unreadable(f"{self.location}: item {index}", error) from error
        except OSError as error:
            if error.errno is not None:  # without errno, it is Pillow's error for a damaged picture
                raise unreadable(f"{self.location}: item {index}", error) from error
            return Sample(name, b"", None, nothing, f"cannot be read: {error}")
        except NoPictureError as error:
            return Sample(name, b"", None, nothing, str(error))
        except Exception as error:  # the sequence may raise any exception
            return Sample(name, b"", None, nothing, f"cannot be read: {type(error).__name__}: {error}")
        label, problem = self._number(target) if self.labelled else (None, None)
        return Sample(name, data, label, columns, problem, left_out, version, pictures)

    def _number(self, target: Any) -> tuple[int | None, str | None]:
        """Return (label, None), or (None, problem)."""
        if isinstance(target, str):
            number = self._numbers.get(target)
            return number, None if number is not None else f"label {target!r} is not one of the class names"
        label = operator.index(target) if _is_label(target) else target
        problem = label_problem(label, self.class_names)
        return (None, problem) if problem else (label, None)

    def __getstate__(self) -> dict[str, Any]:
        try:
            pickled = pickle.dumps(self._sequence)
        except Exception as error:
            raise SourceError(
                f"{self.location}: cannot be sent to worker processes ({type(error).__name__}: {error}): convert it "
                "with workers=1"
            ) from error
        if b"\x8c\x08__main__" in pickled:
            raise SourceError(
                f"{self.location}: uses classes or functions of the main script, which worker processes cannot import: "
                "move them to a module, or convert with workers=1"
            )
        return self.__dict__ | {"_sequence": pickled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._sequence = pickle.loads(state["_sequence"])  # noqa: S301  # part of the pickle that is being read


def _is_label(target: Any) -> bool:
    if isinstance(target, str):
        return True
    if isinstance(target, bool) or getattr(target, "shape", ()) != ():
        return False
    if not hasattr(target, "__index__") or str(getattr(target, "dtype", "int")).rpartition(".")[2].startswith("bool"):
        return False
    try:
        operator.index(target)
    except (TypeError, ValueError):  # tensors of floats have the method all the same
        return False
    return True


def _class_names(sequence: Any) -> tuple[str, ...] | None:
    """Return the attribute `classes` of a data set or of a wrapped data set; synonyms are joined by commas."""
    found = getattr(sequence, "classes", None)
    if isinstance(found, Sequence) and not isinstance(found, str) and found:
        names = [", ".join(name) if isinstance(name, tuple | list) else name for name in found]
        if all(isinstance(name, str) for name in names):
            return tuple(names)
    inner = getattr(sequence, "dataset", None)
    if inner is not None and inner is not sequence:
        return _class_names(inner)
    several = {_class_names(part) for part in getattr(sequence, "datasets", None) or ()}
    return several.pop() if len(several) == 1 else None


def _file_of(sequence: Any, index: int) -> tuple[str, int] | None:
    """Return the file and label of an item of torchvision's `ImageFolder`, if it has no transforms."""
    utils = sys.modules.get("torch.utils.data")
    if utils is not None and type(sequence) is utils.Subset:
        return _file_of(sequence.dataset, int(sequence.indices[index]))
    folders = sys.modules.get("torchvision.datasets.folder")
    if folders is None or type(sequence) is not folders.ImageFolder or sequence.loader is not folders.default_loader:
        return None
    if any(getattr(sequence, name, None) is not None for name in ("transform", "target_transform", "transforms")):
        return None
    path, label = sequence.samples[index]
    return str(path), int(label)
