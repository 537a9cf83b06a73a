"""What can be loaded: a data set, a part of one, or a mixture of several."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from walloc_data.dataset.loader import LatentLoader
from walloc_data.dataset.order import EpochOrder, Ints, RemappedOrder, WeightedShuffle, shares
from walloc_data.dataset.plan import BatchPlan, BucketPlan, SequencePlan
from walloc_data.errors import LoaderError

__all__ = ["LatentSamples", "Transform"]

Transform = Callable[[Tensor], Tensor]
Sample = tuple[Tensor, int]

_ITERATION_SAMPLES = 64


class LatentSamples(Dataset[Sample]):
    """Samples `(latent, label)`: a map-style data set that also iterates in its own epoch order and makes loaders.

    Attributes:
        identity: names these samples in this order; part of every loader's state.
        seed: of the shuffles, the mirroring and the transforms.
        shuffle: whether epochs are shuffled.
    """

    identity: str
    seed: int
    shuffle: bool

    def __init__(self) -> None:
        self._epoch = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def epoch_order(self) -> EpochOrder:
        """The order that epochs follow."""

    @abstractmethod
    def shards(self, rows: Ints) -> Ints:
        """(n,) a number for the shard of each row."""

    @abstractmethod
    def fetch(self, shard: int) -> None:
        """Bring a shard here ahead of its use."""

    @property
    @abstractmethod
    def shards_ahead(self) -> int:
        """How many shards to fetch before they are needed; 0 where all are here."""

    @property
    @abstractmethod
    def labels(self) -> npt.NDArray[np.int64]:
        """(n,) the label of each row, -1 where there is none."""

    @abstractmethod
    def latent_sides(self) -> npt.NDArray[np.int64] | None:
        """(n, 2) height and width of each row's latent in cells; None where all rows give one shape."""

    @abstractmethod
    def read(self, rows: Ints, *, epoch: int | None) -> tuple[Sequence[Tensor] | Tensor, npt.NDArray[np.int64]]:
        """Latents of rows, stacked where they are of one shape, and their labels.

        The epoch decides what is random in a sample; None reads samples as stored.
        """

    def read_batch(self, rows: Ints, *, epoch: int) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) and labels (B,) int64 of rows."""
        latents, labels = self.read(rows, epoch=epoch)
        if not isinstance(latents, Tensor):
            shapes = sorted({tuple(latent.shape) for latent in latents})
            if len(shapes) > 1:
                raise LoaderError(
                    f"a batch holds latents of several shapes, {shapes[0]} and {shapes[1]}: {_SHAPES_REMEDY}"
                )
            latents = torch.stack(list(latents))
        return latents, torch.from_numpy(labels)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position, as stored: never mirrored. The transform applies."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        rows = np.asarray(indices, dtype=np.int64)
        rows = np.where(rows < 0, rows + len(self), rows)
        if ((rows < 0) | (rows >= len(self))).any():
            raise IndexError(f"sample {list(indices)} of {len(self)}")
        latents, labels = self.read(rows, epoch=None)
        return list(zip(latents, labels.tolist(), strict=True))

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration over the samples this epoch. Loaders have epochs of their own."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Sample]:
        """One epoch of samples; every call is the next epoch."""
        order, epoch = self.epoch_order(), self._epoch
        self._epoch += 1
        for start in range(0, len(order), _ITERATION_SAMPLES):
            rows = order.rows(epoch, start, min(len(order), start + _ITERATION_SAMPLES))
            latents, labels = self.read(rows, epoch=epoch)
            yield from zip(latents, labels.tolist(), strict=True)

    def loader(
        self,
        *,
        batch_size: int,
        num_workers: int = 0,
        drop_last: bool = False,
        pad: bool = False,
        class_balanced: bool = False,
        bucket_by_shape: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch_batches: int = 2,
        pin_memory: bool = False,
    ) -> LatentLoader:
        """Batches `(latents, labels)`: (B, C, h, w) int8 and (B,) int64.

        Args:
            batch_size: samples of a global batch. Every rank gets an equal slice of each, `batch_size / world_size`, so
                the sequence of global batches does not depend on how many ranks there are.
            num_workers: processes that read and decode; 0 does it in this one.
            drop_last: leave out the samples that do not fill a last batch (the others get their turn: the order changes
                every epoch).
            pad: fill the last batch with repeated samples, and yield `(latents, labels, valid)` with (B,) bool that is
                False on them: sums over `valid` are exact for any number of ranks.
            class_balanced: draw every class equally often; an epoch has as many draws as there are samples.
            bucket_by_shape: make every batch of samples of one latent shape, for pictures of native resolution.
            rank: of this process; None asks torch.distributed, and is 0 without it.
            world_size: processes that share every batch.
            prefetch_batches: that each worker makes ahead.
            pin_memory: put batches in page-locked memory, for asynchronous copies to a GPU.

        Raises:
            LoaderError: the batches cannot be made like this; says what to change.
        """
        rank, world_size = _place(rank, world_size)
        if batch_size < 1 or batch_size % world_size:
            raise LoaderError(
                f"batch_size {batch_size} is of the global batch and must divide evenly among {world_size} ranks"
            )
        if drop_last and pad:
            raise LoaderError("drop_last and pad exclude each other: training drops, evaluation pads")
        plan = self._plan(
            batch_size, "drop" if drop_last else "pad" if pad else "short", class_balanced, bucket_by_shape
        )
        if world_size > 1 and not (drop_last or pad) and plan.num_samples != plan.num_batches * batch_size:
            raise LoaderError(
                f"{plan.num_samples} samples do not fill batches of {batch_size}, so {world_size} ranks would get "
                "unequal ones: pass drop_last=True to train, pad=True to evaluate"
            )
        return LatentLoader(
            self,
            plan,
            batch_size=batch_size,
            pad=pad,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            prefetch_batches=prefetch_batches,
            pin_memory=pin_memory,
        )

    def _plan(
        self, batch_size: int, last: Literal["short", "drop", "pad"], class_balanced: bool, bucket_by_shape: bool
    ) -> BatchPlan:
        sides = self.latent_sides()
        if bucket_by_shape:
            if class_balanced:
                raise LoaderError("class_balanced and bucket_by_shape exclude each other")
            if sides is None:
                return BucketPlan((np.arange(len(self)),), batch_size, last, self.seed if self.shuffle else None)
            _, group = np.unique(sides, axis=0, return_inverse=True)
            rows = _grouped(group.reshape(-1))
            return BucketPlan(tuple(rows), batch_size, last, self.seed if self.shuffle else None)
        if sides is not None:
            raise LoaderError(f"these latents are of several shapes: {_SHAPES_REMEDY}")
        if class_balanced:
            labels = self.labels
            if (labels < 0).any():
                raise LoaderError("class_balanced needs labels, and some samples here have none")
            groups = _grouped(np.unique(labels, return_inverse=True)[1])
            sizes = tuple(len(rows) for rows in groups)
            order = WeightedShuffle(sizes, shares(len(self), [1] * len(sizes)), self.seed, name="class-balanced")
            return SequencePlan(RemappedOrder(order, np.concatenate(groups)), batch_size, last)
        return SequencePlan(self.epoch_order(), batch_size, last)


_SHAPES_REMEDY = (
    "pass bucket_by_shape=True, or a transform to one size (walloc_data.transforms.RandomCrop), or encode with a size"
)


def _grouped(group: npt.NDArray[np.int64]) -> list[Ints]:
    """Rows of each group, in stored order."""
    rows = np.argsort(group, kind="stable")
    return np.split(rows, np.cumsum(np.bincount(group))[:-1])


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world_size), from torch.distributed where they are not given."""
    if (rank is None) != (world_size is None):
        raise LoaderError("rank and world_size go together")
    if rank is None or world_size is None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return 0, 1
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if not 0 <= rank < world_size:
        raise LoaderError(f"rank {rank} is not in [0, {world_size})")
    return rank, world_size
