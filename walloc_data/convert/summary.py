"""The line that ends a conversion."""

from dataclasses import asdict, dataclass
from typing import Any

from walloc_data.convert.progress import counted, format_bytes, format_seconds

__all__ = ["ConversionSummary"]


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
            text += f". Failures are listed in failures/{self.split}.jsonl"
        return text
