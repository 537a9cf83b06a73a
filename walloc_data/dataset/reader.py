"""Reading of latents by row, from shards or from the array of decoded latents."""

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
# (n, C, h, w) int8 if the latents have one shape, else a list of (C, h, w) int8.
Latents = npt.NDArray[np.int8] | list[npt.NDArray[np.int8]]

_ENCODED_AGAIN = "The data set was encoded again after it was opened: open it again"
_ATTEMPTS_AHEAD = 3
_MAX_OPEN_CACHED = 64  # an evicted shard keeps its disk space while it is open


class Reader(ShardedRows):
    """Interface of readers of a split's latents."""

    @abstractmethod
    def read(self, rows: Ints, mirrored: npt.NDArray[np.bool_] | None) -> Latents:
        """Return the latents of rows of the split's index; where `mirrored` is True, those of the mirrored pictures."""


class ShardReader(Reader):
    """Reader of samples in shards, by the offsets in the index.

    Args:
        cache: cache for remote shards; local shards are read in place.
        num_threads: decoding threads.
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
        # In every shard, either all rows have checksums or none.
        self._checked = bool(index.rows[self._ends - counts]["crc32"].all())
        self._manifest = _stamp(store)
        self._ahead = store.inside("", max_attempts=min(_ATTEMPTS_AHEAD, store.max_attempts))
        self._executors: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_executors": {}}  # threads cannot be pickled

    def shards(self, rows: Ints) -> Ints:
        """Return the shard of each row, (n,)."""
        return np.searchsorted(self._ends, rows, side="right")

    def read(self, rows: Ints, mirrored: npt.NDArray[np.bool_] | None = None) -> Latents:
        """Return the latents of rows, each compared with its checksum if the index has one.

        Raises:
            CorruptShardError: a sample is damaged, also after its shard was downloaded again.
        """
        return self._with_retry(rows, mirrored, self._latents)

    def packed(self, rows: Ints, mirrored: npt.NDArray[np.bool_] | None = None) -> Sequence[memoryview]:
        """Return the packed latents of rows as stored (WebP), compared with their checksums like those of `read`.

        Raises:
            CorruptShardError: a sample is damaged, also after its shard was downloaded again.
        """
        return self._with_retry(rows, mirrored, lambda entries, shards, payloads: payloads)

    def _with_retry(
        self,
        rows: Ints,
        mirrored: npt.NDArray[np.bool_] | None,
        use: Callable[[npt.NDArray[np.void], Ints, Sequence[memoryview]], T],
    ) -> T:
        """Apply a function to checked payloads of rows; if the cache is damaged, download it again and repeat once."""
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
            if absent and not any(removed):  # the download itself is damaged
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
                    f"{self._context(entries, shards, i)}: its bytes differ from those that were encoded ({found}). "
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
        """Return the stored bytes of samples, in order; each shard is opened once."""
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
            return "The index does not match this shard: run `walloc-data verify` on the original data set"
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
            raise CorruptShardError(f"{error}. {self._remedy(shard)}") from error
        except OSError as error:
            if isinstance(error, FileNotFoundError) and _replaced(self.store, shard):
                raise StorageError(f"{context}: {error.strerror}. {_ENCODED_AGAIN}") from error
            raise StorageError(f"{context}: {error.strerror}. The manifest lists this shard") from error
        # An open file is not affected by its replacement. With checksums, the manifest need not be checked.
        if not self._checked and self._manifest != _stamp(self.store) and _replaced(self.store, shard):
            raise CorruptShardError(f"{context}: {_ENCODED_AGAIN}")
        return opened

    def fetch(self, number: int) -> None:
        """Download a remote shard into the cache before it is needed.

        It retries only briefly: the reader that needs the shard has all retries, and must not wait for these.
        """
        if self.store.local_path is None:
            self.cache.fetch(self._ahead, self.record.shards[number])


def _at(context: Callable[[int], str], i: int, _: int) -> str:
    return context(i)


def _stamp(store: Store) -> tuple[int, ...] | None:
    """Return a version of a local manifest (inode, times); None for remote data sets."""
    try:
        status = None if store.local_path is None else (store.local_path / MANIFEST_NAME).stat()
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)


def _replaced(store: Store, shard: ShardRecord) -> bool:
    """Return whether a shard was replaced after the data set was opened."""
    try:
        manifest = read_manifest(store)
    except WallocDataError:
        return True
    return all(shard not in record.shards for record in manifest.splits.values())
