"""The cached sibling of a shard reader: every shard decoded once into one memory-mapped array.

    cache_folder/arrays/{identity}/
      latents.int8       (N, C, h, w) int8, or (2N, C, h, w) with the mirror images behind; sparse until filled
      done               one byte a shard: 1 once its slice is complete and on disk; trusted only beside whole latents
      {shard:05d}.lock   held by whoever decodes that shard

Workers, ranks and trainers fill it together, each shard once; a killed one leaves its shard undone and its lock free.
"""

from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.order import Ints
from walloc_data.dataset.reader import ShardReader
from walloc_data.errors import LoaderError
from walloc_data.files import sync_file
from walloc_data.storage import cache_errors, file_lock

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
                with (
                    cache_errors(self.folder, what=self._what),
                    file_lock(self.folder / f"{number:05d}.lock", wait=wait) as held,
                ):
                    if held and not done[number]:
                        self._decode(number)

    @property
    def _what(self) -> str:
        return f"decoded latents ({int(np.prod(self.shape))} bytes in all; none with cache='shards')"

    def _decode(self, number: int) -> None:
        ends = np.cumsum([shard.num_samples for shard in self.source.record.shards])
        start, stop = int(ends[number]) - self.source.record.shards[number].num_samples, int(ends[number])
        item = int(np.prod(self.shape[1:]))
        with (self.folder / "latents.int8").open("r+b", buffering=0) as file:
            for first in range(start, stop, _DECODE_ROWS):
                rows = np.arange(first, min(stop, first + _DECODE_ROWS), dtype=np.int64)
                for mirrored in (False, True) if self.mirror else (False,):
                    flags = np.full(len(rows), mirrored) if self.mirror else None
                    latents = np.ascontiguousarray(self.source.read(rows, flags))
                    _write(file, latents.data.cast("B"), (first + mirrored * self.num_samples) * item)
            sync_file(file.fileno())  # the mark must not reach the disk before what it promises
        with (self.folder / "done").open("r+b", buffering=0) as file:
            file.seek(number)
            file.write(b"\x01")

    def _open(self) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]]:
        if self._maps is None:
            num_shards = len(self.source.record.shards)
            sizes = {"latents.int8": int(np.prod(self.shape)), "done": num_shards}
            if any(not _is_of(self.folder / name, num_bytes) for name, num_bytes in sizes.items()):
                with cache_errors(self.folder, what=self._what):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    with file_lock(self.folder / "lock"):
                        self._make(sizes)
            latents = np.memmap(self.folder / "latents.int8", np.int8, "r", shape=self.shape)
            done = np.memmap(self.folder / "done", np.uint8, "r", shape=(num_shards,))
            # Plain views: np.memmap's own bookkeeping costs more than a small gather.
            self._maps = latents.view(np.ndarray), done.view(np.ndarray)
        return self._maps

    def _make(self, sizes: Mapping[str, int]) -> None:
        """Make the files, unless another process has meanwhile. The caller holds the lock."""
        if all(_is_of(self.folder / name, num_bytes) for name, num_bytes in sizes.items()):
            return
        # Cut short, or one of the two lost: what is marked done would be read as zeros. So both are made anew, marks
        # first removed; who has mapped the old ones keeps them.
        (self.folder / "done").unlink(missing_ok=True)
        (self.folder / "latents.int8").unlink(missing_ok=True)
        for name, num_bytes in sizes.items():
            with (self.folder / name).open("xb") as file:
                file.truncate(num_bytes)  # a hole, filled shard by shard


def _is_of(path: Path, num_bytes: int) -> bool:
    """Whether a file is there and of this length: then it may be another user's, which is read and not written."""
    return path.is_file() and path.stat().st_size == num_bytes


def _write(file: FileIO, data: memoryview, offset: int) -> None:
    file.seek(offset)
    while data:
        data = data[file.write(data) :]
