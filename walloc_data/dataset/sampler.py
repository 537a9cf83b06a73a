"""The exact order of a `LatentLoader` for a plain `torch.utils.data.DataLoader`, and for what is built upon one."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Sampler

from walloc_data.dataset.batch_size import RankedBatches
from walloc_data.dataset.batching import Batching
from walloc_data.dataset.epoch import SampleIndex, as_epoch
from walloc_data.errors import LoaderError

__all__ = ["LatentBatchSampler"]


class LatentBatchSampler(Sampler[list[int]]):
    """Batches of positions in a data set's own exact order, for `DataLoader(dataset, batch_sampler=...)`.

    Made by `LatentDataset.batch_sampler`. Every pass is the next epoch, unless `set_epoch` names it. The positions know
    their epoch, so what is random in a sample (the transform's draws, `mirror`) is a function of (seed, epoch, sample)
    too, in any number of workers.

    A DataLoader draws batches ahead of the training step, so the sampler cannot know how many were trained on: pass
    that to `state_dict`. torchdata's StatefulDataLoader keeps count itself and saves and loads this sampler's state.

    Each rank gets its slice of every global batch. A library that splits batches among processes itself (accelerate's
    `prepare`, and with it the Hugging Face Trainer) needs whole ones: pass ``rank=0, world_size=1``.

    Attributes:
        epoch: of the next pass.
        position: of the next pass's first batch in its epoch: 0, or where a loaded state stopped.
        global_batch_size: samples of a batch over all ranks.
        drop_last: whether samples that do not fill a last batch are left out.

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
            # Lightning calls the class of a batch sampler with a sampler of its own, to share samples among ranks.
            raise LoaderError(
                "this batch sampler has an order of its own and cannot be made anew around another sampler, which "
                "Lightning does on several devices and to predict: give it dataset.loader(...) instead, or to train "
                "Trainer(use_distributed_sampler=False) with a batch_sampler() without rank and world_size"
            )
        self._ranked, self.drop_last = batches, drop_last
        self.epoch = 0
        self.position = 0
        self._given: tuple[int, int] | None = None  # (epoch, batches given out in it), of a pass that has begun

    def __repr__(self) -> str:
        return f"LatentBatchSampler({self._ranked}, epoch {self.epoch}, position {self.position})"

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, the same on every rank."""
        return self.batching.num_batches

    @property
    def batching(self) -> Batching:
        """The rows of each global batch."""
        return self._ranked.batching

    @property
    def global_batch_size(self) -> int:
        return self.batching.batch_size

    @property
    def batch_size(self) -> int:
        """Samples of a batch, for libraries that split batches among processes; refused where the sampler does.

        Raises:
            LoaderError: this sampler already gives each rank its own slice, so splitting again would lose samples.
        """
        if (world_size := self._ranked.world_size) > 1:
            raise LoaderError(
                f"this batch sampler gives each of {world_size} ranks its slice of every batch, and a library asks "
                "for its batch_size to split batches again: pass rank=0, world_size=1 to batch_sampler(), or leave "
                "the loader out of prepare(); in Lightning, Trainer(use_distributed_sampler=False)"
            )
        return self.global_batch_size

    @property
    def sampler(self) -> "LatentBatchSampler":
        """Itself: accelerate names epochs to the `sampler` of a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass this epoch. Naming the epoch that a loaded state is in keeps the state's position."""
        epoch = as_epoch(epoch)
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0
        self._given = None

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that nothing happens before the first batch is asked for: DataLoaders make more iterators
        # than they use.
        epoch, start = self.epoch, self.position
        self.epoch, self.position = epoch + 1, 0
        batching, rank, world_size = self._ranked.begin()
        for number in range(start, batching.num_batches):
            self._ranked.still()
            batch = batching.batch(epoch, number).slice(rank, world_size)
            self._given = epoch, number + 1
            yield [SampleIndex(row, epoch) for row in batch.rows.tolist()]

    def state_dict(self, *, position: int | None = None) -> dict[str, Any]:
        """Return where the run is: a few integers and names, JSON-able, independent of workers and ranks.

        Args:
            position: batches of the running epoch that were trained on, those before a resume included. Needed once
                the pass has begun, because a DataLoader draws ahead.

        Raises:
            LoaderError: `position` is needed, or more than has been given out.
        """
        epoch, given = self._given or (self.epoch, self.position)
        if position is None:
            if self._given is not None and not _asked_by_torchdata():
                raise LoaderError(
                    f"{given} batches of epoch {epoch} were drawn from this sampler, and a DataLoader draws ahead of "
                    "the training step: say how many were trained on with state_dict(position=...)"
                )
            position = given
        if not 0 <= position <= given:
            raise LoaderError(f"position {position} is not in [0, {given}], the batches given out in epoch {epoch}")
        if position == len(self):
            epoch, position = epoch + 1, 0
        return self._ranked.state(epoch=epoch, position=position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken: the next pass yields the rest of that epoch.

        States of a `LatentLoader` over the same batches fit too.

        Raises:
            StateError: the state is of another data set, order, seed or global batch size; names it.
        """
        self.epoch, self.position = self._ranked.load(state)
        self._given = None


def _asked_by_torchdata() -> bool:
    """Return whether torchdata's StatefulDataLoader asks for the state: it takes one with each batch that it draws."""
    caller = sys._getframe(2).f_globals.get("__name__", "")
    return str(caller).partition(".")[0] == "torchdata"
