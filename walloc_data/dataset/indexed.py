"""Reading of a split's samples by key and by column, from its index alone."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.boxes import CROP_FIELDS
from walloc_data.dataset.columns import Column, check_names, column_types
from walloc_data.dataset.form import LABEL
from walloc_data.dataset.index import SplitIndex, load_columns, read_table
from walloc_data.dataset.order import Ints
from walloc_data.dataset.parts import PartOfSplit
from walloc_data.dataset.subset import meets
from walloc_data.errors import LoaderError, MissingExtraError
from walloc_data.format import Manifest, SplitRecord
from walloc_data.storage import Store

__all__ = ["IndexedPart"]


class IndexedPart(PartOfSplit):
    """Part of a split whose index is at hand: its columns, keys and tables."""

    url: str
    split_name: str
    manifest: Manifest
    record: SplitRecord
    _store: Store
    _folder: Path  # of the cache
    _index: SplitIndex
    _columns: dict[str, Column]  # those that were opened

    def _open_columns(self, names: Iterable[str]) -> None:
        """Make columns of the index ready for `_values`; "crop" stands for several."""
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
        self._columns = self._columns | found  # parts of this data set share the old ones

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
        """Return what batches hold of a column of the form: its dtype and the shape of a value, or "list"."""
        if name in (LABEL, "mirrored", "crop"):
            return {LABEL: ("int64", ()), "mirrored": ("bool", ()), "crop": ("int64", (len(CROP_FIELDS),))}[name]
        return self._columns[name].form

    @property
    def column_types(self) -> dict[str, str]:
        """Return all columns of the index: names to types, such as ``list<float32>[4]``."""
        return {
            name: str(kind) for name, kind in column_types(self.record, mirror=self.manifest.settings.mirror).items()
        }

    @property
    def column_classes(self) -> Mapping[str, tuple[str, ...]]:
        """Return the class names of columns of class numbers, several labels a sample say, by column."""
        return self.record.column_classes

    @property
    def keys(self) -> list[str]:
        """Return the key of each sample, in stored order: a new list, read from the index each time."""
        keys: list[str] = self._column("key")
        return keys

    def position(self, key: str) -> int:
        """Return where the sample with a key stands.

        Raises:
            KeyError: there is none.
        """
        self._open_columns(["key"])
        found = np.flatnonzero(meets(self._columns["key"], "==", key))
        if self._rows is not None:
            found = np.flatnonzero(np.isin(self._rows, found))
        if not len(found):
            raise KeyError(f"{self.url}, split {self.split_name!r}: no sample {key!r} among these {len(self)}")
        return int(found[0])

    def by_key(self, key: str) -> Any:
        """Return the sample with a key; raise KeyError where there is none."""
        return self[self.position(key)]

    def to_arrow(self) -> Any:
        """Return the index as a `pyarrow.Table`: a row a sample in stored order, with the source's own columns."""
        table = read_table(self._store, split=self.split_name, record=self.record)
        table = table if self._rows is None else table.take(self._rows)
        if self._classes is None:
            return table
        import pyarrow as pa

        field, labels = table.schema.field(LABEL), self.labels
        renumbered = pa.array(labels, field.type, mask=labels < 0)
        return table.set_column(table.column_names.index(LABEL), field, renumbered)

    def to_pandas(self) -> Any:
        """Return the index as a `pandas.DataFrame`: what `to_arrow` gives."""
        try:
            return self.to_arrow().to_pandas()
        except ImportError as error:
            raise MissingExtraError("pandas", extra="pandas", purpose="to_pandas()") from error

    def _has_keys(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return (n,) which samples here have one of these keys."""
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
