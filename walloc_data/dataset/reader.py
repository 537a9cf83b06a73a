"""Latents of given rows, from shards as they are or from an array of decoded ones."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.decode import decode_latents
from walloc_data.dataset.index import SplitIndex
from walloc_data.dataset.order import Ints
from walloc_data.errors import StorageError
from walloc_data.format import CodecSpec, ShardRecord, SplitRecord, sample_key
from walloc_data.storage import ShardCache, ShardMaps, Store, map_file, max_open_maps

__all__ = ["Latents", "Reader", "ShardReader"]

# Of one shape: (n, C, h, w) int8. Of several: a list of (C, h, w) int8.
Latents = npt.NDArray[np.int8] | list[npt.NDArray[np.int8]]

_MAX_OPEN_CACHED = 64  # an evicted shard keeps its disk space while it is mapped


class Reader(Protocol):
    """Where a split's latents come from."""

    def shards(self, rows: Ints) -> Ints:
        """(n,) the shard of each row."""

    def fetch(self, number: int) -> None:
        """Bring a shard here ahead of its use."""

    def read(self, rows: Ints, mirrored: npt.NDArray[np.bool_] | None) -> Latents:
        """Latents of rows of the split's index; `mirrored` says of which pictures the mirror image is wanted."""


class ShardReader:
    """Reads samples at the index's offsets of memory-mapped shards and decodes them.

    Args:
        cache: where remote shards are kept; shards of a local data set are read in place.
        num_threads: decode this many pictures at once.
    """

    def __init__(
        self,
        store: Store,
        record: SplitRecord,
        spec: CodecSpec,
        index: SplitIndex,
        cache: ShardCache,
        *,
        num_threads: int = 1,
    ) -> None:
        self.store, self.record, self.spec, self.index, self.cache = store, record, spec, index, cache
        self.num_threads = num_threads
        counts = [shard.num_samples for shard in record.shards]
        self._ends = np.cumsum(np.array(counts, dtype=np.int64))
        self._maps = ShardMaps(most=None if store.local_path is not None else _MAX_OPEN_CACHED)
        self._executors: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not come through a fork

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_executors": {}}  # threads stay in their process

    def shards(self, rows: Ints) -> Ints:
        """(n,) the shard of each row."""
        return np.searchsorted(self._ends, rows, side="right")

    def read(self, rows: Ints, mirrored: npt.NDArray[np.bool_] | None = None) -> Latents:
        entries = self.index.rows[rows]
        offsets, lengths = entries["offset"], entries["length"]
        if mirrored is not None:
            offsets = np.where(mirrored, entries["mirror_offset"], offsets)
            lengths = np.where(mirrored, entries["mirror_length"], lengths)
        shards = self.shards(rows)
        payloads = self._payloads(shards, offsets, lengths)

        def where(i: int) -> str:
            name = self.record.shards[shards[i]].name
            return f"{self.store.where(name)}: sample {sample_key(int(entries['source_index'][i]))}"

        cell = self.spec.cell_px
        sides = np.stack([-(-entries["height"] // cell), -(-entries["width"] // cell)], axis=1)
        if len(rows) and (sides == sides[0]).all():
            return self._decode(payloads, (int(sides[0, 0]), int(sides[0, 1])), where)
        latents: list[npt.NDArray[np.int8]] = []
        for i, (h, w) in enumerate(sides.tolist()):
            latents.append(self._decode([payloads[i]], (h, w), partial(_at, where, i))[0])
        return latents

    def _decode(
        self, payloads: Sequence[memoryview], sides: tuple[int, int], where: Callable[[int], str]
    ) -> npt.NDArray[np.int8]:
        executor = None
        if self.num_threads > 1 and len(payloads) > 1:
            executor = self._executors.get(os.getpid())
            if executor is None:
                executor = self._executors[os.getpid()] = ThreadPoolExecutor(self.num_threads)
        return decode_latents(
            payloads,
            shape=(self.spec.latent_dim, *sides),
            colours=self.spec.channels,
            where=where,
            executor=executor,
            num_threads=self.num_threads,
        )

    def _payloads(self, shards: Ints, offsets: Ints, lengths: Ints) -> Sequence[memoryview]:
        """The stored bytes of samples, in their order, as slices of their shards' maps.

        Slices keep a map open: where a batch is of more shards than may be open, its bytes are copied.
        """
        numbers = np.unique(shards).tolist()
        if len(numbers) <= max_open_maps() // 2:
            views = {number: self._shard(number) for number in numbers}
            return [
                views[number][offset : offset + length]
                for number, offset, length in zip(shards.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
            ]
        payloads = [memoryview(b"")] * len(shards)
        for number in numbers:
            view = self._shard(number)
            for i in np.flatnonzero(shards == number).tolist():
                payloads[i] = memoryview(bytes(view[offsets[i] : offsets[i] + lengths[i]]))
        return payloads

    def _shard(self, number: int) -> memoryview:
        return self._maps.get(number, lambda: self._map(self.record.shards[number]))

    def _map(self, shard: ShardRecord) -> memoryview:
        if self.store.local_path is None:
            return self.cache.open(self.store, shard)
        where = self.store.where(shard.name)
        try:
            return map_file(self.store.local_path / shard.name, num_bytes=shard.num_bytes, where=where)
        except OSError as error:
            raise StorageError(f"{where}: {error.strerror}. The manifest lists this shard") from error

    def fetch(self, number: int) -> None:
        """Bring a remote shard into the cache ahead of its use."""
        if self.store.local_path is None:
            self.cache.fetch(self.store, self.record.shards[number])


def _at(where: Callable[[int], str], i: int, _: int) -> str:
    return where(i)
