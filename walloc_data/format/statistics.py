"""Histograms of latent values, and statistics derived from them."""

import math
from dataclasses import dataclass
from typing import Self

from walloc_data.errors import FormatError
from walloc_data.format.checks import Record, check_int
from walloc_data.format.spec import CodecSpec

__all__ = ["ChannelStatistics"]


@dataclass(frozen=True)
class ChannelStatistics(Record):
    """Histogram of the values of each latent channel, and statistics derived from it.

    Integer counts can be added over shards in any order, so the statistics do not depend on how a split was made.

    Example:
        >>> from walloc_data.format import ChannelStatistics
        >>> seen = ChannelStatistics(((0, 1, 2, 1),))  # one channel of 2 bits: -1 once, 0 twice, 1 once
        >>> seen.mean, seen.entropy_bits, seen.bounds
        ((0.0,), (1.5,), ((-1, 1),))
        >>> (seen + seen).counts
        ((0, 2, 4, 2),)
    """

    counts: tuple[tuple[int, ...], ...]  # (latent_dim, 2^latent_bits); column i counts the value i - 2^(bits-1)

    def __post_init__(self) -> None:
        if not isinstance(self.counts, tuple) or not all(isinstance(row, tuple) for row in self.counts):
            raise FormatError("counts must be a list of lists")
        if len({len(row) for row in self.counts}) != 1 or not 1 <= len(self.counts) <= 4096:
            raise FormatError("counts must be one row per channel, all of one length")
        for row in self.counts:
            for count in row:
                check_int("counts", count, low=0)

    @classmethod
    def zero(cls, spec: CodecSpec) -> Self:
        """Return the counts of no latents."""
        return cls(((0,) * 2**spec.latent_bits,) * spec.latent_dim)

    def __add__(self, other: Self) -> Self:
        pairs = zip(self.counts, other.counts, strict=True)
        return type(self)(tuple(tuple(a + b for a, b in zip(*pair, strict=True)) for pair in pairs))

    def _moment(self, row: tuple[int, ...], power: int) -> int:
        offset = len(row) // 2
        return sum(count * (i - offset) ** power for i, count in enumerate(row))

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, (latent_dim,); 0 without values."""
        return tuple(self._moment(row, 1) / max(1, sum(row)) for row in self.counts)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, (latent_dim,)."""
        result = []
        for row in self.counts:
            n = max(1, sum(row))
            first, second = self._moment(row, 1), self._moment(row, 2)
            result.append(math.sqrt(n * second - first * first) / n)  # exact integers under the root
        return tuple(result)

    @property
    def entropy_bits(self) -> tuple[float, ...]:
        """Zeroth-order entropy of each channel in bits per value, (latent_dim,)."""
        result = []
        for row in self.counts:
            n = max(1, sum(row))
            result.append(-sum(count / n * math.log2(count / n) for count in row if count))
        return tuple(result)

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """Smallest and largest value of each channel, (latent_dim,) pairs; (0, 0) without values."""
        result = []
        for row in self.counts:
            seen = [i - len(row) // 2 for i, count in enumerate(row) if count]
            result.append((seen[0], seen[-1]) if seen else (0, 0))
        return tuple(result)
