"""The order of an epoch as arithmetic: which sample stands at a position, for any position, without a list.

Every order is a pure function of (seed, epoch, position). Nothing is kept between calls, so a state is a position, a
worker can compute its own batches, and a hundred million samples cost no memory. The shuffles are keyed permutations:
a generalised Feistel network over a grid of a x b >= n cells, walked until it lands inside n (Black and Rogaway,
"Ciphers with arbitrary finite domains", CT-RSA 2002), with the mixing function of SplitMix64 (Steele, Lea and Flood,
OOPSLA 2014) as its rounds. They are part of what makes runs reproducible: `tests/dataset/test_order.py` pins them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from walloc_data.errors import LoaderError

__all__ = [
    "EpochOrder",
    "FullShuffle",
    "RemappedOrder",
    "StoredOrder",
    "WeightedShuffle",
    "WindowShuffle",
    "coin_flips",
    "derive_key",
    "permute",
    "shares",
]

Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1
_LARGEST = 2**52  # the square root below is exact up to here


def _mix(x: _Words) -> _Words:
    """SplitMix64's finaliser: every input bit moves about half of the output bits. (...) uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_key(*numbers: int) -> int:
    """One 64-bit key from a tuple of integers; the order and the length of the tuple matter."""
    key = len(numbers)
    for number in numbers:
        word = np.array([(key * _GOLDEN + number + 1) & _WORD], dtype=np.uint64)
        key = int(_mix(word)[0])
    return key


def coin_flips(rows: Ints, *, key: int) -> npt.NDArray[np.bool_]:
    """(n,) fair and independent coins, one for each row number."""
    return (_mix(rows.astype(np.uint64) ^ np.uint64(key)) >> np.uint64(63)).astype(np.bool_)


def permute(positions: Ints, *, size: Ints | int, key: _Words | int) -> Ints:
    """Where each position of range(size) lands under the permutation that `key` names.

    Args:
        positions: (n,) int64 in [0, size).
        size: how many are permuted, one for all or (n,) one each; at most 2^52.
        key: the permutation, one for all or (n,) one each.

    Returns:
        (n,) int64 in [0, size): for one size and key, a permutation of range(size).
    """
    sizes = np.atleast_1d(np.asarray(size, dtype=np.uint64))
    a = np.maximum(np.ceil(np.sqrt(sizes.astype(np.float64))), 1).astype(np.uint64)
    grid = (a, (sizes + a - np.uint64(1)) // a, np.atleast_1d(np.asarray(key, dtype=np.uint64)))
    landed = _cross(positions.astype(np.uint64), *grid)
    while (outside := np.flatnonzero(landed >= sizes)).size:  # the grid is a little larger than the range
        landed[outside] = _cross(landed[outside], *(v if len(v) == 1 else v[outside] for v in grid))
    return landed.astype(np.int64)


def _cross(x: _Words, a: _Words, b: _Words, key: _Words) -> _Words:
    """One pass through the Feistel network: a permutation of range(a * b)."""
    left, right = x % a, x // a
    half = np.uint64(32)
    for number in range(_ROUNDS):
        round_key = _mix(key + np.uint64((number * _GOLDEN) & _WORD))
        source, limit = (right, a) if number % 2 == 0 else (left, b)
        step = ((_mix(source ^ round_key) >> half) * limit) >> half  # uniform in [0, limit)
        moved = (left if number % 2 == 0 else right) + step
        moved -= np.where(moved >= limit, limit, np.uint64(0))
        if number % 2 == 0:
            left = moved
        else:
            right = moved
    return left + a * right


class EpochOrder(Protocol):
    """Positions of an epoch to rows of a data set."""

    @property
    def name(self) -> str:
        """What a saved state calls this order; a state of another order is refused."""

    def __len__(self) -> int:
        """Samples an epoch."""

    def rows(self, epoch: int, start: int, stop: int) -> Ints:
        """(stop - start,) int64: the rows at these positions."""


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
    """Of the shards in epoch order: first row (s,), first position (s + 1,); first position of each window (w + 1,)."""
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
        key = _mix(
            _mix((drawn // size).astype(np.uint64) + np.uint64(derive_key(self.seed, 1))) ^ group.astype(np.uint64)
        )
        return (np.cumsum(sizes) - sizes)[group] + permute(drawn % size, size=size, key=key)


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
    """Whole numbers that add up to `total`, in proportion to the weights (largest remainders, first come first)."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)
