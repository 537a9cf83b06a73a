"""Summary of a change of a data set."""

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["EditSummary"]


@dataclass(frozen=True)
class EditSummary:
    """Contents of a split after a change.

    Example:
        >>> from walloc_data import encode_dataset
        >>> from walloc_data.maintain import remove_samples
        >>> _ = encode_dataset("pictures", "latents-to-change", size_px=64)
        >>> print(remove_samples("latents-to-change", split="train", classes=["coffee"]))
        latents-to-change: train: 4 samples, 4 removed; 1 shard rewritten, 0 unchanged
    """

    url: str
    split: str
    num_samples: int
    num_added: int = 0
    num_removed: int = 0
    shards_made: int = 0
    shards_kept: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"notes": list(self.notes)}

    def __str__(self) -> str:
        changed = [
            f"{number} {what}" for number, what in ((self.num_added, "added"), (self.num_removed, "removed")) if number
        ]
        made = f"{self.shards_made} {'shard' if self.shards_made == 1 else 'shards'} rewritten"
        text = ", ".join([f"{self.url}: {self.split}: {self.num_samples} samples", *changed])
        return "\n".join((f"{text}; {made}, {self.shards_kept} unchanged", *self.notes))
