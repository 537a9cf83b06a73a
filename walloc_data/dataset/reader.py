"""Latents of given rows, from shards as they are or from an array of decoded ones."""

import os
import zlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.decode import decode_latents
from walloc_data.dataset.index import SplitIndex
from walloc_data.dataset.order import Ints
from walloc_data.dataset.sharded import ShardedRows
from walloc_data.dataset.stats import waiting_for_shards
from walloc_data.errors import CorruptShardError, StorageError, WallocDataError
from walloc_data.format import MANIFEST_NAME, CodecSpec, ShardRecord, SplitRecord, sample_key
from walloc_data.storage import OpenShards, ShardCache, ShardFile, Store, read_manifest

__all__ = ["Latents", "Reader", "ShardReader"]

T = TypeVar("T")
# Of one shape: (n, C, h, w) int8. Of several: a list of (C, h, w) int8.
Latents = npt.NDArray[np.int8] | list[npt.NDArray[np.int8]]

_ENCODED_AGAIN = "The data set was encoded again after it was opened here: open it again"
_ATTEMPTS_AHEAD = 3
_MAX_OPEN_CACHED = 64  # an evicted shard keeps its disk space while it is open


class Reader(ShardedRows):
    """Interface that reads a split's latents."""

    @abstractmethod
    def read(self, rows: Ints, mirrored: npt.NDArray[np.bool_] | None) -> Latents:
        """Return latents of rows of the split's index; `mirrored` says of which pictures the mirror image is wanted."""


class ShardReader(Reader):
    """Reads samples at the index's offsets in the shards and decodes them.

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
        self._open = OpenShards(most=None if store.local_path is not None else _MAX_OPEN_CACHED)
        # Every shard has checksums, as data sets have since there are any; a shard's rows all have one or none has.
        self._checked = bool(index.rows[self._ends - counts]["crc32"].all())
        self._manifest = _stamp(store)
        self._ahead = store.inside("", max_attempts=min(_ATTEMPTS_AHEAD, store.max_attempts))
        self._executors: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not come through a fork

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_executors": {}}  # threads stay in their process

    def shards(self, rows: Ints) -> Ints:
        """Return (n,) the shard of each row."""
        return np.searchsorted(self._ends, rows, side="right")

    def read(self, rows: Ints, mirrored: npt.NDArray[np.bool_] | None = None) -> Latents:
        """Return latents of rows, each checked against its checksum where the index has one.

        Raises:
            CorruptShardError: a sample is not what was encoded. One from the cache was fetched again before.
        """
        return self._twice(rows, mirrored, self._latents)

    def packed(self, rows: Ints, mirrored: npt.NDArray[np.bool_] | None = None) -> Sequence[memoryview]:
        """Return packed latents of rows, WebP pictures as they are stored; checked as `read` checks them.

        Raises:
            CorruptShardError: a sample is not what was encoded. One from the cache was fetched again before.
        """
        return self._twice(rows, mirrored, lambda entries, shards, payloads: payloads)

    def _twice(
        self,
        rows: Ints,
        mirrored: npt.NDArray[np.bool_] | None,
        use: Callable[[npt.NDArray[np.void], Ints, Sequence[memoryview]], T],
    ) -> T:
        """Use checked payloads of rows; where that shows damage of the cache, once more after fetching it again."""
        entries = self.index.rows[rows]
        offsets, lengths, checksums = entries["offset"], entries["length"], entries["crc32"]
        if mirrored is not None:
            offsets = np.where(mirrored, entries["mirror_offset"], offsets)
            lengths = np.where(mirrored, entries["mirror_length"], lengths)
            checksums = np.where(mirrored, entries["mirror_crc32"], checksums)
        shards = self.shards(rows)

        def attempt() -> T:
            with waiting_for_shards():
                payloads = self._payloads(shards, offsets, lengths)
            self._check(entries, shards, payloads, checksums)
            return use(entries, shards, payloads)

        try:
            return attempt()
        except CorruptShardError:
            if self.store.local_path is not None:
                raise
            records = [self.record.shards[number] for number in np.unique(shards).tolist()]
            absent = not all(self.cache.path(record).exists() for record in records)
            removed = [self.cache.remove_damaged(record) for record in records]
            if absent and not any(removed):  # it arrived damaged, as often as it is asked for
                raise
        for number in np.unique(shards).tolist():
            self._open.drop(number)
        return attempt()

    def _context(self, entries: npt.NDArray[np.void], shards: Ints, i: int) -> str:
        name = self.record.shards[shards[i]].name
        return f"{self.store.location(name)}: sample {sample_key(int(entries['source_index'][i]))}"

    def _check(
        self, entries: npt.NDArray[np.void], shards: Ints, payloads: Sequence[memoryview], checksums: npt.NDArray[Any]
    ) -> None:
        for i, (payload, checksum) in enumerate(zip(payloads, checksums.tolist(), strict=True)):
            if checksum and zlib.crc32(payload) != checksum:
                found = f"CRC-32 {zlib.crc32(payload):08x}, the index says {checksum:08x}"
                raise CorruptShardError(
                    f"{self._context(entries, shards, i)}: its bytes are not those that were encoded ({found}). "
                    f"{self._remedy(self.record.shards[shards[i]])}"
                )

    def _latents(self, entries: npt.NDArray[np.void], shards: Ints, payloads: Sequence[memoryview]) -> Latents:
        context = partial(self._context, entries, shards)
        cell = self.spec.cell_px
        sides = np.stack([-(-entries["height"] // cell), -(-entries["width"] // cell)], axis=1)
        if len(payloads) and (sides == sides[0]).all():
            return self._decode(payloads, (int(sides[0, 0]), int(sides[0, 1])), context)
        latents: list[npt.NDArray[np.int8]] = []
        for i, (h, w) in enumerate(sides.tolist()):
            latents.append(self._decode([payloads[i]], (h, w), partial(_at, context, i))[0])
        return latents

    def _decode(
        self, payloads: Sequence[memoryview], sides: tuple[int, int], context: Callable[[int], str]
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
            context=context,
            executor=executor,
            num_threads=self.num_threads,
        )

    def _payloads(self, shards: Ints, offsets: Ints, lengths: Ints) -> Sequence[memoryview]:
        """Yield the stored bytes of samples, in their order; each shard is opened once."""
        payloads = [memoryview(b"")] * len(shards)
        starts, sizes = offsets.tolist(), lengths.tolist()
        for number in np.unique(shards).tolist():
            shard = self._shard(number)
            for i in np.flatnonzero(shards == number).tolist():
                payloads[i] = memoryview(shard.read(starts[i], sizes[i]))
        return payloads

    def _shard(self, number: int) -> ShardFile:
        return self._open.get(number, lambda: self._opened(self.record.shards[number]))

    def _remedy(self, shard: ShardRecord) -> str:
        if self.store.local_path is None:
            return "The index does not belong to this shard: verify the data set at its source"
        if _replaced(self.store, shard):
            return _ENCODED_AGAIN
        return f"`walloc-data verify {self.store.url}` finds all damage; copy the data set again, or encode it again"

    def _opened(self, shard: ShardRecord) -> ShardFile:
        if self.store.local_path is None:
            return self.cache.open(self.store, shard)
        context = self.store.location(shard.name)
        try:
            opened = ShardFile(self.store.local_path / shard.name, num_bytes=shard.num_bytes, context=context)
        except CorruptShardError as error:
            raise CorruptShardError(f"{error} {self._remedy(shard)}") from error
        except OSError as error:
            if isinstance(error, FileNotFoundError) and _replaced(self.store, shard):
                raise StorageError(f"{context}: {error.strerror}. {_ENCODED_AGAIN}") from error
            raise StorageError(f"{context}: {error.strerror}. The manifest lists this shard") from error
        # An open file stays what it is when another takes its name. Checksums need no look at the manifest.
        if not self._checked and self._manifest != _stamp(self.store) and _replaced(self.store, shard):
            raise CorruptShardError(f"{context}: {_ENCODED_AGAIN}")
        return opened

    def fetch(self, number: int) -> None:
        """Bring a remote shard into the cache ahead of its use.

        With few tries: whoever needs the shard has all of them, and must not wait until this has had as many.
        """
        if self.store.local_path is None:
            self.cache.fetch(self._ahead, self.record.shards[number])


def _at(context: Callable[[int], str], i: int, _: int) -> str:
    return context(i)


def _stamp(store: Store) -> tuple[int, ...] | None:
    """Return what changes with a local manifest; None where there is none."""
    try:
        status = None if store.local_path is None else (store.local_path / MANIFEST_NAME).stat()
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)


def _replaced(store: Store, shard: ShardRecord) -> bool:
    """Return whether a data set that is open no longer has a shard as it had when it was opened."""
    try:
        manifest = read_manifest(store)
    except WallocDataError:
        return True
    return all(shard not in record.shards for record in manifest.splits.values())
