"""Check that a split accounts for each picture of its source once: as a sample, a failure, or removed since."""

from array import array
from collections.abc import Iterator

import numpy as np

__all__ = ["Positions"]


class Positions:
    """Positions in a source, marked one by one.

    Args:
        num_items: pictures in the source.
        num_removed: how many of them were removed since, which ones is not recorded. Memory then grows with what is
            marked, not with what is claimed.
    """

    def __init__(self, num_items: int, *, num_removed: int) -> None:
        self.num_items, self.num_removed = num_items, num_removed
        self._seen = np.zeros(num_items if not num_removed else 0, dtype=bool)
        self._marked = array("q")

    def mark(self, position: int) -> str | None:
        """Mark a position; what is wrong with it, or None."""
        if not 0 <= position < self.num_items:
            return f"source index {position} is not in [0, {self.num_items})"
        if self.num_removed:
            self._marked.append(position)
        elif self._seen[position]:
            return f"source index {position} is there twice"
        else:
            self._seen[position] = True
        return None

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with all of them."""
        if not self.num_removed:
            if not self._seen.all():
                first = int(np.argmin(self._seen))
                number = int((~self._seen).sum())
                yield f"{number} pictures of the source are neither samples nor failures, the first at {first}"
            return
        marked = np.sort(np.frombuffer(self._marked, dtype=np.int64)) if self._marked else np.zeros(0, np.int64)
        twice = np.flatnonzero(marked[1:] == marked[:-1])
        if len(twice):
            yield f"source index {int(marked[twice[0]])} is there twice"
        missing = self.num_items - (len(marked) - len(twice))
        if missing != self.num_removed:
            yield (
                f"{missing} pictures of the source are neither samples nor failures; {self.num_removed} were removed"
            )
