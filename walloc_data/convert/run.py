"""A run of a conversion: selection of the units to do, their execution, and progress."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any

from walloc_data.convert.executors.serial import WorkSetup, run_here
from walloc_data.convert.journal import Failure, ShardDone, done_marks, finished_shards, finished_units, work_folder
from walloc_data.convert.plan import ShardId
from walloc_data.convert.progress import ConversionSummary, Progress, ProgressMeter, kept_of, notes_of
from walloc_data.convert.shard import StageStats
from walloc_data.convert.units import Task
from walloc_data.errors import ConversionError
from walloc_data.storage import Store

__all__ = ["Run"]


class Run:
    """Run of a conversion.

    Args:
        part: (i, n): do only the units whose number is i modulo n.
        max_failures: stop when more pictures cannot be encoded, including those of earlier runs.
        redo: finished shards to make again.

    Attributes:
        notes: notes for the user.
    """

    def __init__(
        self,
        setup: WorkSetup,
        *,
        part: tuple[int, int],
        max_failures: int | None,
        callback: Callable[[Progress], None] | None,
        redo: Collection[ShardId] = (),
    ) -> None:
        self.notes: list[str] = []
        self.setup, self.part, self.max_failures = setup, part, max_failures
        self.store, self.plan = setup.store, setup.plan
        shards = finished_shards(self.store, self.plan.split) - set(redo)
        self.mine: set[ShardId] = set()  # finished shards of this part
        self.new_samples, self.num_failures, self.num_done = 0, 0, 0
        self.first_failures: list[Failure] = []
        sizes = self.store.sizes("data")
        ordered = sorted(shard for shard in shards if self._is_in_part(shard.unit))
        for shard, done in zip(ordered, done_marks(self.store, self.plan.split, ordered), strict=True):
            if done.shard is not None and sizes.get(done.shard.name) != done.shard.num_bytes:
                shards.discard(shard)
                self.notes.append(
                    f"{self.store.location(done.shard.name)}: {sizes.get(done.shard.name)} bytes, but its record says "
                    f"{done.shard.num_bytes}: it is made again"
                )
                continue
            self._count(shard, done)
        self.finished = finished_units(self.store, self.plan.split, shards)
        self.stages = StageStats()
        self._live: dict[int, StageStats] = {}  # of unfinished units, since their last shard
        self.meter = ProgressMeter(callback, split=self.plan.split, num_items=self._num_items(), num_done=self.num_done)

    def _num_items(self) -> int | None:
        """Return the number of pictures of this part."""
        if self.plan.num_items is None or self.part[1] == 1:
            return self.plan.num_items
        size = self.plan.settings.samples_per_shard
        mine = range(self.part[0], self.plan.num_units, self.part[1])
        return sum(min(size, self.plan.num_items - unit * size) for unit in mine)

    def _count(self, shard: ShardId, done: ShardDone) -> None:
        self.mine.add(shard)
        self.num_done += done.last - done.first
        self.num_failures += len(done.failures)
        self.first_failures = [*self.first_failures, *done.failures][:3]

    def progress_text(self) -> str:
        what = "shards" if self.plan.num_fragments is None else "units"
        return (
            f"{len(self.finished)} of {self.plan.num_units} {what} of split {self.plan.split!r} are published in "
            f"{self.store.url}"
        )

    def go(self, *, workers: int, engine: str, address: str | None, locks: tuple[int, ...], codec: Any) -> None:
        self._check_failures()
        self.tick()
        if engine == "ray":
            from walloc_data.convert.executors.ray import run_ray

            run_ray(
                self.setup,
                self._tasks(),
                tasks_at_once=workers,
                address=address,
                on_shard=self.on_shard,
                on_done=self.on_done,
                on_tick=self.tick,
            )
        elif workers == 1:
            run_here(
                self.setup,
                self._tasks(),
                codec=codec,
                on_report=self.on_report,
                on_shard=self.on_shard,
                on_done=self.on_done,
            )
        else:
            from walloc_data.convert.executors.local import run_processes

            run_processes(
                self.setup,
                self._tasks(),
                workers=workers,
                locks=locks,
                on_report=self.on_report,
                on_shard=self.on_shard,
                on_lost=self.on_lost,
                on_done=self.on_done,
                on_tick=self.tick,
            )

    def has_work(self) -> bool:
        """Return whether a unit must be done."""
        return any(map(self._is_due, range(self.plan.num_units)))

    def _is_in_part(self, unit: int) -> bool:
        return unit % self.part[1] == self.part[0]

    def _is_due(self, unit: int) -> bool:
        return self._is_in_part(unit) and unit not in self.finished

    def _tasks(self) -> Iterator[Task]:
        done: dict[int, set[int]] = {}
        for unit, number in self.mine:
            if number is not None:
                done.setdefault(unit, set()).add(number)
        return (Task(unit, frozenset(done.get(unit, ()))) for unit in range(self.plan.num_units) if self._is_due(unit))

    def on_report(self, task: Task, stats: StageStats) -> None:
        """Handle a worker's progress report."""
        self._live.setdefault(task.unit, StageStats()).add(stats)
        self.stages.add(stats)
        self.tick()
        self._check_failures()

    def on_lost(self, task: Task) -> None:
        """Discard the counts of an unfinished unit, whose worker has died."""
        self._live.pop(task.unit, None)

    def on_shard(self, task: Task, shard: ShardId, done: ShardDone) -> None:
        """Count a published shard."""
        self._live.pop(task.unit, None)
        self.new_samples += done.num_samples
        self._count(shard, done)
        self._check_failures()

    def on_done(self, task: Task) -> None:
        """Count a unit whose shards are all published."""
        self.finished.add(task.unit)

    def tick(self) -> None:
        """Update the progress."""
        live = self._live.values()
        self.meter.tick(
            num_done=self.num_done + sum(stats.samples + stats.failures for stats in live),
            num_failures=self.num_failures + sum(stats.failures for stats in live),
        )

    def _check_failures(self) -> None:
        number = self.num_failures + sum(stats.failures for stats in self._live.values())
        if self.max_failures is not None and number > self.max_failures:
            some = "".join(f"\n  {failure}" for failure in self.first_failures)
            raise ConversionError(
                f"{number} pictures could not be encoded, more than max_failures={self.max_failures}. "
                f"{self.progress_text()}; run the same command with a higher limit to resume.{some}"
            )

    def write_log(self, *, seconds: float) -> None:
        """Append the speed of this run to the log, which is not part of the data set."""
        if self.store.local_path is None or not self.stages.samples:
            return
        stages = {name: round(value, 3) for name, value in sorted(self.stages.seconds.items())}
        line = {"seconds": round(seconds, 3), "samples": self.stages.samples, "stages_s": stages}
        path = self.store.local_path / work_folder(self.plan.split) / "log.jsonl"
        with suppress(OSError), path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def summary(self, store: Store, *, seconds: float, part: str | None) -> ConversionSummary:
        """Return the summary of this part."""
        marks = list(done_marks(store, self.plan.split, sorted(self.mine)))
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
