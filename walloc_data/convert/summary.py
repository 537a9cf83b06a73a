"""The lines that end a conversion."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from walloc_data.convert.plan import Plan
from walloc_data.convert.progress import counted, format_bytes, format_seconds
from walloc_data.sources.stray import names_listed

__all__ = ["ConversionSummary", "kept_of", "notes_of"]

MAX_LISTED = 10


def kept_of(plan: Plan) -> tuple[str, ...]:
    """Return what goes with each picture: its label and columns."""
    number = None if plan.class_names is None else len(plan.class_names)
    label = "label" if number is None else f"label ({number} {'class' if number == 1 else 'classes'})"
    return (*((label,) if plan.labelled else ()), *(f"column {name}" for name in plan.columns))


def notes_of(plan: Plan, numbers: Mapping[str, int], *, labels: Collection[int] | None = None) -> tuple[str, ...]:
    """Return what the source says of itself, what encoded pictures have lost, in numbers, and classes without samples.

    Args:
        numbers: of pictures, by what they have lost.
        labels: those that occur; None says nothing of classes, as for a part.
    """
    lost = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"left out of {counted(number, 'picture')}: {name}" for name, number in lost[:MAX_LISTED]]
    if len(lost) > MAX_LISTED:
        lines.append(f"left out: {len(lost) - MAX_LISTED} other kinds of things")
    names = plan.class_names or ()
    if labels is not None and plan.labelled and (absent := [n for i, n in enumerate(names) if i not in labels]):
        lines.append(f"{len(absent)} of {len(names)} classes without samples: {names_listed(absent)}")
    return (*map(str, plan.source.get("notes", ())), *lines)


@dataclass(frozen=True)
class ConversionSummary:
    """What a split holds now, and how fast this run was.

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
    part: str | None = None  # the numbers above are this part's alone
    kept: tuple[str, ...] = ()  # with each picture: label, columns
    notes: tuple[str, ...] = ()  # what is left out of the source and of encoded pictures, with names and numbers

    @property
    def bits_per_pixel(self) -> float:
        """Of the packed latents, over the pixels encoded."""
        return 8 * self.webp_bytes / self.num_pixels if self.num_pixels else 0.0

    @property
    def samples_per_s(self) -> float:
        """Of this run."""
        return self.new_samples / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values, derived ones included."""
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
        else:
            text += "; nothing was left to do"
        if self.num_failures:
            text += f". Failures are listed in failures/{self.split}.jsonl; --retry-failures does them again"
        text += f"\nkept with each picture: {', '.join(self.kept) if self.kept else 'nothing, not even a label'}"
        return "\n".join((text, *self.notes))
