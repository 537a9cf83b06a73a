"""Interfaces of rows that lie in shards: what is read of them, and what a loader needs."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from walloc_data.dataset.order import Ints

__all__ = ["BatchSource", "ShardedRows"]


class ShardedRows(ABC):
    """Rows that lie in shards, which can be downloaded ahead."""

    @abstractmethod
    def shards(self, rows: Ints) -> Ints:
        """Return the number of the shard of each row, (n,)."""

    @abstractmethod
    def fetch(self, shard: int) -> None:
        """Download a shard before it is needed."""


class BatchSource(ShardedRows):
    """Samples that a loader reads in batches.

    Attributes:
        identity: names these samples in this order.
        seed: of the shuffles, the mirroring and the transforms.
    """

    identity: str
    seed: int

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def num_prefetch_shards(self) -> int:
        """Number of shards to download ahead; 0 if all are local."""

    @abstractmethod
    def read_batch(self, rows: Ints, *, epoch: int, valid: Tensor | None = None) -> Any:
        """Return latents (B, C, h, w) and labels (B,) of rows."""
