"""Batch sizes of one rank and of all ranks, and the batches that follow once the number of ranks is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from walloc_data.dataset.batching import Batching
from walloc_data.dataset.ranks import RankInfo
from walloc_data.dataset.sharded import BatchSource
from walloc_data.dataset.state import check_state, make_state, sizes
from walloc_data.errors import LoaderError, StateError

__all__ = ["BatchSize", "RankedBatches"]


@dataclass(frozen=True)
class BatchSize:
    """Requested batch size, per rank or over all ranks."""

    samples: int
    of_all_ranks: bool

    @classmethod
    def given(cls, batch_size: int | None, global_batch_size: int | None) -> "BatchSize":
        """Return the batch size from the argument that is given.

        Raises:
            LoaderError: neither or both are given, or it is not an integer of at least 1.
        """
        if (batch_size is None) == (global_batch_size is None):
            raise LoaderError(
                "pass either batch_size (samples per rank) or global_batch_size (samples over all ranks), "
                f"not batch_size={batch_size!r} and global_batch_size={global_batch_size!r}"
            )
        name, value = ("global_batch_size", global_batch_size) if batch_size is None else ("batch_size", batch_size)
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise LoaderError(f"{name} must be an integer of at least 1, not {value!r}")
        return cls(int(value), of_all_ranks=batch_size is None)

    def over(self, world_size: int) -> int:
        """Return the size of a global batch of `world_size` ranks.

        Raises:
            LoaderError: it is not divisible by the number of ranks.
        """
        if not self.of_all_ranks:
            return self.samples * world_size
        if self.samples % world_size:
            raise LoaderError(
                f"global_batch_size {self.samples} does not divide evenly among {world_size} ranks: pass a multiple of "
                f"{world_size}, or batch_size, which is per rank"
            )
        return self.samples


class RankedBatches:
    """Global batches of an epoch, for the current number of ranks.

    Args:
        samples: data set that the rows belong to.
        batching: assignment of rows to batches; its batch size is replaced.
        size: batch size, per rank or over all ranks.
        rank_info: rank and world size of this process.
        equal: whether an incomplete last batch is dropped or padded.

    Raises:
        LoaderError: the ranks, if known, cannot share the batches equally.
    """

    def __init__(
        self, samples: BatchSource, batching: Batching, size: BatchSize, rank_info: RankInfo, *, equal: bool
    ) -> None:
        self._samples, self._batching, self._size, self._rank_info = samples, batching, size, rank_info
        self._equal = equal
        self._resumed: int | None = None  # the global batch size of the loaded state
        try:
            rank_info.find()
        except LoaderError:
            return  # checked again with the first batch
        self.check()

    @property
    def world_size(self) -> int:
        """Current number of ranks."""
        return self._rank_info.find()[1]

    @property
    def batching(self) -> Batching:
        """Global batches for the current number of ranks."""
        return self.of(self.world_size)

    def of(self, world_size: int) -> Batching:
        """Return the global batches for `world_size` ranks."""
        size = self._size.over(world_size)
        if self._batching.batch_size != size:
            self._batching = self._batching.resized(size)
        return self._batching

    def check(self) -> None:
        """Raise LoaderError if the current ranks cannot share every batch equally, or there is no batch."""
        batching, world_size = self.batching, self.world_size
        if self._equal and not batching.num_batches and len(self._samples):
            raise LoaderError(
                f"{len(self._samples)} samples do not fill one batch of {sizes(batching.batch_size, world_size)}, and "
                "drop_last=True leaves out what is not full, so an epoch would have no batch: make batches smaller, or "
                "leave out drop_last"
            )
        if world_size > 1 and not self._equal and batching.num_samples != batching.num_batches * batching.batch_size:
            raise LoaderError(
                f"{batching.num_samples} samples do not fill batches of {sizes(batching.batch_size, world_size)}, so "
                f"{world_size} ranks would get unequal ones: pass drop_last=True to train, pad=True to evaluate"
            )

    def begin(self) -> tuple[Batching, int, int]:
        """Return the batches of a pass that starts now, the rank, and the number of ranks.

        Raises:
            LoaderError: the ranks cannot share the batches, or have changed since the first batch.
            StateError: the number of ranks has changed since the state was loaded.
        """
        self.check()
        rank, world_size = self._rank_info.use()
        batching = self.batching
        if self._resumed not in (None, batching.batch_size):
            raise StateError(
                f"a state was loaded for batches of {self._resumed} samples, and there are {world_size} ranks now, "
                f"with batches of {sizes(batching.batch_size, world_size)}: load the state after "
                "torch.distributed.init_process_group, or pass global_batch_size"
            )
        return batching, rank, world_size

    def check_unchanged(self) -> None:
        """Raise LoaderError if the rank of this process has changed since the pass started."""
        self._rank_info.use()

    def state(self, *, epoch: int, position: int) -> dict[str, Any]:
        """Return the state after `position` batches of `epoch`."""
        return make_state(self._samples, self.batching, self.world_size, epoch=epoch, position=position)

    def load(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """Return (epoch, position) of a state.

        Raises:
            StateError: the state is for other batches; the message names the difference.
        """
        found = check_state(state, self._samples, self.batching, self.world_size)
        self._resumed = self.batching.batch_size
        return found

    def __str__(self) -> str:
        try:
            batching, world_size = self.batching, self.world_size
        except LoaderError:  # the ranks are not known yet
            of = "over all ranks" if self._size.of_all_ranks else "a rank"
            return f"batches of {self._size.samples} {of}, order {self._batching.name!r}"
        return (
            f"{batching.num_samples} samples in {batching.num_batches} batches of "
            f"{sizes(batching.batch_size, world_size)}, order {batching.name!r}"
        )
