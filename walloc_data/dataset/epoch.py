"""The epoch that samples read by position belong to, where somebody has named one."""

import operator
from contextlib import suppress
from typing import Any

import torch

from walloc_data.errors import LoaderError

__all__ = ["SampleIndex", "SharedEpoch", "as_epoch"]

_NONE = -1


def as_epoch(epoch: int) -> int:
    """The epoch, if it is a whole number of at least 0."""
    try:
        number = operator.index(epoch)
    except TypeError:
        raise LoaderError(f"epoch must be an integer, not {epoch!r}") from None
    if number < 0:
        raise LoaderError(f"epoch must be at least 0, not {number}")
    return number


class SharedEpoch:
    """An epoch, or None, that the workers of a DataLoader see change.

    Workers hold a copy of the data set from when they were started, and persistent ones keep it over epochs. So the
    number lies in memory that is shared with them, whether they are forked or spawned. A copy has a number of its own.
    """

    def __init__(self, value: int | None = None) -> None:
        self._cell = torch.full((1,), _NONE if value is None else value, dtype=torch.int64)
        self._share()

    def _share(self) -> None:
        # Without shared memory torch has no workers either: their batches travel through it.
        with suppress(RuntimeError, OSError):
            self._cell.share_memory_()  # type: ignore[no-untyped-call]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if not self._cell.is_shared():  # type: ignore[no-untyped-call]  # a copy, or from a file; torch's own pickler keeps the memory shared
            self._share()

    @property
    def value(self) -> int | None:
        number = int(self._cell.item())
        return None if number == _NONE else number

    @value.setter
    def value(self, epoch: int | None) -> None:
        self._cell.fill_(_NONE if epoch is None else epoch)


class SampleIndex(int):
    """A position that knows its epoch, so that reading it is exact in whatever process it is read.

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
