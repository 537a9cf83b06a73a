"""Assignment of rows to global batches, independent of the number of workers and ranks.

The batches are a function of (seed, epoch, global batch size). Each rank takes its slice of every batch.
"""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.order import EpochOrder, Ints
from walloc_data.permutations import derive_key, permute

__all__ = ["Batch", "Batching", "BucketedBatches", "Last", "SequentialBatches"]

Last = Literal["short", "drop", "pad"]
_CHUNK_BATCHES = 32  # rows are computed for several batches at once, because of numpy's overhead per call


@dataclass(frozen=True)
class Batch:
    """Rows of one global batch. `valid` is False for padding, which repeats other rows."""

    rows: Ints  # (B,)
    valid: npt.NDArray[np.bool_]  # (B,)

    def slice(self, rank: int, world_size: int) -> "Batch":
        """Return the slice of one rank; slices of all ranks have equal sizes."""
        share = len(self.rows) // world_size
        part = slice(rank * share, (rank + 1) * share)
        return Batch(self.rows[part], self.valid[part])


class Batching(Protocol):
    """Interface that maps batch numbers of an epoch to rows."""

    @property
    def name(self) -> str:
        """Name of this batching in a saved state."""

    @property
    def batch_size(self) -> int:
        """Samples of a global batch."""

    @property
    def num_batches(self) -> int:
        """Global batches per epoch."""

    @property
    def num_samples(self) -> int:
        """Samples per epoch, without padding and dropped samples."""

    def batch(self, epoch: int, number: int) -> Batch:
        """Return one global batch."""

    def resized(self, batch_size: int) -> "Batching":
        """Return the same order in batches of another size."""


def _count(num_samples: int, batch_size: int, last: Last) -> int:
    return num_samples // batch_size if last == "drop" else -(-num_samples // batch_size)


def _positions(start: int, num_samples: int, batch_size: int, last: Last) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return the positions of the batch that starts at `start`; padding repeats the first samples."""
    stop = start + batch_size if last == "pad" else min(num_samples, start + batch_size)
    positions = np.arange(start, stop, dtype=np.int64)
    return positions % num_samples, positions < num_samples


@dataclass(frozen=True)
class SequentialBatches:
    """Batches of consecutive positions of an order."""

    order: EpochOrder
    batch_size: int
    last: Last
    _chunks: OrderedDict[tuple[int, int], Ints] = field(default_factory=OrderedDict, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.order.name

    @property
    def num_batches(self) -> int:
        return _count(len(self.order), self.batch_size, self.last)

    @property
    def num_samples(self) -> int:
        return self.num_batches * self.batch_size if self.last == "drop" else len(self.order)

    def batch(self, epoch: int, number: int) -> Batch:
        if (number + 1) * self.batch_size <= len(self.order):
            return Batch(self._rows(epoch, number), np.ones(self.batch_size, np.bool_))
        positions, valid = _positions(number * self.batch_size, len(self.order), self.batch_size, self.last)
        tail = self._rows(epoch, number)
        if valid.all():
            return Batch(tail, valid)
        head = self.order.rows(epoch, 0, min(len(self.order), len(positions)))
        return Batch(np.concatenate([tail, head[positions[len(tail) :]]]), valid)

    def resized(self, batch_size: int) -> "SequentialBatches":
        return SequentialBatches(self.order, batch_size, self.last)

    def _rows(self, epoch: int, number: int) -> Ints:
        chunk = number // _CHUNK_BATCHES
        if (epoch, chunk) not in self._chunks:
            start = chunk * _CHUNK_BATCHES * self.batch_size
            stop = min(len(self.order), start + _CHUNK_BATCHES * self.batch_size)
            self._chunks[epoch, chunk] = self.order.rows(epoch, start, stop)
            if len(self._chunks) > 2:
                self._chunks.popitem(last=False)
        offset = number % _CHUNK_BATCHES * self.batch_size
        return self._chunks[epoch, chunk][offset : offset + self.batch_size]


@dataclass(frozen=True)
class BucketedBatches:
    """Batches whose samples have one latent shape. Batches of different shapes are shuffled together."""

    buckets: tuple[Ints, ...]  # rows of each shape
    batch_size: int
    last: Last
    seed: int | None  # None: as stored

    @property
    def name(self) -> str:
        return f"buckets-{len(self.buckets)}-{'stored' if self.seed is None else 'full'}"

    @property
    def _counts(self) -> Ints:
        return np.array([_count(len(rows), self.batch_size, self.last) for rows in self.buckets], dtype=np.int64)

    @property
    def num_batches(self) -> int:
        return int(self._counts.sum())

    @property
    def num_samples(self) -> int:
        if self.last == "drop":
            return self.num_batches * self.batch_size
        return sum(len(rows) for rows in self.buckets)

    def batch(self, epoch: int, number: int) -> Batch:
        counts = self._counts
        ends = np.cumsum(counts)
        if self.seed is not None:
            key = derive_key(self.seed, epoch)
            number = int(permute(np.array([number]), size=int(ends[-1]), key=key)[0])
        bucket = int(np.searchsorted(ends, number, side="right"))
        rows = self.buckets[bucket]
        start = (number - int(ends[bucket] - counts[bucket])) * self.batch_size
        positions, valid = _positions(start, len(rows), self.batch_size, self.last)
        if self.seed is not None:
            positions = permute(positions, size=len(rows), key=derive_key(self.seed, epoch, bucket))
        return Batch(rows[positions], valid)

    def resized(self, batch_size: int) -> "BucketedBatches":
        return replace(self, batch_size=batch_size)
