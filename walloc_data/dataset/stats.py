"""Timing of a loader: seconds spent reading, decoding and waiting."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

__all__ = ["LoaderStats", "TimedBatch", "timed_batch", "waiting_for_shards"]


class _Clock:
    def __init__(self) -> None:
        self.shards = 0.0


_CLOCK: ContextVar[_Clock | None] = ContextVar("walloc_data_clock", default=None)


@contextmanager
def waiting_for_shards() -> Iterator[None]:
    """Count the time of the block as waiting for shards, in the batch that is being made."""
    clock, begun = _CLOCK.get(), time.perf_counter()
    try:
        yield
    finally:
        if clock is not None:
            clock.shards += time.perf_counter() - begun


@dataclass
class TimedBatch:
    """A batch and what it took. It travels from a worker as one piece.

    Attributes:
        shards_s: seconds of opening, fetching and reading shards.
        decoding_s: all other seconds.
    """

    batch: Any
    shards_s: float = 0.0
    decoding_s: float = 0.0

    def pin_memory(self, device: Any = None) -> "TimedBatch":
        """Move it to page-locked memory, as a DataLoader asks; a tuple stays one."""
        del device  # deprecated
        if isinstance(self.batch, dict):
            pinned: Any = {name: _pinned(part) for name, part in self.batch.items()}
        else:
            pinned = tuple(map(_pinned, self.batch)) if isinstance(self.batch, tuple) else _pinned(self.batch)
        return TimedBatch(pinned, self.shards_s, self.decoding_s)


def _pinned(part: Any) -> Any:
    return part.pin_memory() if isinstance(part, Tensor) else part


@contextmanager
def timed_batch() -> Iterator[TimedBatch]:
    """Measure the block, which puts a batch into what this yields."""
    clock, made, begun = _Clock(), TimedBatch(None), time.perf_counter()
    token = _CLOCK.set(clock)
    try:
        yield made
    finally:
        _CLOCK.reset(token)
    made.shards_s = clock.shards
    made.decoding_s = time.perf_counter() - begun - clock.shards


@dataclass(frozen=True)
class LoaderStats:
    """Seconds since a loader was made, over all its passes.

    Where `waiting_for_batches_s` is a good part of the time, the trainer is starved: more workers help if it is
    decoding, ``cache="array"`` does away with it; waiting for shards asks for a nearer or faster store. On a GPU the
    trainer's own time is that of its kernels only if something in its step waits for them, ``loss.item()`` say.

    Attributes:
        num_batches: handed out in this process.
        waiting_for_batches_s: the trainer waited for the loader.
        waiting_for_trainer_s: from handing out a batch to being asked for the next.
        waiting_for_shards_s: opening, fetching and reading shards, summed over workers.
        decoding_s: all else that makes a batch, transforms included, summed over workers.
        num_workers: processes that the last two are of; 0: this one, and they are part of `waiting_for_batches_s`.

    Example:
        >>> from walloc_data import LatentDataset
        >>> loader = LatentDataset("my-latents").loader(batch_size=4)
        >>> for latents, labels in loader:
        ...     pass
        >>> print(loader.stats())
        2 batches: the trainer waited ... s for them, ... % of the time; reading shards took ... s, decoding ... s
    """

    num_batches: int = 0
    waiting_for_batches_s: float = 0.0
    waiting_for_trainer_s: float = 0.0
    waiting_for_shards_s: float = 0.0
    decoding_s: float = 0.0
    num_workers: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        total = self.waiting_for_batches_s + self.waiting_for_trainer_s
        share = 100 * self.waiting_for_batches_s / total if total else 0.0
        workers = f" in {self.num_workers} workers" if self.num_workers else ""
        return (
            f"{self.num_batches} batches: the trainer waited {self.waiting_for_batches_s:.1f} s for them, "
            f"{share:.0f} % of the time; reading shards took {self.waiting_for_shards_s:.1f} s, decoding "
            f"{self.decoding_s:.1f} s{workers}"
        )
