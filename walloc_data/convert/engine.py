"""What an engine is given and what it gives back; and the simplest engine: this process."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from walloc_data.convert.plan import Plan
from walloc_data.convert.records import ShardDone
from walloc_data.convert.spool import read_spool
from walloc_data.convert.worker import ShardWorker, Tally
from walloc_data.errors import CodecError, UnreadableError, WallocDataError
from walloc_data.sources import Sample, Source
from walloc_data.sources.reading import unreadable
from walloc_data.storage import Store

__all__ = ["OnError", "Task", "WorkSetup", "run_here"]

OnError = Literal["record", "record-unreadable", "stop"]


@dataclass(frozen=True)
class Task:
    """One shard to make. `spool` holds the raw samples of a stream."""

    shard: int
    spool: Path | None = None


@dataclass(frozen=True)
class WorkSetup:
    """Everything a worker needs, picklable."""

    plan: Plan
    source: Source | None  # None for streams
    store: Store
    staging: Path
    device: str
    on_error: OnError

    def worker(self, *, codec: Any = None, alive: Callable[[], None] = lambda: None, tag: str = "0") -> ShardWorker:
        """A worker with a staging folder of its own; without `codec` it loads the data set's."""
        staging = self.staging / f"worker-{tag}"
        return ShardWorker(
            self.plan,
            codec if codec is not None else self._load_codec(staging),
            store=self.store,
            staging=staging,
            on_error=self.on_error,
            device=self.device,
            alive=alive,
        )

    def _load_codec(self, staging: Path) -> Any:
        from walloc_data.codec import fetch_codec, load_codec

        folder = fetch_codec(self.store, scratch=staging, decoders=False)
        codec, _ = load_codec(folder, decoder=False, device=self.device)
        if codec.spec.encoder_sha256 != self.plan.codec.encoder_sha256:
            raise CodecError(f"{self.store.where('codec')}: not the codec that the plan names; was the folder changed?")
        return codec

    def samples(self, task: Task) -> Iterator[tuple[int, Sample]]:
        """(source index, sample) pairs of a task."""
        if task.spool is not None:
            return read_spool(task.spool, first=task.shard * self.plan.settings.samples_per_shard)
        if self.source is None:
            raise TypeError("a stream's task has a spool")
        return self._read(self.source, task.shard)

    def _read(self, source: Source, shard: int) -> Iterator[tuple[int, Sample]]:
        for index in self.plan.source_indices(shard).tolist():
            try:
                sample = self._read_one(source, index)
            except UnreadableError as error:
                if self.on_error != "record-unreadable":
                    raise
                sample = Sample(error.name, b"", problem=f"cannot be read ({error.reason})")
            yield index, sample

    def _read_one(self, source: Source, index: int) -> Sample:
        try:
            return source.read(index)
        except WallocDataError:
            raise
        except Exception as error:  # arrow, datasets, the system: whatever a source is made of
            raise unreadable(f"{source.location}: sample {index}", error) from error


def run_here(
    setup: WorkSetup,
    tasks: Iterable[Task],
    *,
    codec: Any,
    on_report: Callable[[Task, Tally], None],
    on_done: Callable[[Task, ShardDone], None],
) -> None:
    """Make the shards one after another in this process."""
    worker = setup.worker(codec=codec)
    for task in tasks:
        done = worker.run(task.shard, setup.samples(task), report=partial(on_report, task))
        on_done(task, done)
