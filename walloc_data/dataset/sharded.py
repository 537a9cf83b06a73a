"""Interfaces of samples that are stored in shards, for readers and for loaders."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from walloc_data.dataset.order import Ints

__all__ = ["BatchSource", "ShardedRows"]


class ShardedRows(ABC):
    """Interface of rows that are stored in shards, which can be downloaded ahead."""

    @abstractmethod
    def shards(self, rows: Ints) -> Ints:
        """Return the number of the shard of each row, (n,)."""

    @abstractmethod
    def fetch(self, shard: int) -> None:
        """Download a shard before it is needed."""


class BatchSource(ShardedRows):
    """Interface of a data set that a loader reads in batches.

    Attributes:
        identity: hash of the samples and their order, for states of loaders.
        seed: seed of shuffles, mirroring and transforms.
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
        """Return one batch of rows: by default latents (B, C, h, w) int8 and labels (B,) int64.

        Args:
            valid: (B,) bool, False for padding; appended to the batch.
        """
