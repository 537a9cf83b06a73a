"""The epoch of samples that are read by position."""

import mmap
import operator
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from walloc_data.errors import LoaderError

__all__ = ["SampleIndex", "SharedEpoch", "as_epoch"]

_NONE = -1


def as_epoch(epoch: int) -> int:
    """Return the epoch; raise LoaderError if it is not an integer of at least 0."""
    try:
        number = operator.index(epoch)
    except TypeError:
        raise LoaderError(f"epoch must be an integer, not {epoch!r}") from None
    if number < 0:
        raise LoaderError(f"epoch must be at least 0, not {number}")
    return number


class SharedEpoch:
    """Epoch, or None, in memory that is shared with the workers of a DataLoader.

    Persistent workers keep a copy of the data set over epochs, so the epoch must be shared with them. Forked workers
    share anonymous memory, which needs no file descriptor per data set; spawned workers share torch's shared memory.
    Copies of this object are independent.
    """

    def __init__(self, value: int | None = None) -> None:
        self._cell: npt.NDArray[np.int64] = np.frombuffer(mmap.mmap(-1, 8), dtype=np.int64)
        self._spawned: torch.Tensor | None = None  # for spawned workers
        self.value = value

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is None:
            return {"value": self.value}
        if self._spawned is None:
            self._spawned = torch.from_numpy(self._cell.copy()).share_memory_()  # type: ignore[no-untyped-call]
        return {"shared": self._spawned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "shared" not in state:
            SharedEpoch.__init__(self, state["value"])
            return
        self._spawned = state["shared"]
        self._cell = state["shared"].numpy()

    @property
    def value(self) -> int | None:
        number = int(self._cell[0])
        return None if number == _NONE else number

    @value.setter
    def value(self, epoch: int | None) -> None:
        self._cell[0] = _NONE if epoch is None else epoch
        if self._spawned is not None:
            self._spawned.fill_(int(self._cell[0]))


class SampleIndex(int):
    """Position with its epoch, so that a sample is the same in every process.

    Example:
        >>> from walloc_data.dataset.epoch import SampleIndex
        >>> index = SampleIndex(7, epoch=2)
        >>> index, index.epoch
        (7, 2)
    """

    epoch: int

    def __new__(cls, position: int, epoch: int) -> "SampleIndex":
        self = super().__new__(cls, position)
        self.epoch = epoch
        return self

    def __reduce__(self) -> tuple[type["SampleIndex"], tuple[int, int]]:
        return SampleIndex, (int(self), self.epoch)
