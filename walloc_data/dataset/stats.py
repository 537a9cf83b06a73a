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
    """Context: count the time of the block as waiting for shards, in the current batch."""
    clock, begun = _CLOCK.get(), time.perf_counter()
    try:
        yield
    finally:
        if clock is not None:
            clock.shards += time.perf_counter() - begun


@dataclass
class TimedBatch:
    """Batch with its times, as sent by a worker.

    Attributes:
        shards_s: seconds for opening, downloading and reading shards.
        decoding_s: all other seconds.
    """

    batch: Any
    shards_s: float = 0.0
    decoding_s: float = 0.0

    def pin_memory(self, device: Any = None) -> "TimedBatch":
        """Copy the batch to page-locked memory; called by DataLoader."""
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
    """Context: measure the block, which sets the batch of the yielded object."""
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
    """Times of a loader, in seconds since it was created, over all passes.

    A large share of `waiting_for_batches_s` means that training waits for data. If decoding takes the time, use more
    workers or ``cache="array"``; if shards do, use a faster or nearer store. On a GPU, the time of a training step
    includes its kernels only if the step waits for them, as by ``loss.item()``.

    Attributes:
        num_batches: batches yielded in this process.
        waiting_for_batches_s: time in which the training loop waited for the loader.
        waiting_for_trainer_s: time between yielding a batch and the request for the next.
        waiting_for_shards_s: opening, downloading and reading of shards, summed over workers.
        decoding_s: other work on batches, including transforms, summed over workers.
        num_workers: number of workers; with 0, the last two times are part of `waiting_for_batches_s`.

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
