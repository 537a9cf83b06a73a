"""How far a conversion is: numbers for a caller, or one line on stderr for people."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

__all__ = ["Progress", "ProgressMeter", "ProgressPrinter", "counted", "format_bytes", "format_seconds"]


@dataclass(frozen=True)
class Progress:
    """A conversion's state at one moment.

    Example:
        >>> from walloc_data import encode_dataset
        >>> reports = []
        >>> summary = encode_dataset("pictures", "latents", size_px=64, progress=reports.append)
        >>> reports[-1].num_done, reports[-1].num_items, reports[-1].num_failures
        (8, 8, 0)
    """

    split: str
    num_done: int  # pictures encoded or recorded as failures, those of earlier runs included
    num_items: int | None  # None for a stream
    num_failures: int
    samples_per_s: float  # of this run
    seconds_left: float | None

    def __str__(self) -> str:
        share = total = ""
        if self.num_items:
            share, total = f" {100 * self.num_done / self.num_items:.0f} %,", f"/{self.num_items}"
        text = f"{self.split}:{share} {self.num_done}{total} pictures, {self.samples_per_s:.0f}/s"
        if self.seconds_left is not None:
            text += f", {format_seconds(self.seconds_left)} left"
        return text + (f", {self.num_failures} failures" if self.num_failures else "")


class ProgressMeter:
    """Turns counts into `Progress`, and passes one on as often as the callback wants one."""

    def __init__(
        self,
        callback: Callable[[Progress], None] | None,
        *,
        split: str,
        num_items: int | None,
        num_done: int,
    ) -> None:
        self._callback, self._split, self._num_items, self._before = callback, split, num_items, num_done
        self._started: float | None = None

    def tick(self, *, num_done: int, num_failures: int) -> None:
        """Report where things stand. The rate counts from the first call, when workers begin to start."""
        now = time.monotonic()
        if self._started is None:
            self._started = now
        seconds, new = now - self._started, num_done - self._before
        rate = new / seconds if seconds > 0 else 0.0
        left = None
        if self._num_items is not None and new > 0 and rate > 0:
            left = max(0, self._num_items - num_done) / rate
        if self._callback is not None:
            self._callback(Progress(self._split, num_done, self._num_items, num_failures, rate, left))


class ProgressPrinter:
    """One line that is rewritten on a terminal; elsewhere a line every ten seconds. Nothing in the first second."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._next = self._started + 1.0
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        starting = progress.samples_per_s == 0 and now < self._started + 10.0  # a rate of 0 tells nothing
        if now < self._next or starting:
            return
        self._next = now + (0.25 if self._terminal else 10.0)
        text = str(progress)
        if self._terminal:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def note(self, text: str) -> None:
        """A line that stays."""
        self.close()
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the line; what is written next begins a new one."""
        if self._terminal and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0


def format_seconds(seconds: float) -> str:
    """``42 s``, ``3 min 10 s``, ``5 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(number: int, noun: str) -> str:
    """``1 shard``, ``2 shards``: regular nouns."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_bytes(num_bytes: float) -> str:
    """``512 B``, ``9.8 MB``: powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
