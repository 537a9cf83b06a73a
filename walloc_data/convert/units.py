"""One unit of work as whoever makes its shards meets it: its samples, and what stops it."""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from walloc_data.convert.plan import Plan
from walloc_data.errors import ConversionError, UnreadableError, WallocDataError
from walloc_data.sources import Sample, Source
from walloc_data.sources.reading import unreadable

__all__ = ["OnError", "Task", "UnitReader", "machine_error"]

OnError = Literal["record", "record-unreadable", "stop"]


@dataclass(frozen=True)
class Task:
    """One unit to do."""

    unit: int
    done: frozenset[int] = frozenset()  # which of its shards are done, where it is read in fragments


class UnitReader:
    """Reads a unit's samples in order, once.

    Args:
        on_error: with "record-unreadable", what the machine or the store does not give is a sample with a problem. The
            rest of a fragment is then one such sample.
        scratch: for a fragment's temporary files.

    Attributes:
        items: how many samples each fragment had, as far as they have been read.
        versions: what told each fragment from another of its name, when it was opened.
    """

    def __init__(self, plan: Plan, source: Source, unit: int, *, on_error: OnError, scratch: Path) -> None:
        self._plan, self._source, self._unit, self._scratch = plan, source, unit, scratch
        self._on_error = on_error
        self.items: list[int] = []
        self.versions: list[str | None] = []

    def read(self) -> Generator[tuple[int, Sample]]:
        """Yield (index, sample) pairs, the index as `Plan.key` counts."""
        if self._plan.num_fragments is None:
            for index in self._plan.source_indices(self._unit).tolist():
                yield index, next(self._told(f"sample {index}", map(self._source.read, [index])))
            return
        position = 0
        for fragment in self._plan.fragments(self._unit):
            name = self._source.fragment_name(fragment)
            self.items.append(0)
            self.versions.append(self._source.fragment_version(fragment))
            for sample in self._told(name, self._source.read_fragment(fragment, scratch=self._scratch)):
                self.items[-1] += 1
                yield position, sample
                position += 1

    def _told(self, what: str, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the same samples; errors of the source become errors of ours, or a last sample with a problem."""
        try:
            yield from samples
        except UnreadableError as error:
            if self._on_error != "record-unreadable":
                raise
            columns = dict.fromkeys(self._plan.columns)
            yield Sample(error.name, b"", columns=columns, problem=f"cannot be read ({error.reason})")
        except WallocDataError:
            raise
        except Exception as error:  # arrow, datasets, the system: whatever a source is made of
            raise unreadable(f"{self._source.location}: {what}", error) from error


_GO_ON = "What is published stays, and the same command goes on from there"


def machine_error(what: str, error: BaseException) -> ConversionError:
    """Return the error that stops a conversion, for a picture or a shard."""
    if isinstance(error, MemoryError | RuntimeError) or "out of memory" in str(error):
        return ConversionError(
            f"{what}: memory ran out. {_GO_ON}: with fewer workers, more memory, or a smaller max_pixels "
            "(--max-pixels), which makes larger pictures failures"
        )
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return ConversionError(f"{what}: {reason}. This is trouble of the machine, not of the picture. {_GO_ON}")
