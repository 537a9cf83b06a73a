"""The batch sampler for a plain `torch.utils.data.DataLoader`, with the order of `LatentLoader`."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Sampler

from walloc_data.dataset.arguments import check_integer
from walloc_data.dataset.batch_size import RankedBatches
from walloc_data.dataset.batching import Batching
from walloc_data.dataset.epoch import SampleIndex, as_epoch
from walloc_data.errors import LoaderError

__all__ = ["LatentBatchSampler"]


class LatentBatchSampler(Sampler[list[int]]):
    """Batch sampler for `DataLoader(dataset, batch_sampler=...)`, created by `LatentDataset.batch_sampler`.

    Every pass is the next epoch, unless `set_epoch` sets it. The positions carry their epoch, so random transforms and
    `mirror` are a function of (seed, epoch, sample), too, with any number of workers.

    A DataLoader draws batches before the training step, so the sampler does not know how many were trained on: pass the
    number to `state_dict`. torchdata's StatefulDataLoader counts them, and saves and loads the state of this sampler.

    Each rank gets its slice of every global batch. Libraries that split batches themselves (accelerate's `prepare`, and
    so the Hugging Face Trainer) need global batches: pass ``rank=0, world_size=1``.

    Attributes:
        epoch: epoch of the next pass.
        position: first batch of the next pass in its epoch: 0, or the position of a loaded state.
        global_batch_size: samples per batch over all ranks.
        drop_last: whether an incomplete last batch is dropped.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from walloc_data import LatentDataset
        >>> train = LatentDataset("my-latents", shuffle=True, seed=0)
        >>> sampler = train.batch_sampler(batch_size=2)
        >>> loader = DataLoader(train, batch_sampler=sampler, num_workers=1)
        >>> for step, (latents, labels) in enumerate(loader, start=sampler.position):
        ...     state = sampler.state_dict(position=step + 1)  # after a step: this batch is done
        ...     if step == 1:
        ...         break
        >>> sampler.load_state_dict(state)  # in another run
        >>> sampler.epoch, sampler.position, sum(1 for batch in loader)
        (0, 2, 2)
    """

    def __init__(
        self,
        batches: RankedBatches,
        *,
        batch_size: int | None = None,
        drop_last: bool,
    ) -> None:
        if not isinstance(batches, RankedBatches):
            # Lightning constructs the class of a batch sampler with its own sampler, to distribute samples.
            raise LoaderError(
                "this batch sampler has its own order and cannot be created with another sampler, as Lightning does on "
                "several devices and for prediction: use dataset.loader(...) instead, or for training "
                "Trainer(use_distributed_sampler=False) with a batch_sampler() without rank and world_size"
            )
        self._ranked, self.drop_last = batches, drop_last
        self.epoch = 0
        self.position = 0
        self._given: tuple[int, int] | None = None  # (epoch, batches drawn in it) of a started pass

    def __repr__(self) -> str:
        return f"LatentBatchSampler({self._ranked}, epoch {self.epoch}, position {self.position})"

    def __len__(self) -> int:
        """Return the number of batches per epoch, the same on every rank."""
        return self.batching.num_batches

    @property
    def batching(self) -> Batching:
        """Assignment of rows to global batches."""
        return self._ranked.batching

    @property
    def global_batch_size(self) -> int:
        return self.batching.batch_size

    @property
    def batch_size(self) -> int:
        """Samples per batch, for libraries that split batches among processes.

        Raises:
            LoaderError: this sampler already gives each rank its slice, so splitting again would lose samples.
        """
        if (world_size := self._ranked.world_size) > 1:
            raise LoaderError(
                f"this batch sampler gives each of {world_size} ranks its slice of every batch, but a library requests "
                "batch_size in order to split batches again: pass rank=0, world_size=1 to batch_sampler(), or do not "
                "pass the loader to prepare(); in Lightning, use Trainer(use_distributed_sampler=False)"
            )
        return self.global_batch_size

    @property
    def sampler(self) -> "LatentBatchSampler":
        """This object: accelerate calls `set_epoch` of the `sampler` of a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass. If it is the epoch of a loaded state, the position is kept."""
        epoch = as_epoch(epoch)
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0
        self._given = None

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that nothing happens before the first batch: DataLoaders create iterators that they do not
        # use.
        epoch, start = self.epoch, self.position
        self.epoch, self.position = epoch + 1, 0
        batching, rank, world_size = self._ranked.begin()
        for number in range(start, batching.num_batches):
            self._ranked.check_unchanged()
            batch = batching.batch(epoch, number).slice(rank, world_size)
            self._given = epoch, number + 1
            yield [SampleIndex(row, epoch) for row in batch.rows.tolist()]

    def state_dict(self, *, position: int | None = None) -> dict[str, Any]:
        """Return the state: a JSON-serialisable dict of integers and names, independent of workers and ranks.

        Args:
            position: number of batches of the running epoch that were trained on, including those before a resume.
                Required after the pass has started, because a DataLoader draws ahead.

        Raises:
            LoaderError: `position` is required, no integer, or larger than the number of batches drawn.
        """
        epoch, given = self._given or (self.epoch, self.position)
        if position is None:
            if self._given is not None and not _asked_by_torchdata():
                raise LoaderError(
                    f"{given} batches of epoch {epoch} were drawn from this sampler, and a DataLoader draws ahead of "
                    "the training step: pass the number of batches trained on, state_dict(position=...)"
                )
            position = given
        position = check_integer("position", position)
        if not 0 <= position <= given:
            raise LoaderError(f"position {position} is not in [0, {given}], the batches drawn in epoch {epoch}")
        if position == len(self):
            epoch, position = epoch + 1, 0
        return self._ranked.state(epoch=epoch, position=position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state: the next pass yields the rest of the saved epoch.

        States of a `LatentLoader` with the same batches are accepted, too.

        Raises:
            StateError: the state is of another data set, order, seed or global batch size; the message names it.
        """
        self.epoch, self.position = self._ranked.load(state)
        self._given = None


def _asked_by_torchdata() -> bool:
    """Return whether the caller is torchdata's StatefulDataLoader, which takes a state with each batch it draws."""
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return str(caller).partition(".")[0] == "torchdata"
