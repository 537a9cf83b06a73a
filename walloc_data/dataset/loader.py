"""The loader of batches in an exact, resumable order, for any number of workers and ranks: `LatentLoader`.

The loader counts the global batches of the epoch that it has yielded. Workers receive batch numbers and compute the
rows, so a state is a few integers, independent of the numbers of workers and ranks.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from walloc_data.dataset.batch_size import RankedBatches
from walloc_data.dataset.batching import Batching
from walloc_data.dataset.epoch import as_epoch
from walloc_data.dataset.prefetch import prefetching
from walloc_data.dataset.sharded import BatchSource
from walloc_data.dataset.stats import LoaderStats, TimedBatch, timed_batch
from walloc_data.dataset.workers import batches_of, in_shared_memory
from walloc_data.errors import LoaderError

__all__ = ["LatentLoader"]

_ITERATED_AGAIN = (
    "another iteration over this loader was started; a loader supports one at a time. Create a second loader of the "
    "same data set for nested or concurrent iteration"
)
_EPOCH_SET = "the epoch or the state of this loader was set during this iteration: start a new one"


@dataclass(frozen=True)
class _Batches(Dataset[TimedBatch]):
    """Data set of the workers: maps (epoch, number, rank, world size) to a slice of a batch."""

    samples: BatchSource
    batches: RankedBatches
    pad: bool

    def __getitem__(self, wanted: tuple[int, int, int, int]) -> TimedBatch:
        epoch, number, rank, world_size = wanted
        with timed_batch() as made:
            batch = self.batches.of(world_size).batch(epoch, number).slice(rank, world_size)
            valid = torch.from_numpy(batch.valid.copy()) if self.pad else None
            made.batch = in_shared_memory(self.samples.read_batch(batch.rows, epoch=epoch, valid=valid))
        return made


class _Numbers(Sampler[tuple[int, int, int, int]]):
    """Sampler of the remaining batches of an epoch; the loader sets them before each pass."""

    def __init__(self) -> None:
        self.epoch, self.start, self.stop, self.rank, self.world_size = 0, 0, 0, 0, 1

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        epoch, rank, world_size = self.epoch, self.rank, self.world_size
        yield from ((epoch, number, rank, world_size) for number in range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


def _identity(batch: Any) -> Any:
    return batch


class LatentLoader:
    """Loader of batches, created by `LatentDataset.loader`. Each iteration is one epoch.

    Every pass is the next epoch, starting at `epoch`; a pass that is left early counts, too. `set_epoch` sets the epoch
    of the next pass. After `load_state_dict`, the next pass yields the remaining batches of the saved epoch. Only one
    pass can run at a time: if another starts, or an epoch or a state is set, the running one raises LoaderError at its
    next batch.

    This is not a `torch.utils.data.DataLoader`. For accelerate's `prepare`, `accumulate` and `skip_first_batches`, use
    a DataLoader with `LatentDataset.batch_sampler`.

    The rank is determined when a pass starts, so a loader may be created before the process group. It must not change
    after the first batch.

    Attributes:
        epoch: epoch of the running pass or, between passes, of the next.
        position: number of global batches yielded in it.
        batch_size: samples per batch and rank.
        global_batch_size: samples per batch over all ranks.

    Example:
        >>> from walloc_data import LatentDataset
        >>> loader = LatentDataset("my-latents", shuffle=True).loader(batch_size=2)
        >>> latents, labels = next(iter(loader))  # (2, 12, 12, 12) int8, (2,) int64
        >>> state = loader.state_dict()
        >>> state["epoch"], state["position"], state["num_batches"]
        (0, 1, 4)
        >>> loader.load_state_dict(state)  # in another run
        >>> sum(1 for batch in loader)  # what was left of the epoch
        3
    """

    def __init__(
        self,
        samples: BatchSource,
        batches: RankedBatches,
        *,
        pad: bool,
        num_workers: int,
        prefetch_batches: int,
        pin_memory: bool,
    ) -> None:
        self.samples, self._ranked = samples, batches
        self.epoch = 0
        self.position = 0
        self._running, self._pass, self._why_stopped = False, 0, ""
        self._stats = LoaderStats(num_workers=num_workers)
        self._numbers = _Numbers()
        self._batches = DataLoader(
            _Batches(samples, batches, pad),
            batch_size=None,  # items are batches
            sampler=self._numbers,
            collate_fn=_identity,
            num_workers=num_workers,
            prefetch_factor=prefetch_batches if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # the seed of workers must not be drawn from the user's generator
        )

    @property
    def batching(self) -> Batching:
        """Assignment of rows to global batches."""
        return self._ranked.batching

    @property
    def batch_size(self) -> int:
        return self.global_batch_size // self._ranked.world_size

    @property
    def global_batch_size(self) -> int:
        return self.batching.batch_size

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on every rank."""
        return self.batching.num_batches

    def __repr__(self) -> str:
        return f"LatentLoader({self._ranked}, epoch {self.epoch}, position {self.position})"

    @property
    def num_samples(self) -> int:
        """Samples per epoch over all ranks, without padding and dropped samples."""
        return self.batching.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass. If it is the epoch of a loaded state, the position is kept."""
        epoch = as_epoch(epoch)
        if self._running or epoch != self.epoch:
            self.epoch, self.position, self._running = epoch, 0, False
            self._stop_pass(_EPOCH_SET)

    def __iter__(self) -> Iterator[Any]:
        batching, rank, world_size = self._ranked.begin()
        stop = batching.num_batches
        if self._running:  # the previous pass was left early
            self.epoch, self.position = self.epoch + 1, 0
        self._running = True
        self._stop_pass(_ITERATED_AGAIN)
        this = self._pass
        epoch = self.epoch
        numbers = self._numbers
        numbers.epoch, numbers.start, numbers.stop = epoch, self.position, stop
        numbers.rank, numbers.world_size = rank, world_size
        batches = batches_of(self._batches)  # workers start here, before any thread
        with prefetching(self.samples, batching, epoch=epoch, start=self.position) as reached:
            for number in range(self.position, stop):
                # Checked before a batch is taken, which would be one of the other pass.
                if self._pass != this:
                    raise LoaderError(self._why_stopped)
                asked = time.perf_counter()
                made = next(batches, None)
                if made is None:
                    break
                self._count(made, time.perf_counter() - asked)
                reached(number)
                self._ranked.check_unchanged()
                # The yielded batch counts as done: a state saved after its step must not repeat it.
                self.position = number + 1
                if self.position == stop:
                    self.epoch, self.position, self._running = epoch + 1, 0, False
                given = time.perf_counter()
                yield made.batch
                # Not if the pass is left early, at an unknown time.
                waited = self._stats.waiting_for_trainer_s + time.perf_counter() - given
                self._stats = replace(self._stats, waiting_for_trainer_s=waited)
        if not stop:
            self.epoch, self._running = epoch + 1, False

    def _count(self, made: TimedBatch, waited_s: float) -> None:
        stats = self._stats
        self._stats = replace(
            stats,
            num_batches=stats.num_batches + 1,
            waiting_for_batches_s=stats.waiting_for_batches_s + waited_s,
            waiting_for_shards_s=stats.waiting_for_shards_s + made.shards_s,
            decoding_s=stats.decoding_s + made.decoding_s,
        )

    def stats(self) -> LoaderStats:
        """Return the times spent waiting, reading and decoding since the loader was created."""
        return self._stats

    def state_dict(self) -> dict[str, Any]:
        """Return the state: a JSON-serialisable dict of integers and names, equal on every rank."""
        return self._ranked.state(epoch=self.epoch, position=self.position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state: the next pass yields the rest of the saved epoch.

        The number of ranks may differ if the global batch size is the same (`global_batch_size`).

        Raises:
            StateError: the state is of another data set, order, seed or global batch size; the message names it.
        """
        self.epoch, self.position = self._ranked.load(state)
        self._running = False
        self._stop_pass(_EPOCH_SET)

    def _stop_pass(self, why: str) -> None:
        """End the running pass, if any: its next batch, which would count in another epoch, becomes an error."""
        self._pass += 1
        self._why_stopped = why
