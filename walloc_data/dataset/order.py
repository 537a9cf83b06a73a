"""The order of an epoch as arithmetic: which sample stands at a position, for any position, without a list.

Every order is a pure function of (seed, epoch, position). Nothing is kept between calls, so a state is a position, a
worker can compute its own batches, and a hundred million samples cost no memory. The shuffles are keyed permutations
(`walloc_data.permutations`). They are part of what makes runs reproducible: `tests/dataset/test_order.py` pins them.
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
    """Return (n,) fair and independent coin flips, one for each row number."""
    return (mix(rows.astype(np.uint64) ^ np.uint64(key)) >> np.uint64(63)).astype(np.bool_)


class EpochOrder(Protocol):
    """Positions of an epoch to rows of a data set."""

    @property
    def name(self) -> str:
        """Name of this order in a saved state; a state of another order is refused."""

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        """Return (stop - start,) int64: the rows at these positions."""


@dataclass(frozen=True)
class StoredOrder:
    """As stored, every epoch."""

    num_rows: int
    name: str = "stored"

    def __len__(self) -> int:
        return self.num_rows

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        del epoch
        return np.arange(start, stop, dtype=np.int64)


@dataclass(frozen=True)
class FullShuffle:
    """Every order of the whole split is possible. Touches all shards at once."""

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
    """Shards in random order, then samples shuffled within windows of consecutive shards.

    The first window of an epoch is one shard, the next two, then four, up to `window_shards`: the first batch needs one
    shard, and each window is fetched while the one before it, half its length, is read.
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
    """Return, of shards in epoch order: first row (s,), first position (s + 1,), first position of each window (w +
    1,).
    """
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
    """Draws from several groups of rows in fixed shares, shuffled together.

    An epoch takes exactly its share from each group. Within a group the draws go through all its rows before any is
    drawn again, and go on where the last epoch stopped, so over time all rows of a group are used equally.
    """

    group_sizes: tuple[int, ...]  # rows of each group; the rows of group g follow those of group g - 1
    draws: tuple[int, ...]  # from each group, an epoch
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
        # One permutation for each pass through each group.
        key = mix(
            mix((drawn // size).astype(np.uint64) + np.uint64(derive_key(self.seed, 1))) ^ group.astype(np.uint64)
        )
        return (np.cumsum(sizes) - sizes)[group] + permute(drawn % size, size=size, key=key)


class SampleWeights:
    """As many draws as there are rows, in proportion to a weight of each row, shuffled.

    An epoch draws every row its exact share of times, rounded down or up: at equal distances along the sum of all
    weights, from a place that is new in every epoch. So a row with half a draw an epoch comes in half of all epochs.

    Args:
        weights: (n,) of at least 0, not all 0.
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
        # Never a row of weight 0: the first end above a place; rounding may lead to the sum itself.
        rows: Ints = np.searchsorted(self._ends, places, side="right")
        return np.minimum(rows, self._last)


@dataclass(frozen=True, eq=False)
class RemappedOrder:
    """An order over a list of rows instead of range(n)."""

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
