"""Progress and summary of a conversion."""

import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from walloc_data.convert.plan import Plan
from walloc_data.text import printable

__all__ = [
    "ConversionSummary",
    "Progress",
    "ProgressMeter",
    "ProgressPrinter",
    "counted",
    "format_bytes",
    "format_seconds",
    "kept_of",
    "notes_of",
]


@dataclass(frozen=True)
class Progress:
    """State of a running conversion.

    Example:
        >>> from walloc_data import encode_dataset
        >>> reports = []
        >>> summary = encode_dataset("pictures", "latents", size_px=64, progress=reports.append)
        >>> reports[-1].num_done, reports[-1].num_items, reports[-1].num_failures
        (8, 8, 0)
    """

    split: str
    num_done: int  # pictures encoded or recorded as failures, including those of earlier runs
    num_items: int | None  # None for a stream
    num_failures: int
    samples_per_s: float  # of this run
    seconds_left: float | None

    def __str__(self) -> str:
        share = total = ""
        if self.num_items:
            share, total = f" {100 * self.num_done / self.num_items:.0f} %,", f"/{self.num_items}"
        return f"{self.split}:{share} {self.num_done}{total} pictures, {self.rate_text()}"

    def rate_text(self) -> str:
        """Return speed, time left and failures: ``50/s, 2 s left, 2 failures``."""
        text = f"{self.samples_per_s:.0f}/s"
        if self.seconds_left is not None:
            text += f", {format_seconds(self.seconds_left)} left"
        return text + (f", {self.num_failures} failures" if self.num_failures else "")


class ProgressMeter:
    """Converts counts to `Progress` and passes it to a callback at limited frequency."""

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
        """Report the current state. The rate is measured from the first call, when workers start."""
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
    """Printer of progress: a bar on a terminal or in a notebook, else a line every ten seconds.

    It prints nothing in the first second.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._bars = self._stream.isatty() or (stream is None and _in_notebook())
        self._bar: Any = None
        self._started = time.monotonic()
        self._next = self._started + 1.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        starting = progress.samples_per_s == 0 and now < self._started + 10.0  # no rate is known yet
        if now < self._next or starting:
            return
        self._next = now + (0.25 if self._bars else 10.0)
        if self._bars:
            self._show(progress)
        else:
            self._stream.write(printable(f"{progress}\n"))
            self._stream.flush()

    def _show(self, progress: Progress) -> None:
        from tqdm.auto import tqdm

        if self._bar is None:
            style = "{desc}: {percentage:.0f}%|{bar}| " if progress.num_items else "{desc}: "
            total = "{n_fmt}/{total_fmt}" if progress.num_items else "{n_fmt}"
            self._bar = tqdm(
                desc=progress.split,
                total=progress.num_items,
                delay=1e-9,  # suppresses tqdm's own first line
                file=self._stream,
                leave=False,
                dynamic_ncols=True,
                mininterval=0,
                bar_format=f"{style}{total} pictures{{postfix}}",
            )
        self._bar.n = progress.num_done
        # Not tqdm's rate and remaining time, which would include the work of earlier runs.
        self._bar.set_postfix_str(progress.rate_text(), refresh=False)
        self._bar.refresh()

    def note(self, text: str) -> None:
        """Print a line that is not overwritten."""
        self.close()
        self._stream.write(printable(text) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Remove the bar, so that later output starts on a new line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from tqdm.auto import tqdm

    return any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)


def format_seconds(seconds: float) -> str:
    """Return ``42 s``, ``3 min 10 s``, ``5 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(number: int, noun: str) -> str:
    """Return ``1 shard``, ``2 shards``, for regular nouns."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_bytes(num_bytes: float) -> str:
    """Return ``512 B``, ``9.8 MB``: powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


MAX_LISTED = 10


def kept_of(plan: Plan) -> tuple[str, ...]:
    """Return the names of what is stored with each picture: label and columns."""
    number = None if plan.class_names is None else len(plan.class_names)
    label = "label" if number is None else f"label ({number} {'class' if number == 1 else 'classes'})"
    return (*((label,) if plan.labelled else ()), *(f"column {name}" for name in plan.columns))


def notes_of(plan: Plan, numbers: Mapping[str, int], *, labels: Collection[int] | None = None) -> tuple[str, ...]:
    """Return notes for the summary: notes of the source, lost parts of pictures, and classes without samples.

    Args:
        numbers: number of pictures by the lost part.
        labels: labels that occur; None leaves out classes, for a part of a conversion.
    """
    from walloc_data.sources.stray import names_listed  # imports Pillow, which `dataset_info` must not

    lost = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"left out of {counted(number, 'picture')}: {name}" for name, number in lost[:MAX_LISTED]]
    if len(lost) > MAX_LISTED:
        lines.append(f"left out: {len(lost) - MAX_LISTED} other kinds")
    names = plan.class_names or ()
    if labels is not None and plan.labelled and (absent := [n for i, n in enumerate(names) if i not in labels]):
        lines.append(f"{len(absent)} of {len(names)} classes without samples: {names_listed(absent)}")
    return (*map(str, plan.source.get("notes", ())), *lines)


@dataclass(frozen=True)
class ConversionSummary:
    """Summary of a conversion: contents of the split, and speed of the run.

    Example:
        >>> from walloc_data import encode_dataset
        >>> summary = encode_dataset("pictures", "latents", size_px=64)
        >>> summary.num_samples, summary.num_failures, summary.num_pixels
        (8, 0, 32768)
        >>> print(summary)
        train: 8 samples and 0 failures in 1 shard; ... in, ... out, ... bits per pixel; 8 made in ..., ... samples/s
        kept with each picture: label (2 classes)
    """

    url: str
    split: str
    num_samples: int
    num_failures: int
    num_shards: int
    source_bytes: int  # of the picture files
    shard_bytes: int
    webp_bytes: int  # packed latents alone, without tar headers, labels and JSON
    num_pixels: int
    new_samples: int = 0  # made by this run
    seconds: float = 0.0
    part: str | None = None  # if given, the numbers above are of this part only
    kept: tuple[str, ...] = ()  # stored with each picture: label, columns
    notes: tuple[str, ...] = ()  # parts of the source and of pictures that are left out, with names and numbers

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the packed latents per encoded pixel."""
        return 8 * self.webp_bytes / self.num_pixels if self.num_pixels else 0.0

    @property
    def samples_per_s(self) -> float:
        """Samples per second of this run."""
        return self.new_samples / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, including derived ones."""
        return asdict(self) | {"bits_per_pixel": self.bits_per_pixel, "samples_per_s": self.samples_per_s}

    def __str__(self) -> str:
        text = (
            f"{self.split}: {counted(self.num_samples, 'sample')} and {counted(self.num_failures, 'failure')} in "
            f"{counted(self.num_shards, 'shard')}; "
            f"{format_bytes(self.source_bytes)} in, {format_bytes(self.shard_bytes)} out, "
            f"{self.bits_per_pixel:.3f} bits per pixel"
        )
        if self.new_samples:
            text += f"; {self.new_samples} made in {format_seconds(self.seconds)}, {self.samples_per_s:.0f} samples/s"
        elif self.seconds > 0:  # `finish` and other calls that encode nothing have no time
            text += "; nothing to do"
        if self.num_failures:
            text += f". Failures are listed in failures/{self.split}.jsonl; --retry-failures encodes them again"
        text += f"\nkept with each picture: {', '.join(self.kept) if self.kept else 'nothing, not even a label'}"
        return "\n".join((text, *self.notes))
