"""The cached sibling of a shard reader: every shard decoded once into one memory-mapped array.

    cache_folder/arrays/{identity}/
      latents.int8       (N, C, h, w) int8, or (2N, C, h, w) with the mirror images behind; sparse until filled
      done               one byte a shard: 1 once its slice is complete and on disk
      {shard:05d}.lock   held by whoever decodes that shard

Workers, ranks and trainers fill it together, each shard once; a killed one leaves its shard undone and its lock free.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.order import Ints
from walloc_data.dataset.reader import ShardReader
from walloc_data.errors import LoaderError, StorageError
from walloc_data.storage import file_lock

__all__ = ["ArrayReader"]

_DECODE_ROWS = 256


class ArrayReader:
    """Gathers latents from the array; shards that are not in it yet are decoded when first asked for.

    Args:
        shards: the reader of the shards themselves.
        folder: of this split's array; named by the split's identity.
        mirror: keep the mirror images too.
    """

    def __init__(self, shards: ShardReader, folder: Path, *, mirror: bool) -> None:
        shape = shards.record.latent_shape
        if shape is None:
            raise LoaderError(
                f"{shards.store.url}: its latents are of several shapes and do not fit one array: use cache='shards', "
                "or encode with a size"
            )
        self.source, self.folder, self.mirror = shards, folder, mirror
        self.num_samples = shards.record.num_samples
        self.shape = (self.num_samples * (2 if mirror else 1), *shape)
        self._maps: tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]] | None = None
        self._complete = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": None}

    def shards(self, rows: Ints) -> Ints:
        """(n,) the shard of each row."""
        return self.source.shards(rows)

    def fetch(self, number: int) -> None:
        """Bring a shard here ahead of its use, unless it is decoded already."""
        if not self._open()[1][number]:
            self.source.fetch(number)

    def read(self, rows: Ints, mirrored: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int8]:
        latents, done = self._open()
        if not self._complete:
            self.fill(np.unique(self.shards(rows)))
            self._complete = bool(done.all())
        return np.take(latents, rows if mirrored is None else rows + self.num_samples * mirrored, axis=0)

    def fill(self, numbers: Ints) -> None:
        """Decode those of the numbered shards that nobody has decoded yet; wait for those that others are decoding."""
        done = self._open()[1]
        for wait in (False, True):
            for number in numbers[done[numbers] == 0].tolist():
                with file_lock(self.folder / f"{number:05d}.lock", wait=wait) as held:
                    if held and not done[number]:
                        self._decode(number)

    def _decode(self, number: int) -> None:
        ends = np.cumsum([shard.num_samples for shard in self.source.record.shards])
        start, stop = int(ends[number]) - self.source.record.shards[number].num_samples, int(ends[number])
        item = int(np.prod(self.shape[1:]))
        descriptor = os.open(self.folder / "latents.int8", os.O_WRONLY)
        try:
            for first in range(start, stop, _DECODE_ROWS):
                rows = np.arange(first, min(stop, first + _DECODE_ROWS), dtype=np.int64)
                for mirrored in (False, True) if self.mirror else (False,):
                    flags = np.full(len(rows), mirrored) if self.mirror else None
                    latents = np.ascontiguousarray(self.source.read(rows, flags))
                    _write(descriptor, latents, (first + mirrored * self.num_samples) * item)
            os.fdatasync(descriptor)  # the mark must not reach the disk before what it promises
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f"{self.folder}: cannot keep decoded latents there ({error.strerror}); they take "
                f"{self.shape[0] * item} bytes in all: set cache_folder to another disk, or use cache='shards'"
            ) from error
        finally:
            os.close(descriptor)
        marks = os.open(self.folder / "done", os.O_WRONLY)
        try:
            os.pwrite(marks, b"\x01", number)
        finally:
            os.close(marks)

    def _open(self) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]]:
        if self._maps is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            num_shards = len(self.source.record.shards)
            with file_lock(self.folder / "lock"):
                for name, num_bytes in (("latents.int8", int(np.prod(self.shape))), ("done", num_shards)):
                    with (self.folder / name).open("ab") as file:
                        if file.tell() != num_bytes:
                            file.truncate(num_bytes)  # a hole, filled shard by shard
            latents = np.memmap(self.folder / "latents.int8", np.int8, "r", shape=self.shape)
            done = np.memmap(self.folder / "done", np.uint8, "r", shape=(num_shards,))
            # Plain views: np.memmap's own bookkeeping costs more than a small gather.
            self._maps = latents.view(np.ndarray), done.view(np.ndarray)
        return self._maps


def _write(descriptor: int, values: npt.NDArray[np.int8], offset: int) -> None:
    data = memoryview(values.data).cast("B")
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
