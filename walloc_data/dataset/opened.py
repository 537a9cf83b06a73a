"""A split opened for inspection: manifest, index, and latents by row or key."""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.columns import Column
from walloc_data.dataset.index import load_columns, load_index
from walloc_data.dataset.order import Ints
from walloc_data.dataset.reader import Latents, ShardReader
from walloc_data.errors import FormatError
from walloc_data.format import MANIFEST_NAME, Manifest, SplitRecord, check_key
from walloc_data.storage import ShardCache, Store, read_manifest

__all__ = ["OpenedSplit"]


class OpenedSplit:
    """Split opened for reading.

    Args:
        store: store of the data set.
        split: name of the split; None: "train", else the first by name.
        cache: cache for the index and remote shards.
        num_threads: decoding threads.

    Attributes:
        manifest, record: manifest of the data set and record of the split.
        reader: reader of latents by row.
    """

    def __init__(self, store: Store, split: str | None, *, cache: ShardCache, num_threads: int = 1) -> None:
        self.store, self.cache = store, cache
        self.manifest: Manifest = read_manifest(store)
        context = store.location(MANIFEST_NAME)
        if split is None:
            if not self.manifest.splits:
                raise FormatError(f"{context}: the data set has no split")
            split = "train" if "train" in self.manifest.splits else min(self.manifest.splits)
        self.split = split
        self.record: SplitRecord = self.manifest.split(split, context=context)
        spec = self.manifest.codec
        self.table = load_index(store, split=split, record=self.record, spec=spec, folder=cache.folder)
        self._keys: Column | None = None
        self.reader = ShardReader(store, self.record, spec, self.table, cache, num_threads=num_threads)

    @property
    def index(self) -> npt.NDArray[np.void]:
        """Rows of the index, (num_samples,) of `walloc_data.dataset.index.INDEX_ROW`."""
        return self.table.rows

    def keys(self, rows: Sequence[int] | Ints) -> list[str]:
        """Return the keys of rows, checked to be valid file names."""
        if self._keys is None:
            self._keys = load_columns(
                self.store,
                split=self.split,
                record=self.record,
                mirror=self.manifest.settings.mirror,
                folder=self.cache.folder,
                names=["key"],
            )["key"]
        context = self.store.location(self.record.index_name(self.split))
        return [check_key(key, context=context) for key in self._keys.take(np.asarray(rows, dtype=np.int64))]

    def rows_of(self, keys: Collection[str]) -> list[int]:
        """Return the rows of the samples with these keys, in the given order.

        Raises:
            FormatError: a key does not exist.
        """
        every = self.keys(np.arange(self.record.num_samples))
        rows = {key: row for row, key in enumerate(every)}
        if missing := [key for key in keys if key not in rows]:
            raise FormatError(
                f"{self.store.url} split {self.split!r} ({len(every)} samples): no sample {missing[0]!r}"
                + (f"; keys look like {every[0]!r}" if every else "")
            )
        return [rows[key] for key in keys]

    def packed(self, rows: Sequence[int] | Ints) -> Sequence[memoryview]:
        """Return the packed latents of rows, WebP pictures, each checked against its CRC-32."""
        return self.reader.packed(np.asarray(rows, dtype=np.int64))

    def latents(self, rows: Sequence[int] | Ints) -> Latents:
        """Return the latents of rows: (n, C, h, w) int8 if they have one shape, else a list of (C, h, w)."""
        return self.reader.read(np.asarray(rows, dtype=np.int64))
