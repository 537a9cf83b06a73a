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
    """Samples of a batch as they were asked for: of one rank, or of all ranks together."""

    samples: int
    of_all_ranks: bool

    @classmethod
    def given(cls, batch_size: int | None, global_batch_size: int | None) -> "BatchSize":
        """Return the one of the two that is given.

        Raises:
            LoaderError: neither or both are given, or it is not an integer of at least 1.
        """
        if (batch_size is None) == (global_batch_size is None):
            raise LoaderError(
                "pass batch_size, the samples of one rank's batch, or global_batch_size, those of all ranks together: "
                f"exactly one of them, not batch_size={batch_size!r} and global_batch_size={global_batch_size!r}"
            )
        name, value = ("global_batch_size", global_batch_size) if batch_size is None else ("batch_size", batch_size)
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise LoaderError(f"{name} must be an integer of at least 1, not {value!r}")
        return cls(int(value), of_all_ranks=batch_size is None)

    def over(self, world_size: int) -> int:
        """Return the samples of a global batch of `world_size` ranks.

        Raises:
            LoaderError: ranks cannot share it equally.
        """
        if not self.of_all_ranks:
            return self.samples * world_size
        if self.samples % world_size:
            raise LoaderError(
                f"global_batch_size {self.samples} does not divide evenly among {world_size} ranks: pass a multiple of "
                f"{world_size}, or batch_size, which is of one rank"
            )
        return self.samples


class RankedBatches:
    """Global batches of an epoch, as many samples each as the present number of ranks makes them.

    Args:
        samples: what the rows belong to.
        batching: gives the rows; its own batch size does not count.
        size: of a batch, of one rank or of all.
        rank_info: this process among the ranks.
        equal: whether a last batch that is not full is dropped or filled up.

    Raises:
        LoaderError: the ranks, if they are known already, cannot share the batches equally.
    """

    def __init__(
        self, samples: BatchSource, batching: Batching, size: BatchSize, rank_info: RankInfo, *, equal: bool
    ) -> None:
        self._samples, self._batching, self._size, self._rank_info = samples, batching, size, rank_info
        self._equal = equal
        self._resumed: int | None = None  # the global batch size that a loaded state was checked against
        try:
            rank_info.find()
        except LoaderError:
            return  # drawing the first batch asks again
        self.check()

    @property
    def world_size(self) -> int:
        """Number of ranks now."""
        return self._rank_info.find()[1]

    @property
    def batching(self) -> Batching:
        """The global batches of the present number of ranks."""
        return self.of(self.world_size)

    def of(self, world_size: int) -> Batching:
        """Return the global batches of `world_size` ranks."""
        size = self._size.over(world_size)
        if self._batching.batch_size != size:
            self._batching = self._batching.resized(size)
        return self._batching

    def check(self) -> None:
        """Raise LoaderError where the present ranks cannot share every batch equally, or would get none."""
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
        """Return the batches of a pass that begins now, this rank and the number of ranks.

        Raises:
            LoaderError: ranks cannot share the batches, or have changed since the first batch was drawn.
            StateError: the number of ranks has changed since a state was loaded.
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

    def still(self) -> None:
        """Raise LoaderError if this process's rank has changed since the pass began."""
        self._rank_info.use()

    def state(self, *, epoch: int, position: int) -> dict[str, Any]:
        """Return the state in which `position` batches of `epoch` are done."""
        return make_state(self._samples, self.batching, self.world_size, epoch=epoch, position=position)

    def load(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """Return (epoch, position) of a state.

        Raises:
            StateError: it belongs to other batches; names the difference.
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
