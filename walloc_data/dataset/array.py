"""Reader with a cache of decoded latents: each shard is decoded once, into one memory-mapped array.

    cache_folder/arrays/{identity}/
      latents.int8       (N, C, h, w) int8, or (2N, C, h, w) followed by the mirror images
      crc32              (N,) or (2N,) uint32: the checksum of each latent
      done               one byte per shard: 1 when its slices are complete and on disk
      {shard:05d}.lock   held by the process that decodes the shard

The disk space is allocated first, because writing to a mapped file on a full disk kills the process (SIGBUS). Workers,
ranks and trainers fill the array together, each shard once; if one is killed, its lock is released and another process
decodes the shard. Each latent is checked when a process first reads it, and damaged ones are decoded again.
"""

import mmap
import zlib
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.order import Ints
from walloc_data.dataset.reader import Reader, ShardReader
from walloc_data.errors import CorruptShardError, LoaderError
from walloc_data.files import allocate, sync_file
from walloc_data.storage import cache_errors, file_lock

__all__ = ["ArrayReader"]

_DECODE_ROWS = 256


class ArrayReader(Reader):
    """Reader of latents from the array; a missing shard is decoded when it is first needed.

    Args:
        shards: reader of the shards.
        folder: folder of the array, named by the identity of the split.
        mirror: also store the mirror images.
    """

    def __init__(self, shards: ShardReader, folder: Path, *, mirror: bool) -> None:
        shape = shards.record.latent_shape
        if shape is None:
            raise LoaderError(
                f"{shards.store.url}: its latents have several shapes, which do not fit one array: use cache='shards', "
                "or encode with a size"
            )
        self.source, self.folder, self.mirror = shards, folder, mirror
        self.num_samples = shards.record.num_samples
        self.shape = (self.num_samples * (2 if mirror else 1), *shape)
        self._maps: _Maps | None = None
        self._complete = False
        self._checked = _Bits(0)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": None, "_checked": _Bits(0)}

    def shards(self, rows: Ints) -> Ints:
        """Return the shard of each row, (n,)."""
        return self.source.shards(rows)

    def fetch(self, number: int) -> None:
        """Download a shard before it is needed, unless it is decoded already."""
        if not self._open().done[number]:
            self.source.fetch(number)

    def read(self, rows: Ints, mirrored: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int8]:
        maps = self._open()
        if not self._complete:
            self.fill(np.unique(self.shards(rows)))
            self._complete = bool(maps.done.all())
        places = rows if mirrored is None else rows + self.num_samples * mirrored
        latents = np.take(maps.latents, places, axis=0)
        unchecked = np.flatnonzero(~self._checked[places])
        if len(unchecked):
            if len(damaged := self._damaged(latents, places, unchecked)):
                for number in np.unique(self.shards(rows[damaged])).tolist():
                    self._decode_again(number)
                latents = np.take(maps.latents, places, axis=0)
                if len(again := self._damaged(latents, places, unchecked)):
                    raise CorruptShardError(
                        f"{self.folder}: the latent at row {int(rows[again[0]])} differs from what was just written. "
                        "The disk or memory of this machine may be faulty: set cache_folder to another disk, or "
                        "cache='shards'"
                    )
            self._checked.add(places)
        return latents

    def _damaged(self, latents: npt.NDArray[np.int8], places: Ints, which: Ints) -> Ints:
        """Return the positions in a batch whose latents differ from what was written."""
        expected = self._open().crc32[places[which]].tolist()
        found = [zlib.crc32(latents[i].data) for i in which.tolist()]
        return which[[a != b for a, b in zip(found, expected, strict=True)]]

    def _decode_again(self, number: int) -> None:
        """Decode a shard again, in place; only damaged latents change."""
        with (
            cache_errors(self.folder, what=self._what),
            file_lock(self.folder / f"{number:05d}.lock"),
        ):
            self._decode(number)

    def fill(self, numbers: Ints) -> None:
        """Decode the missing ones of some shards; wait for those that other processes are decoding."""
        done = self._open().done
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
        with (
            (self.folder / "latents.int8").open("r+b", buffering=0) as file,
            (self.folder / "crc32").open("r+b", buffering=0) as checksums,
        ):
            for first in range(start, stop, _DECODE_ROWS):
                rows = np.arange(first, min(stop, first + _DECODE_ROWS), dtype=np.int64)
                for mirrored in (False, True) if self.mirror else (False,):
                    flags = np.full(len(rows), mirrored) if self.mirror else None
                    latents = np.ascontiguousarray(self.source.read(rows, flags))
                    place = first + mirrored * self.num_samples
                    _write(file, latents.data.cast("B"), place * item)
                    crc32 = np.array([zlib.crc32(latent.data) for latent in latents], dtype="<u4")
                    _write(checksums, crc32.data.cast("B"), place * crc32.itemsize)
            for written in (file, checksums):
                sync_file(written.fileno())  # the data must reach the disk before the mark
        with (self.folder / "done").open("r+b", buffering=0) as file:
            file.seek(number)
            file.write(b"\x01")

    def _open(self) -> "_Maps":
        if self._maps is not None and any(mapped.size() < num_bytes for mapped, num_bytes in self._maps.files):
            self._maps, self._complete = None, False  # truncated: a read beyond the end would kill the process
        if self._maps is None:
            num_shards = len(self.source.record.shards)
            sizes = {"latents.int8": int(np.prod(self.shape)), "crc32": 4 * self.shape[0], "done": num_shards}
            if any(not _is_of(self.folder / name, num_bytes) for name, num_bytes in sizes.items()):
                with cache_errors(self.folder, what=self._what):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    with file_lock(self.folder / "lock"):
                        self._make(sizes)
            latents = np.memmap(self.folder / "latents.int8", np.int8, "r", shape=self.shape)
            crc32 = np.memmap(self.folder / "crc32", "<u4", "r", shape=self.shape[:1])
            done = np.memmap(self.folder / "done", np.uint8, "r", shape=(num_shards,))
            # Plain views: the overhead of np.memmap exceeds the time of a small gather.
            mapped = [getattr(found, "_mmap") for found in (latents, crc32, done)]  # noqa: B009  # typed nowhere
            files = tuple(zip(mapped, sizes.values(), strict=True))
            self._maps = _Maps(latents.view(np.ndarray), crc32.view(np.ndarray), done.view(np.ndarray), files)
            self._checked = _Bits(self.shape[0])
        return self._maps

    def _make(self, sizes: Mapping[str, int]) -> None:
        """Create the files, unless another process has done so. The caller holds the lock."""
        if all(_is_of(self.folder / name, num_bytes) for name, num_bytes in sizes.items()):
            return
        # If a file is truncated or missing, shards marked as done would be read as zeros: create all files again, after
        # removing the marks. Processes that have mapped the old files keep them.
        for name in ("done", "crc32", "latents.int8"):
            (self.folder / name).unlink(missing_ok=True)
        try:
            for name, num_bytes in sizes.items():
                with (self.folder / name).open("xb") as file:
                    allocate(file.fileno(), num_bytes)
        except OSError:
            for name in sizes:
                (self.folder / name).unlink(missing_ok=True)  # frees its disk space
            raise


class _Maps(NamedTuple):
    latents: npt.NDArray[np.int8]
    crc32: npt.NDArray[np.uint32]
    done: npt.NDArray[np.uint8]
    files: tuple[tuple[mmap.mmap, int], ...]  # the maps and their expected lengths


class _Bits:
    """Set of numbers below a limit, as a bit field."""

    def __init__(self, limit: int) -> None:
        self._bytes = np.zeros(-(-limit // 8), np.uint8)

    def __getitem__(self, numbers: Ints) -> npt.NDArray[np.bool_]:
        """Return (n,) whether each is in the set."""
        bits: npt.NDArray[np.uint8] = self._bytes[numbers >> 3] >> (numbers & 7).astype(np.uint8)
        return (bits & 1).astype(np.bool_)

    def add(self, numbers: Ints) -> None:
        np.bitwise_or.at(self._bytes, numbers >> 3, np.left_shift(1, numbers & 7).astype(np.uint8))


def _is_of(path: Path, num_bytes: int) -> bool:
    """Return whether a file exists with this length. It may belong to another user, and is then read-only."""
    return path.is_file() and path.stat().st_size == num_bytes


def _write(file: FileIO, data: memoryview, offset: int) -> None:
    file.seek(offset)
    while data:
        data = data[file.write(data) :]
