"""Reading of the samples of a unit of work, and errors that stop it."""

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
    """Unit of work to do."""

    unit: int
    done: frozenset[int] = frozenset()  # numbers of its finished shards, if the source is read in fragments


class UnitReader:
    """Reader of the samples of a unit, in order, once.

    Args:
        on_error: with "record-unreadable", a sample that cannot be read from the disk or store has a `problem`. The
            rest of a fragment becomes one such sample.
        scratch: folder for the temporary files of a fragment.

    Attributes:
        items: number of samples read of each fragment.
        versions: version of each fragment when it was opened, such as an ETag.
    """

    def __init__(self, plan: Plan, source: Source, unit: int, *, on_error: OnError, scratch: Path) -> None:
        self._plan, self._source, self._unit, self._scratch = plan, source, unit, scratch
        self._on_error = on_error
        self.items: list[int] = []
        self.versions: list[str | None] = []

    def read(self) -> Generator[tuple[int, Sample]]:
        """Yield (index, sample) pairs, with the index that `Plan.key` uses."""
        if self._plan.num_fragments is None:
            for index in self._plan.source_indices(self._unit).tolist():
                yield index, next(self._with_clear_errors(f"sample {index}", map(self._source.read, [index])))
            return
        position = 0
        for fragment in self._plan.fragments(self._unit):
            name = self._source.fragment_name(fragment)
            self.items.append(0)
            self.versions.append(self._source.fragment_version(fragment))
            for sample in self._with_clear_errors(name, self._source.read_fragment(fragment, scratch=self._scratch)):
                self.items[-1] += 1
                yield position, sample
                position += 1

    def _with_clear_errors(self, what: str, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples; convert errors of the source to a WallocDataError, or to a last sample with a problem."""
        try:
            yield from samples
        except UnreadableError as error:
            if self._on_error != "record-unreadable":
                raise
            columns = dict.fromkeys(self._plan.columns)
            yield Sample(error.name, b"", columns=columns, problem=f"cannot be read ({error.reason})")
        except WallocDataError:
            raise
        except Exception as error:  # errors of arrow, datasets, the system, ...
            raise unreadable(f"{self._source.location}: {what}", error) from error


_RESUME = "Finished shards are kept; run the same command to resume"


def machine_error(what: str, error: BaseException) -> ConversionError:
    """Return the error that stops a conversion at a picture or shard."""
    if isinstance(error, MemoryError | RuntimeError) or "out of memory" in str(error):
        return ConversionError(
            f"{what}: out of memory. {_RESUME}, with fewer workers, more memory, or a smaller max_pixels "
            "(--max-pixels), which records larger pictures as failures"
        )
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return ConversionError(f"{what}: {reason}. This is an error of the machine, not of the picture. {_RESUME}")
