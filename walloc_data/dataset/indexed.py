"""Access to the samples of a split, and their selection, by key and by column."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.arguments import check_flag
from walloc_data.dataset.boxes import CROP_FIELDS
from walloc_data.dataset.columns import Column, check_names, column_types
from walloc_data.dataset.form import LABEL
from walloc_data.dataset.index import INDEX_ROW, SplitIndex, load_columns, read_table
from walloc_data.dataset.order import Ints
from walloc_data.dataset.parts import PartOfSplit, rows_chosen
from walloc_data.dataset.subset import (
    Condition,
    check_conditions,
    class_labels,
    compare,
    is_missing,
    meets,
    missing,
    numbers_of,
    take_fraction,
)
from walloc_data.errors import LoaderError, MissingExtraError
from walloc_data.format import Manifest, SplitRecord
from walloc_data.storage import Store

__all__ = ["IndexedPart"]


class IndexedPart(PartOfSplit):
    """Mixin with access to columns, keys and tables of the index."""

    url: str
    split_name: str
    manifest: Manifest
    record: SplitRecord
    _store: Store
    _folder: Path  # of the cache
    _index: SplitIndex
    _columns: dict[str, Column]  # opened columns

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...] | None:
        """Class names by label."""

    @property
    @abstractmethod
    def index(self) -> npt.NDArray[np.void]:
        """(n,) of `walloc_data.dataset.index.INDEX_ROW`."""

    def _open_columns(self, names: Iterable[str]) -> None:
        """Open columns of the index for `_values`; "crop" consists of several columns."""
        wanted = [part for name in names for part in (CROP_FIELDS if name == "crop" else (name,))]
        missing = [name for name in dict.fromkeys(wanted) if name not in self._columns]
        found = load_columns(
            self._store,
            split=self.split_name,
            record=self.record,
            mirror=self.manifest.settings.mirror,
            folder=self._folder,
            names=missing,
        )
        self._columns = self._columns | found  # a new dict, as parts of this data set share the old one

    def _values(self, name: str, rows: Ints, mirrored: npt.NDArray[np.bool_] | None) -> Any:
        """Return the values of a column for rows of the split's index."""
        if name == LABEL:
            return self._labelled(self._index.rows[LABEL][rows])
        if name == "mirrored":
            return np.zeros(len(rows), np.bool_) if mirrored is None else mirrored
        if name == "crop":
            return np.stack([self._columns[part].take(rows) for part in CROP_FIELDS], axis=-1).astype(np.int64)
        return self._columns[name].take(rows)

    def column_form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return the dtype and shape of a column's values in batches, or "list"."""
        if name in (LABEL, "mirrored", "crop"):
            return {LABEL: ("int64", ()), "mirrored": ("bool", ()), "crop": ("int64", (len(CROP_FIELDS),))}[name]
        return self._columns[name].form

    @property
    def column_types(self) -> dict[str, str]:
        """Names and types of all columns of the index, such as ``list<float32>[4]``."""
        return {
            name: str(kind) for name, kind in column_types(self.record, mirror=self.manifest.settings.mirror).items()
        }

    @property
    def column_classes(self) -> Mapping[str, tuple[str, ...]]:
        """Class names of columns that contain class numbers, by column."""
        return self.record.column_classes

    @property
    def keys(self) -> list[str]:
        """Keys of the samples in stored order; a new list, read from the index each time."""
        keys: list[str] = self._column("key")
        return keys

    def position(self, key: str) -> int:
        """Return the position of the sample with a key.

        Raises:
            KeyError: the key does not exist.
            LoaderError: the key is not text.
        """
        given: Any = key
        if not isinstance(given, str):
            raise LoaderError(f"a key is text, such as {self.keys[0] if len(self) else '000000000'!r}, not {key!r}")
        self._open_columns(["key"])
        found = np.flatnonzero(meets(self._columns["key"], "==", key))
        if self._rows is not None:
            found = np.flatnonzero(np.isin(self._rows, found))
        if not len(found):
            raise KeyError(f"{self.url}, split {self.split_name!r}: no sample {key!r} among these {len(self)}")
        return int(found[0])

    def by_key(self, key: str) -> Any:
        """Return the sample with a key; raise KeyError if it does not exist."""
        return self[self.position(key)]

    def to_arrow(self) -> Any:
        """Return the index as a `pyarrow.Table`: a row per sample in stored order, with the columns of the source."""
        table = read_table(self._store, split=self.split_name, record=self.record)
        table = table if self._rows is None else table.take(self._rows)
        if self._classes is None:
            return table
        import pyarrow as pa

        field, labels = table.schema.field(LABEL), self.labels
        renumbered = pa.array(labels, field.type, mask=labels < 0)
        return table.set_column(table.column_names.index(LABEL), field, renumbered)

    def to_pandas(self) -> Any:
        """Return the result of `to_arrow` as a `pandas.DataFrame`."""
        try:
            return self.to_arrow().to_pandas()
        except ImportError as error:
            raise MissingExtraError("pandas", extra="pandas", purpose="to_pandas()") from error

    def subset(
        self,
        *,
        classes: Sequence[int | str] | None = None,
        where: Sequence[Condition] = (),
        rows: Sequence[int] | npt.NDArray[Any] | None = None,
        keys: Sequence[str] | None = None,
        fraction: float | None = None,
        seed: int = 0,
        relabel: bool = False,
    ) -> Self:
        """Select samples by class, condition, position or key, and a random fraction of them.

        The samples stay in stored order.

        Args:
            classes: labels or class names; labels are unchanged unless `relabel`.
            where: conditions on columns of the index, all of which must hold: ``[("age", ">", 30), ("label", "in",
                {1})]``. Comparisons are ==, !=, <, <=, >, >=, in, not in, and has (for lists). Missing values meet no
                condition but ``("age", "==", None)``; ``("age", "!=", None)`` selects those that have a value. NaN is
                a missing value, too. Classes can be given by name.
            rows: positions in this data set, or a boolean mask.
            keys: keys of samples.
            fraction: fraction in (0, 1]; with equal seeds, smaller fractions are subsets of larger ones.
            seed: seed of the fraction.
            relabel: renumber the classes from 0, in ascending order of their labels: `classes` if given, else those of
                the selected samples. `class_names` and `num_classes` change accordingly.

        Raises:
            LoaderError: a class, row or key does not exist, or a condition does not match its column.

        Example:
            >>> from walloc_data import LatentDataset
            >>> part = LatentDataset("my-latents").subset(classes=["coffee"], relabel=True)
            >>> part.class_names, part.labels.tolist(), len(part.complement())
            (('coffee',), [0, 0, 0, 0], 4)
        """
        check_flag("relabel", relabel)
        conditions = check_conditions(where)
        labels = None if classes is None else class_labels(classes, self.class_names)
        if labels and not self.record.labelled:
            raise LoaderError(f"{self.url}, split {self.split_name!r}: has no labels to choose classes by: use where=")
        if labels is not None:
            conditions.append((LABEL, "in", labels))
        chosen = np.ones(len(self), np.bool_) if rows is None else rows_chosen(rows, len(self))
        if keys is not None:
            chosen = chosen & self._has_keys(keys)
        for column, comparison, given in conditions:
            names = self.class_names if column == LABEL else self.column_classes.get(column)
            value = numbers_of(given, comparison, names)
            if is_missing(comparison, value, column=column):
                chosen = chosen & self._missing(column, comparison)
            elif column in (INDEX_ROW.names or ()):
                chosen = chosen & compare(column, self.index[column], comparison, value)
            else:
                self._open_columns([column])
                met = meets(self._columns[column], comparison, value)
                chosen = chosen & (met if self._rows is None else met[self._rows])
        positions = np.flatnonzero(chosen)
        if fraction is not None:
            positions = positions[take_fraction(len(positions), fraction, seed=seed)]
        return self._part(positions, relabel=relabel, classes=labels)

    def _missing(self, column: str, comparison: str) -> npt.NDArray[np.bool_]:
        """Return a mask (n,) of the samples without a value in a column ("=="), or with one ("!=")."""
        if column == LABEL:
            return self.labels < 0 if comparison == "==" else self.labels >= 0
        self._open_columns([column])
        met = missing(self._columns[column], comparison)
        return met if self._rows is None else met[self._rows]

    def _has_keys(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return a mask (n,) of the samples that have one of these keys."""
        wanted = check_names(keys, "keys")
        self._open_columns(["key"])
        met = meets(self._columns["key"], "in", wanted)
        met = met if self._rows is None else met[self._rows]
        if met.sum() < len(wanted):
            missing = set(wanted) - set(self.keys)
            first = next(key for key in wanted if key in missing)
            raise LoaderError(f"{self.url}, split {self.split_name!r}: no sample {first!r} among these {len(self)}")
        return met

    def _column(self, name: str) -> Any:
        rows = np.arange(self.record.num_samples, dtype=np.int64) if self._rows is None else self._rows
        if name != LABEL:
            self._open_columns([name])
        return self._values(name, rows, None)
