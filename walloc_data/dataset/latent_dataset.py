"""The data set for training, local or remote: `LatentDataset`."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from walloc_data.dataset.arguments import check_flag, check_function, check_integer, check_mapping
from walloc_data.dataset.array import ArrayReader
from walloc_data.dataset.columns import Column, check_names, check_target
from walloc_data.dataset.form import LABEL, SampleForm
from walloc_data.dataset.index import split_identity
from walloc_data.dataset.indexed import IndexedPart
from walloc_data.dataset.opened import OpenedSplit
from walloc_data.dataset.order import EpochOrder, FullShuffle, Ints, StoredOrder, WindowShuffle, coin_flips
from walloc_data.dataset.reader import Reader
from walloc_data.dataset.samples import RowValues, Transform
from walloc_data.errors import LoaderError
from walloc_data.format import ChannelStatistics, Manifest, SplitRecord
from walloc_data.permutations import derive_key
from walloc_data.storage import DEFAULT_MAX_CACHE_BYTES, DatasetLocation, ShardCache, Store, open_store

__all__ = ["LatentDataset"]

DEFAULT_REMOTE_WINDOW_SHARDS = 16
_MIRROR, _TRANSFORM = 1, 2  # purposes of derived random keys


class LatentDataset(IndexedPart):
    """One split of an encoded data set. By default samples are `(latent, label)`: an int8 tensor (C, h, w) and an int.

    `columns`, `target` and `as_dict` select other samples, from any column of the index, including columns of the
    source. Numbers, and arrays of numbers of one shape, become tensors of the column's dtype (float64 with NaN if rows
    have missing values). Other columns become Python values: str, list, dict, datetime, date or None.

    Args:
        url: folder or prefix written by `encode_dataset`: a path, ``s3://``, ``gs://``, ``az://``, ``https://`` or
            ``hf://datasets/...``. Or a `walloc_data.storage.Store`, to set the retries:
            ``Store("s3://bucket/my-latents", retry_seconds=600)``.
        split: name of the split.
        columns: names of columns that follow the target: with ``columns=["caption"]``, samples are `(latent, label,
            caption)`. Besides the columns of the index there are "crop", the six numbers for `boxes_to_cells`, and
            "mirrored", whether the mirror image was read. The target can be one of them, and is then given twice.
        target: column that replaces the label; None: no target. Without target and columns, samples are latents only.
        as_dict: return samples and batches as dicts with the key "latent" and the names of target and columns.
        shuffle: shuffle every epoch, by a function of (seed, epoch); False keeps the stored order.
        seed: seed of the shuffles and of random transforms.
        window_shards: shuffle within windows of this many shards instead of the full split, so that training can start
            after the first shard. None: 16 if shards are read over the network, else the full split. The default does
            not depend on the contents of the cache.
        transform: function of each latent, an int8 tensor (C, h, w), applied before batching, such as a crop to one
            size. Its draws from torch's global CPU generator are a function of (seed, epoch, sample), except for
            samples read by position before `set_epoch`. Transforms of batches belong in the training loop, on its
            device.
        mirror: return the stored latent of the mirrored picture with probability 1/2, drawn in the same way.
        cache: "shards" decodes samples each time they are read. "array" decodes each shard once into a memory-mapped
            array in the cache folder, which later epochs and runs use. It takes the decoded size on disk,
            `num_samples * C * h * w` bytes.
        cache_folder: folder for downloaded shards, arrays and indices; None: ``$XDG_CACHE_HOME/walloc_data``, else
            ``~/.cache/walloc_data``. It can be shared by processes.
        max_cache_bytes: limit of downloaded shards in the cache; the least recently used are deleted. Arrays do not
            count.
        num_threads: decoding threads per process that reads.
        storage_options: options of the fsspec file system of a remote url.

    Attributes:
        manifest: contents of `walloc.json`.
        num_classes: number of class names; None without class names.
        latent_shape: (C, h, w) of every stored latent; None if shapes differ.
        statistics: statistics of the stored integers of the split.

    Raises:
        StorageError: the data set or its index cannot be read.
        FormatError: the manifest or the index is invalid.
        LoaderError: the arguments do not match the data set.

    Example:
        >>> from walloc_data import LatentDataset
        >>> train = LatentDataset("my-latents", shuffle=True, seed=0)
        >>> train
        LatentDataset('my-latents', split='train': 8 latents of 12 x 12 x 12 int8, 2 classes, order 'full')
        >>> latent, label = train[0]
        >>> latent.shape, latent.dtype
        (torch.Size([12, 12, 12]), torch.int8)
        >>> len(train.subset(classes=["cat"]))
        4
    """

    def __init__(
        self,
        url: DatasetLocation,
        *,
        split: str = "train",
        columns: Sequence[str] = (),
        target: str | None = LABEL,
        as_dict: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        window_shards: int | None = None,
        transform: Transform | None = None,
        mirror: bool = False,
        cache: Literal["shards", "array"] = "shards",
        cache_folder: str | os.PathLike[str] | None = None,
        max_cache_bytes: int = DEFAULT_MAX_CACHE_BYTES,
        num_threads: int = 1,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if cache not in ("shards", "array"):
            raise LoaderError(f"cache must be 'shards' or 'array', not {cache!r}")
        if window_shards is not None:
            check_integer("window_shards", window_shards, low=1)
        seed = check_integer("seed", seed)  # a plain int: it becomes part of the JSON states of loaders
        check_integer("num_threads", num_threads, low=1)
        check_integer("max_cache_bytes", max_cache_bytes, low=0)
        for name, flag in (("as_dict", as_dict), ("shuffle", shuffle), ("mirror", mirror)):
            check_flag(name, flag)
        check_function("transform", transform)
        check_mapping("storage_options", storage_options)
        form = SampleForm(check_target(target), check_names(columns, "columns"), as_dict)
        if not isinstance(url, str | os.PathLike | Store):
            raise LoaderError(f"url must be a path, a URL or a Store, not {url!r}")
        store = open_store(url, storage_options)
        self.url, self.split_name, self.shuffle, self.seed = store.url, split, shuffle, seed
        self.transform, self.mirror = transform, mirror
        shard_cache = ShardCache(cache_folder, max_bytes=max_cache_bytes)
        opened = OpenedSplit(store, split, cache=shard_cache, num_threads=num_threads)
        self.manifest: Manifest = opened.manifest
        self.record: SplitRecord = opened.record
        if mirror and not self.manifest.settings.mirror:
            raise LoaderError(
                f"{self.url}: no mirrored latents are stored: encode with mirror=True, or use mirror=False"
            )
        self._index = opened.table
        self._store, self._folder = store, shard_cache.folder
        self._columns: dict[str, Column] = {}
        self.form = form
        self._open_columns(name for name in self.form.names if name not in (LABEL, "mirrored"))
        self._reader: Reader = opened.reader
        self.identity = split_identity(self.manifest.codec, self.record)
        if cache == "array":
            # The key includes the index, whose offsets determine the decoded latents.
            folder = shard_cache.folder / "arrays" / (self._index.path.stem + ("-mirror" if mirror else ""))
            self._reader = ArrayReader(opened.reader, folder, mirror=mirror)
        remote = store.local_path is None
        if window_shards is None and remote and cache == "shards":
            window_shards = DEFAULT_REMOTE_WINDOW_SHARDS
        self.window_shards = window_shards
        self._remote = remote
        self._room_for_shards = max_cache_bytes // max((shard.num_bytes for shard in self.record.shards), default=1)
        if remote and shuffle and cache == "shards":
            self._check_room(max_cache_bytes)

    def _check_room(self, max_cache_bytes: int) -> None:
        sizes = sorted((shard.num_bytes for shard in self.record.shards), reverse=True)
        # A full shuffle needs all shards at once.
        needed = sum(sizes if self.window_shards is None else sizes[: self.window_shards + 1])
        if needed > max_cache_bytes:
            what = "the full split" if self.window_shards is None else f"windows of {self.window_shards} shards"
            raise LoaderError(
                f"{self.url}: shuffling {what} needs {needed} bytes of cached shards, and max_cache_bytes is "
                f"{max_cache_bytes}: raise it, or lower window_shards"
            )

    def __repr__(self) -> str:
        shape = "mixed shapes" if self.latent_shape is None else " x ".join(map(str, self.latent_shape))
        return (
            f"LatentDataset({self.url!r}, split={self.split_name!r}: {len(self)} latents of {shape} int8, "
            f"{self.num_classes or 'no'} classes, order {self.epoch_order().name!r})"
        )

    @property
    def store(self) -> Store:
        """Store that contains the data set."""
        return self._store

    @property
    def cache_folder(self) -> Path:
        """Folder of the cache."""
        return self._folder

    def stored_row(self, position: int) -> int:
        """Return the row, in the split's index, of the sample at a position; raise IndexError if it does not exist."""
        row = self._row(position)
        return row if self._rows is None else int(self._rows[row])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Class names by label."""
        names = self.manifest.class_names
        if names is None or self._classes is None:
            return names
        return tuple(names[label] for label in self._classes.tolist())

    @property
    def num_classes(self) -> int | None:
        return None if self.class_names is None else len(self.class_names)

    @property
    def latent_shape(self) -> tuple[int, int, int] | None:
        return self.record.latent_shape

    @property
    def statistics(self) -> ChannelStatistics:
        return self.record.statistics

    @property
    def index(self) -> npt.NDArray[np.void]:
        """Rows of the index, (n,) of `walloc_data.dataset.index.INDEX_ROW`: label, size, source_index, offsets, ..."""
        if self._rows is None:
            return self._index.rows
        rows: npt.NDArray[np.void] = self._index.rows[self._rows]
        rows[LABEL] = self._labelled(rows[LABEL])
        return rows

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return np.ascontiguousarray(self.index["label"])

    def __len__(self) -> int:
        return self.record.num_samples if self._rows is None else len(self._rows)

    def _num_rows_of_split(self) -> int:
        return self.record.num_samples

    def epoch_order(self) -> EpochOrder:
        if not self.shuffle:
            return StoredOrder(len(self))
        if self.window_shards is None:
            return FullShuffle(len(self), self.seed)
        if self._rows is None:
            sizes = [shard.num_samples for shard in self.record.shards]
        else:
            sizes = np.bincount(self._reader.shards(self._rows), minlength=len(self.record.shards)).tolist()
        return WindowShuffle(tuple(sizes), self.seed, self.window_shards)

    def latent_sides(self) -> npt.NDArray[np.int64] | None:
        if self.latent_shape is not None:
            return None
        cell, index = self.manifest.codec.cell_px, self.index
        return np.stack([-(-index[side].astype(np.int64) // cell) for side in ("height", "width")], axis=1)

    @property
    def may_vary(self) -> bool:
        return self.latent_shape is None and self.transform is None

    def shards(self, rows: Ints) -> Ints:
        return self._reader.shards(rows if self._rows is None else self._rows[rows])

    def fetch(self, shard: int) -> None:
        self._reader.fetch(shard)

    @property
    def num_prefetch_shards(self) -> int:
        if not self._remote:
            return 0
        window = self.window_shards or DEFAULT_REMOTE_WINDOW_SHARDS
        if not self.shuffle:
            return 4
        # Prefetched shards must not evict shards that the window still needs.
        return max(1, min(window, self._room_for_shards - window))

    def read(self, rows: Ints, *, epoch: int | None) -> RowValues:
        if self._rows is not None:
            rows = self._rows[rows]
        mirrored = None
        if self.mirror:
            if epoch is None:
                mirrored = torch.randint(2, (len(rows),)).numpy().astype(np.bool_)
            else:
                mirrored = coin_flips(rows, key=derive_key(self.seed, epoch, _MIRROR))
        found = self._reader.read(rows, mirrored)
        latents: Sequence[Tensor] | Tensor
        latents = (
            torch.from_numpy(found) if isinstance(found, np.ndarray) else [torch.from_numpy(item) for item in found]
        )
        if self.transform is not None:
            latents = self._transformed(self.transform, rows, latents, epoch)
        return RowValues(latents, {name: self._values(name, rows, mirrored) for name in self.form.names})

    def _transformed(
        self, transform: Transform, rows: Ints, latents: Iterable[Tensor], epoch: int | None
    ) -> list[Tensor]:
        if epoch is None:
            return [transform(latent) for latent in latents]
        # Only the CPU generator is seeded, and restored; torch.manual_seed would also reset the generators of all GPUs.
        generator = torch.default_generator
        before = generator.get_state()
        try:
            result = []
            for row, latent in zip(rows.tolist(), latents, strict=True):
                generator.manual_seed(derive_key(self.seed, epoch, _TRANSFORM, row))
                result.append(transform(latent))
            return result
        finally:
            generator.set_state(before)
