"""One run of one split: which shards are due, who makes them, and how far it is."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any

from walloc_data.convert.changes import changed_samples, refuse_changes, rows_of_source
from walloc_data.convert.engine import Task, WorkSetup, run_here
from walloc_data.convert.progress import Progress, ProgressMeter
from walloc_data.convert.records import Failure, ShardDone, end_name, work_folder
from walloc_data.convert.spool import write_spool
from walloc_data.convert.state import done_marks, finished_shards
from walloc_data.convert.summary import ConversionSummary, kept_of, notes_of
from walloc_data.convert.worker import Tally
from walloc_data.errors import ConversionError
from walloc_data.format import dump_json
from walloc_data.sources import Sample, Source
from walloc_data.storage import Store

__all__ = ["Run"]


class Run:
    """Tasks out, done marks in.

    Args:
        where: (i, n): the shards whose number is i modulo n.
        max_failures: stop when more pictures than this are broken, earlier runs' included.
        redo: finished shards that are made again all the same.

    Attributes:
        notes: what a user should know about this run.
    """

    def __init__(
        self,
        setup: WorkSetup,
        source: Source,
        *,
        where: tuple[int, int],
        max_failures: int | None,
        callback: Callable[[Progress], None] | None,
        redo: Collection[int] = (),
    ) -> None:
        self.notes: list[str] = []
        self.setup, self.source, self.where, self.max_failures = setup, source, where, max_failures
        self.store, self.plan = setup.store, setup.plan
        self.finished = finished_shards(self.store, self.plan.split) - set(redo)
        self.new_samples, self.num_failures, self.num_done = 0, 0, 0
        self.first_failures: list[Failure] = []
        sizes = self.store.sizes("data")
        for done in done_marks(self.store, self.plan.split, sorted(self.finished)):
            number = done.first // self.plan.settings.samples_per_shard
            if not self._is_mine(number):
                continue
            if done.shard is not None and sizes.get(done.shard.name) != done.shard.num_bytes:
                self.finished.discard(number)
                self.notes.append(
                    f"{self.store.where(done.shard.name)}: {sizes.get(done.shard.name)} bytes, but its record says "
                    f"{done.shard.num_bytes}: made anew"
                )
                continue
            self._count(done)
        self.stages = Tally()
        self._live: dict[int, Tally] = {}  # of shards under way
        self.meter = ProgressMeter(callback, split=self.plan.split, num_items=self._num_items(), num_done=self.num_done)

    def _num_items(self) -> int | None:
        """Of this part."""
        if self.plan.num_items is None or self.where[1] == 1:
            return self.plan.num_items
        size = self.plan.settings.samples_per_shard
        mine = range(self.where[0], self.plan.num_shards or 0, self.where[1])
        return sum(min(size, self.plan.num_items - shard * size) for shard in mine)

    def _count(self, done: ShardDone) -> None:
        self.num_done += done.last - done.first
        self.num_failures += len(done.failures)
        self.first_failures = [*self.first_failures, *done.failures][:3]

    def progress_text(self) -> str:
        total = self.plan.num_shards
        return (
            f"{len(self.finished)}{'' if total is None else f' of {total}'} shards of split {self.plan.split!r} are "
            f"published in {self.store.url}"
        )

    def go(self, *, workers: int, engine: str, address: str | None, locks: tuple[int, ...], codec: Any) -> None:
        self._check_failures()
        self.tick()
        tasks = self._tasks() if self.setup.source is not None else self._stream_tasks()
        if engine == "ray":
            from walloc_data.convert.ray_engine import run_ray

            run_ray(self.setup, tasks, tasks_at_once=workers, address=address, on_done=self.on_done, on_tick=self.tick)
        elif workers == 1:
            run_here(self.setup, tasks, codec=codec, on_report=self.on_report, on_done=self.on_done)
        else:
            from walloc_data.convert.pool import run_processes

            run_processes(
                self.setup,
                tasks,
                workers=workers,
                locks=locks,
                on_report=self.on_report,
                on_lost=self.on_lost,
                on_done=self.on_done,
                on_tick=self.tick,
            )

    def has_work(self) -> bool:
        """Return whether a shard is due, or a stream's end is not known yet."""
        return self.plan.num_shards is None or any(map(self._is_due, range(self.plan.num_shards)))

    def _is_mine(self, shard: int) -> bool:
        return shard % self.where[1] == self.where[0]

    def _is_due(self, shard: int) -> bool:
        return self._is_mine(shard) and shard not in self.finished

    def _tasks(self) -> Iterator[Task]:
        return (Task(shard) for shard in range(self.plan.num_shards or 0) if self._is_due(shard))

    def _stream_tasks(self) -> Iterator[Task]:
        """Read the stream once, in order; shards that are done are read past."""
        if not self.has_work():
            return
        size = self.plan.settings.samples_per_shard
        number = 0
        stream = self.source.stream()
        for shard in itertools.count():
            chunk: Iterator[Sample] = itertools.islice(stream, size)
            if self._is_due(shard):
                spool = self.setup.staging / f"spool-{shard}"
                read = write_spool(spool, chunk)
                if read:
                    yield Task(shard, spool)
                else:
                    spool.unlink()
            else:
                read = self._pass_by(shard, chunk)
            number += read
            if read < size:
                break
        if number == 0:
            raise ConversionError(f"{self.source.location}: the stream is empty")
        self.store.write_bytes(end_name(self.plan.split), dump_json({"num_items": number}).encode())

    def _pass_by(self, shard: int, chunk: Iterator[Sample]) -> int:
        """Read past the samples of a finished shard, or of another part's; returns how many there were."""
        if shard not in self.finished:
            return sum(1 for _ in chunk)
        [recorded] = rows_of_source(self.store, self.plan.split, [shard])
        read = 0

        def counted() -> Iterator[tuple[int, Sample]]:
            nonlocal read
            for sample in chunk:
                yield shard * self.plan.settings.samples_per_shard + read, sample
                read += 1

        refuse_changes(self.store, self.plan.split, list(changed_samples(recorded, counted())))
        return read

    def on_report(self, task: Task, tally: Tally) -> None:
        """A worker tells what it did since it told last."""
        self._live.setdefault(task.shard, Tally()).add(tally)
        self.stages.add(tally)
        self.tick()
        self._check_failures()

    def on_lost(self, task: Task) -> None:
        """A worker died with its unfinished shard."""
        self._live.pop(task.shard, None)

    def on_done(self, task: Task, done: ShardDone) -> None:
        """A shard is published."""
        self._live.pop(task.shard, None)
        self.finished.add(task.shard)
        self.new_samples += done.num_samples
        self._count(done)
        if task.spool is not None:
            task.spool.unlink(missing_ok=True)
        self._check_failures()

    def tick(self) -> None:
        """Show where things stand."""
        live = self._live.values()
        self.meter.tick(
            num_done=self.num_done + sum(tally.samples + tally.failures for tally in live),
            num_failures=self.num_failures + sum(tally.failures for tally in live),
        )

    def _check_failures(self) -> None:
        number = self.num_failures + sum(tally.failures for tally in self._live.values())
        if self.max_failures is not None and number > self.max_failures:
            some = "".join(f"\n  {failure}" for failure in self.first_failures)
            raise ConversionError(
                f"{number} pictures could not be encoded, more than max_failures={self.max_failures}. "
                f"{self.progress_text()}; the same command with a higher limit goes on from there.{some}"
            )

    def write_log(self, *, seconds: float) -> None:
        """Append this run's speed to the log, which is no part of the data set."""
        if self.store.local_path is None or not self.stages.samples:
            return
        stages = {name: round(value, 3) for name, value in sorted(self.stages.seconds.items())}
        line = {"seconds": round(seconds, 3), "samples": self.stages.samples, "stages_s": stages}
        path = self.store.local_path / work_folder(self.plan.split) / "log.jsonl"
        with suppress(OSError), path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def summary(self, store: Store, *, seconds: float, part: str | None) -> ConversionSummary:
        """Of one part."""
        mine = sorted(shard for shard in self.finished if shard % self.where[1] == self.where[0])
        marks = list(done_marks(store, self.plan.split, mine))
        return ConversionSummary(
            url=store.url,
            split=self.plan.split,
            num_samples=sum(done.num_samples for done in marks),
            num_failures=sum(len(done.failures) for done in marks),
            num_shards=sum(done.shard is not None for done in marks),
            source_bytes=sum(done.source_bytes for done in marks),
            shard_bytes=sum(done.shard.num_bytes for done in marks if done.shard),
            webp_bytes=sum(done.webp_bytes for done in marks),
            num_pixels=sum(done.num_pixels for done in marks),
            new_samples=self.new_samples,
            seconds=seconds,
            part=part,
            kept=kept_of(self.plan),
            notes=notes_of(self.plan, sum((Counter(done.left_out) for done in marks), Counter())),
        )
