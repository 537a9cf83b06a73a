"""Base class of data sets, parts of data sets and mixtures."""

import operator
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from walloc_data.dataset.arguments import check_flag, check_integer
from walloc_data.dataset.batch_size import BatchSize, RankedBatches
from walloc_data.dataset.batching import Batching, BucketedBatches, Last, SequentialBatches
from walloc_data.dataset.epoch import SharedEpoch, as_epoch
from walloc_data.dataset.form import SampleForm
from walloc_data.dataset.loader import LatentLoader
from walloc_data.dataset.order import EpochOrder, Ints, RemappedOrder, SampleWeights, WeightedShuffle, shares
from walloc_data.dataset.ranks import RankInfo
from walloc_data.dataset.sampler import LatentBatchSampler
from walloc_data.dataset.sharded import BatchSource
from walloc_data.dataset.workers import prepare_worker
from walloc_data.errors import LoaderError

__all__ = ["LatentSamples", "RowValues", "Transform"]

Transform = Callable[[Tensor], Tensor]
Weights = Sequence[float] | npt.NDArray[Any] | Tensor
Sample = Any  # structured by the data set's `form`; by default (latent, label)

_ITERATION_SAMPLES = 64
_CLEARLY_IN_ORDER = 8  # a random order starts with so many ascending positions once in 40,320


class RowValues(NamedTuple):
    """Values read for some rows."""

    latents: Sequence[Tensor] | Tensor  # stacked if they have one shape
    values: dict[str, Any]  # of each column of the form: (n, ...) array, or a list


class LatentSamples(BatchSource, Dataset[Sample]):
    """Map-style data set that also iterates in its own epoch order and creates loaders.

    If samples are read by position, as by a plain DataLoader, random transforms and `mirror` draw from torch's global
    generator, as usual in torch: differently in every epoch and worker. After `set_epoch` they are a function of (seed,
    epoch, sample), as always in `loader`, `batch_sampler` and iteration. `shuffle` affects only `loader`,
    `batch_sampler` and iteration.

    Attributes:
        identity: identity of the samples and their order; part of the state of every loader.
        seed: seed of shuffles, mirroring and transforms.
        shuffle: whether epochs are shuffled.
        form: structure of a sample, by default `(latent, label)`.
    """

    shuffle: bool
    form: SampleForm

    def __init__(self) -> None:
        self._epoch = 0  # of the next iteration
        self._item_epoch = SharedEpoch()  # of samples read by position
        self._first_read: tuple[int, ...] | None = ()  # positions; None after the check whether they ascend

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def epoch_order(self) -> EpochOrder:
        """Return the order of epochs."""

    @property
    @abstractmethod
    def labels(self) -> npt.NDArray[np.int64]:
        """Label of each row, (n,); -1 without a label."""

    @abstractmethod
    def latent_sides(self) -> npt.NDArray[np.int64] | None:
        """Return (n, 2) height and width of the stored latents in cells; None if all have one shape."""

    @property
    @abstractmethod
    def may_vary(self) -> bool:
        """Whether samples may have several shapes, as far as is known: not what a transform makes of them."""

    @abstractmethod
    def read(self, rows: Ints, *, epoch: int | None) -> RowValues:
        """Return the latents of rows and the columns of the form.

        Random transforms are a function of the epoch; with None they draw from torch's global generator.
        """

    def read_batch(self, rows: Ints, *, epoch: int, valid: Tensor | None = None) -> Any:
        """Return one batch of rows: by default latents (B, C, h, w) int8 and labels (B,) int64.

        Args:
            valid: (B,) bool, False for padding; appended to the batch.

        Raises:
            LoaderError: the latents have several shapes.
        """
        latents, values = self.read(rows, epoch=epoch)
        if not isinstance(latents, Tensor):
            shapes = sorted({tuple(latent.shape) for latent in latents})
            if len(shapes) > 1:
                raise LoaderError(
                    f"a batch has latents of several shapes, {shapes[0]} and {shapes[1]}: {_SHAPES_REMEDY}"
                )
            latents = torch.stack(list(latents))
        return self.form.batch(latents, values, valid)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Return the sample at a position, or a list of samples for a slice. Negative positions count from the end.

        Raises:
            IndexError: the position does not exist.
            TypeError: the position is not an integer. For keys, use `by_key`.
        """
        if isinstance(index, slice):
            return self._read_items(range(*index.indices(len(self))))
        return self._read_items([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return samples at positions; torch's DataLoader calls it once per batch."""
        self._check_order(indices)
        return self._read_items(indices)

    def _read_items(self, indices: Sequence[int]) -> list[Sample]:
        """Return samples at positions; their epoch is that of a `SampleIndex`, else that of `set_epoch`, else None."""
        prepare_worker()
        rows = np.array([self._row(index) for index in indices], dtype=np.int64)
        ambient = self._item_epoch.value
        epochs = [getattr(index, "epoch", ambient) for index in indices]
        if len(set(epochs)) > 1:
            return [self._read_items([index])[0] for index in indices]
        if not len(rows):
            return []
        return self.form.samples(*self.read(rows, epoch=epochs[0]))

    def _row(self, index: int) -> int:
        try:
            row = operator.index(index)
        except TypeError:
            raise TypeError(
                f"a sample's position is an integer or a slice, not {index!r} of type {type(index).__name__}"
            ) from None
        if not -len(self) <= row < len(self):
            raise IndexError(f"sample {row} of {len(self)}")
        return row + len(self) if row < 0 else row

    def _check_order(self, indices: Sequence[int]) -> None:
        """Warn, once per process, if a DataLoader reads a data set with shuffle=True in stored order."""
        if self._first_read is None:
            return
        # Over several batches, which may be small; only ascending, as each worker or rank reads a part of the samples.
        self._first_read = (*self._first_read, *indices)[:_CLEARLY_IN_ORDER]
        rising = all(a < b for a, b in pairwise(self._first_read))
        if rising and len(self._first_read) < _CLEARLY_IN_ORDER:
            return
        self._first_read = None
        if self.shuffle and rising:
            warnings.warn(
                "a DataLoader reads this data set in stored order despite its shuffle=True, which DataLoaders ignore. "
                "Use dataset.loader(...), DataLoader(dataset, batch_sampler=dataset.batch_sampler(...)), or "
                "DataLoader(dataset, shuffle=True)",
                stacklevel=3,
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, and of samples that are read by position.

        Samples by position are then a function of (seed, epoch, sample), in this process and in running workers.
        Loaders and batch samplers have their own epochs.
        """
        self._epoch = self._item_epoch.value = as_epoch(epoch)

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples of one epoch; every call is the next epoch."""
        order, epoch = self.epoch_order(), self._epoch
        self._epoch += 1
        for start in range(0, len(order), _ITERATION_SAMPLES):
            rows = order.rows(epoch, start, min(len(order), start + _ITERATION_SAMPLES))
            yield from self.form.samples(*self.read(rows, epoch=epoch))

    def loader(
        self,
        *,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
        pad: bool = False,
        class_balanced: bool = False,
        weights: Weights | None = None,
        bucket_by_shape: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch_batches: int = 2,
        pin_memory: bool = False,
    ) -> LatentLoader:
        """Return a loader of batches `(latents, labels)`: (B, C, h, w) int8 and (B,) int64.

        Numbers and arrays of one shape become tensors of their dtype; other columns become lists.

        Args:
            batch_size: samples per batch and rank, as in PyTorch. The global batch grows with the number of ranks.
            global_batch_size: samples per batch over all ranks, instead of `batch_size`. Every rank gets an equal part,
                so the sequence of global batches does not depend on the number of ranks, and a state resumes exactly on
                another number of ranks.
            num_workers: processes that read and decode; 0 uses this process.
            drop_last: drop the samples of an incomplete last batch (different ones in every epoch, if shuffled).
            pad: fill the last batch with repeated samples, and yield `(latents, labels, valid)`, where `valid` (B,) is
                False for padding: sums over `valid` are exact for any number of ranks.
            class_balanced: draw every class equally often; an epoch has as many draws as samples.
            weights: weight of each sample, in stored order, to draw in proportion to. An epoch has as many draws as
                samples; each sample is drawn its expected number of times, rounded down or up.
            bucket_by_shape: make batches of one latent shape each, for pictures of different sizes.
            rank: rank of this process; None determines it when a pass starts: from torch.distributed if initialised,
                else from the environment variables RANK and WORLD_SIZE, else 0.
            world_size: number of ranks; required with `rank`.
            prefetch_batches: batches that each worker prepares ahead.
            pin_memory: put batches in page-locked memory, for asynchronous copies to a GPU.

        Raises:
            LoaderError: the batches cannot be made in this way; the message says what to change.
        """
        check_integer("num_workers", num_workers, low=0)
        check_integer("prefetch_batches", prefetch_batches, low=1)
        for name, flag in (("drop_last", drop_last), ("pad", pad), ("pin_memory", pin_memory)):
            check_flag(name, flag)
        if drop_last and pad:
            raise LoaderError("drop_last and pad cannot be combined: use drop_last for training, pad for evaluation")
        size = BatchSize.given(batch_size, global_batch_size)
        batching = self._batching(
            size,
            "drop" if drop_last else "pad" if pad else "short",
            class_balanced=class_balanced,
            weights=weights,
            bucket_by_shape=bucket_by_shape,
        )
        return LatentLoader(
            self,
            RankedBatches(self, batching, size, RankInfo(rank, world_size), equal=drop_last or pad),
            pad=pad,
            num_workers=num_workers,
            prefetch_batches=prefetch_batches,
            pin_memory=pin_memory,
        )

    def batch_sampler(
        self,
        *,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        drop_last: bool = False,
        class_balanced: bool = False,
        weights: Weights | None = None,
        bucket_by_shape: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> LatentBatchSampler:
        """Return the batches of `loader` as positions, for ``DataLoader(dataset, batch_sampler=...)``: the same order.

        Args:
            batch_size: samples per batch and rank.
            global_batch_size: samples per batch over all ranks, instead of `batch_size`, as in `loader`.
            drop_last: drop the samples of an incomplete last batch.
            class_balanced: draw every class equally often.
            weights: weight of each sample, as in `loader`.
            bucket_by_shape: make batches of one latent shape each.
            rank: rank of this process, as in `loader`. For libraries that split batches themselves (accelerate's
                `prepare`, the Hugging Face Trainer), pass rank=0 and world_size=1.
            world_size: number of ranks; required with `rank`.

        Raises:
            LoaderError: the batches cannot be made in this way; the message says what to change.
        """
        check_flag("drop_last", drop_last)
        size = BatchSize.given(batch_size, global_batch_size)
        batching = self._batching(
            size,
            "drop" if drop_last else "short",
            class_balanced=class_balanced,
            weights=weights,
            bucket_by_shape=bucket_by_shape,
        )
        batches = RankedBatches(self, batching, size, RankInfo(rank, world_size), equal=drop_last)
        return LatentBatchSampler(batches, drop_last=drop_last)

    def _batching(
        self,
        size: BatchSize,
        last: Last,
        *,
        class_balanced: bool,
        weights: Weights | None,
        bucket_by_shape: bool,
    ) -> Batching:
        batch_size = size.samples
        check_flag("class_balanced", class_balanced)
        check_flag("bucket_by_shape", bucket_by_shape)
        asked = {"class_balanced": class_balanced, "weights": weights is not None, "bucket_by_shape": bucket_by_shape}
        if len(both := [name for name, given in asked.items() if given]) > 1:
            raise LoaderError(f"{both[0]} and {both[1]} cannot be combined")
        if bucket_by_shape:
            sides = self.latent_sides()
            if sides is None:
                return BucketedBatches((np.arange(len(self)),), batch_size, last, self.seed if self.shuffle else None)
            _, group = np.unique(sides, axis=0, return_inverse=True)
            rows = _grouped(group.reshape(-1))
            return BucketedBatches(tuple(rows), batch_size, last, self.seed if self.shuffle else None)
        if self.may_vary:
            raise LoaderError(f"these latents have several shapes: {_SHAPES_REMEDY}")
        if class_balanced:
            labels = self.labels
            if (labels < 0).any():
                raise LoaderError("class_balanced needs labels, and some samples here have none")
            groups = _grouped(np.unique(labels, return_inverse=True)[1])
            sizes = tuple(len(rows) for rows in groups)
            order = WeightedShuffle(sizes, shares(len(self), [1] * len(sizes)), self.seed, name="class-balanced")
            return SequentialBatches(RemappedOrder(order, np.concatenate(groups)), batch_size, last)
        if weights is not None:
            return SequentialBatches(SampleWeights(_checked(weights, len(self)), seed=self.seed), batch_size, last)
        return SequentialBatches(self.epoch_order(), batch_size, last)


_SHAPES_REMEDY = (
    "pass bucket_by_shape=True, or a transform to one size (walloc_data.transforms.RandomCrop), or encode with a size"
)


def _checked(weights: Weights, num_rows: int) -> npt.NDArray[np.float64]:
    try:
        found = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError):
        raise LoaderError(f"weights must be {num_rows} numbers, one per sample, not {weights!r}") from None
    if found.shape != (num_rows,) or not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise LoaderError(
            f"weights must be {num_rows} finite numbers of at least 0, one per sample, not all 0: got {found.shape} "
            f"from {found.min(initial=np.inf)} to {found.max(initial=-np.inf)}"
        )
    return found


def _grouped(group: npt.NDArray[np.int64]) -> list[Ints]:
    """Return the rows of each group, in stored order."""
    rows = np.argsort(group, kind="stable")
    return np.split(rows, np.cumsum(np.bincount(group))[:-1])
