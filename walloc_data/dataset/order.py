"""Orders of epochs, computed per position.

Every order is a function of (seed, epoch, position), without a stored list. So a state is a position, a worker computes
its own batches, and a hundred million samples take no memory. The shuffles are seeded permutations
(`walloc_data.permutations`). They must not change, because runs resume with them: `tests/dataset/test_order.py`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from walloc_data.errors import LoaderError
from walloc_data.permutations import derive_key, mix, permute

__all__ = [
    "EpochOrder",
    "FullShuffle",
    "RemappedOrder",
    "SampleWeights",
    "StoredOrder",
    "WeightedShuffle",
    "WindowShuffle",
    "coin_flips",
    "shares",
]

Ints = npt.NDArray[np.int64]


def coin_flips(rows: Ints, *, key: int) -> npt.NDArray[np.bool_]:
    """Return (n,) booleans, each True with probability 1/2, as a function of the row number."""
    return (mix(rows.astype(np.uint64) ^ np.uint64(key)) >> np.uint64(63)).astype(np.bool_)


class EpochOrder(Protocol):
    """Interface that maps positions of an epoch to rows of a data set."""

    @property
    def name(self) -> str:
        """Name of this order in saved states; states of other orders are rejected."""

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        """Return (stop - start,) int64: the rows at these positions."""


@dataclass(frozen=True)
class StoredOrder:
    """Stored order."""

    num_rows: int
    name: str = "stored"

    def __len__(self) -> int:
        return self.num_rows

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        del epoch
        return np.arange(start, stop, dtype=np.int64)


@dataclass(frozen=True)
class FullShuffle:
    """Shuffle of the full split. Needs all shards at once."""

    num_rows: int
    seed: int
    name: str = "full"

    def __len__(self) -> int:
        return self.num_rows

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        positions = np.arange(start, stop, dtype=np.int64)
        return permute(positions, size=self.num_rows, key=derive_key(self.seed, epoch))


@dataclass(frozen=True)
class WindowShuffle:
    """Shuffle of the shards, then of the samples within windows of consecutive shards.

    The first window of an epoch is one shard, then two, four, up to `window_shards`: the first batch needs one shard,
    and each window can be downloaded while the previous one is read.
    """

    shard_sizes: tuple[int, ...]  # rows of each shard, in stored order
    seed: int
    window_shards: int

    @property
    def name(self) -> str:
        return f"window-{self.window_shards}"

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        if start >= stop:
            return np.zeros(0, np.int64)
        first_row, slot_starts, window_starts = _windows(self, epoch)
        positions = np.arange(start, stop, dtype=np.int64)
        window = np.searchsorted(window_starts, positions, side="right") - 1
        base = window_starts[window]
        keys = np.empty(len(positions), np.uint64)
        for number in np.unique(window):
            keys[window == number] = derive_key(self.seed, epoch, 1 + int(number))
        slots = base + permute(positions - base, size=window_starts[window + 1] - base, key=keys)
        shard = np.searchsorted(slot_starts, slots, side="right") - 1
        return first_row[shard] + slots - slot_starts[shard]


@lru_cache(maxsize=4)
def _windows(order: WindowShuffle, epoch: int) -> tuple[Ints, Ints, Ints]:
    """Return first rows (s,) and positions (s + 1,) of shards in epoch order, and positions of windows (w + 1,)."""
    sizes = np.asarray(order.shard_sizes, dtype=np.int64)
    first_row = np.cumsum(sizes) - sizes
    kept = np.flatnonzero(sizes)
    shards = kept[permute(np.arange(len(kept)), size=len(kept), key=derive_key(order.seed, epoch, 0))]
    slot_starts = np.concatenate([[0], np.cumsum(sizes[shards])])
    edges, width = [0], 1
    while edges[-1] < len(shards):
        edges.append(min(len(shards), edges[-1] + width))
        width = min(order.window_shards, 2 * width)
    return first_row[shards], slot_starts, slot_starts[edges]


@dataclass(frozen=True)
class WeightedShuffle:
    """Shuffled draws from several groups of rows, in fixed shares.

    Every epoch draws an exact number of rows from each group. All rows of a group are drawn before any is drawn again,
    continuing over epochs, so its rows are used equally often.
    """

    group_sizes: tuple[int, ...]  # rows of each group; the rows of group g follow those of group g - 1
    draws: tuple[int, ...]  # from each group, per epoch
    seed: int
    name: str

    def __post_init__(self) -> None:
        if any(size == 0 and drawn for size, drawn in zip(self.group_sizes, self.draws, strict=True)):
            raise LoaderError("an empty group cannot be drawn from: remove it, or give it the weight 0")

    def __len__(self) -> int:
        return sum(self.draws)

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        draws = np.asarray(self.draws, dtype=np.int64)
        sizes = np.asarray(self.group_sizes, dtype=np.int64)
        ends = np.cumsum(draws)
        slots = permute(np.arange(start, stop, dtype=np.int64), size=len(self), key=derive_key(self.seed, epoch))
        group = np.searchsorted(ends, slots, side="right")
        drawn = epoch * draws[group] + slots - (ends - draws)[group]  # from this group, since the first epoch
        size = sizes[group]
        # One permutation per pass through each group.
        key = mix(
            mix((drawn // size).astype(np.uint64) + np.uint64(derive_key(self.seed, 1))) ^ group.astype(np.uint64)
        )
        return (np.cumsum(sizes) - sizes)[group] + permute(drawn % size, size=size, key=key)


class SampleWeights:
    """Shuffled draws in proportion to a weight of each row; as many draws per epoch as rows.

    Systematic sampling: the draws are at equal distances along the cumulative weights, with a random offset in each
    epoch. So every row is drawn its expected number of times, rounded down or up.

    Args:
        weights: (n,), at least 0, not all 0.
    """

    def __init__(self, weights: npt.NDArray[np.float64], *, seed: int) -> None:
        digest = hashlib.sha256(np.ascontiguousarray(weights, dtype="<f8").tobytes()).hexdigest()
        self.seed, self.name = seed, f"weights-{digest[:16]}"
        self._ends = np.cumsum(weights / weights.max())
        self._last = int(np.flatnonzero(weights)[-1])

    def __len__(self) -> int:
        return len(self._ends)

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        slots = permute(np.arange(start, stop, dtype=np.int64), size=len(self), key=derive_key(self.seed, epoch))
        begin = derive_key(self.seed, epoch, 1) / 2**64
        places = (slots + begin) * (self._ends[-1] / len(self))
        # side="right" never selects a row of weight 0; rounding can give a point at the total itself.
        rows: Ints = np.searchsorted(self._ends, places, side="right")
        return np.minimum(rows, self._last)


@dataclass(frozen=True, eq=False)
class RemappedOrder:
    """Order over a list of rows instead of range(n)."""

    order: EpochOrder
    of_rows: Ints

    @property
    def name(self) -> str:
        return self.order.name

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        return self.of_rows[self.order.rows(epoch, start, stop)]


def shares(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Return integers that add up to `total`, in proportion to the weights (largest remainders, first come first)."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)
