"""Execution of a unit of work: write its shards, and publish each with its done mark."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from walloc_data.convert.changes import changed_samples, refuse_changes, rows_of_source
from walloc_data.convert.journal import ShardDone, UnitEnd, done_name, end_name, rows_name
from walloc_data.convert.plan import ShardId
from walloc_data.convert.shard import WINDOW_PICTURES, ShardWriter, StageStats
from walloc_data.convert.units import Task, UnitReader, machine_error
from walloc_data.errors import ConversionError, WallocDataError
from walloc_data.format import shard_name
from walloc_data.pictures.memory import is_machine_error
from walloc_data.sources import Sample

__all__ = ["Worker"]


class Worker(ShardWriter):
    """Worker for units of one plan: reads samples, writes shards and publishes them."""

    def run(
        self,
        task: Task,
        *,
        report: Callable[[StageStats], None] = lambda _: None,
        on_shard: Callable[[ShardId, ShardDone], None] = lambda _, __: None,
    ) -> None:
        """Write and publish the unfinished shards of a unit, each with its done mark."""
        unit, size = task.unit, self.plan.settings.samples_per_shard
        self.staging.mkdir(parents=True, exist_ok=True)
        reader = UnitReader(self.plan, self.source, unit, on_error=self.on_error, scratch=self.staging)
        samples = reader.read()
        try:
            if self.plan.num_fragments is None:
                on_shard(ShardId(unit), self._shard(ShardId(unit), samples, first=unit * size, report=report))
                return
            number = 0
            while (head := next(samples, None)) is not None:
                shard, chunk = ShardId(unit, number), itertools.chain([head], itertools.islice(samples, size - 1))
                if number in task.done:
                    self._skip_shard(shard, chunk)
                else:
                    on_shard(shard, self._shard(shard, chunk, first=number * size, report=report))
                number += 1
        finally:
            samples.close()  # deletes its temporary files
        end = UnitEnd(number, tuple(reader.items), tuple(reader.versions))
        self.store.write_bytes(end_name(self.plan.split, unit), end.to_json())

    def _skip_shard(self, shard: ShardId, samples: Iterable[tuple[int, Sample]]) -> None:
        """Skip the samples of a finished shard, after checking that they are unchanged."""
        [recorded] = rows_of_source(self.store, self.plan.split, [shard])

        def watched() -> Iterator[tuple[int, Sample]]:
            for number, sample in enumerate(samples):
                if number % WINDOW_PICTURES == 0:
                    self.alive()
                yield sample

        refuse_changes(self.store, self.plan.split, list(changed_samples(recorded, watched())))

    def _shard(
        self, shard: ShardId, samples: Iterable[tuple[int, Sample]], *, first: int, report: Callable[[StageStats], None]
    ) -> ShardDone:
        """Write and publish one shard of (index, sample) pairs, starting at position `first`."""
        name = shard_name(self.plan.split, *shard)
        local = self.staging / name.replace("/", "-")
        try:
            done, rows = self._write(shard, local, samples, first=first, report=report)
            self.alive()
            started = time.perf_counter()
            if done.shard is not None:
                self.store.publish(local, name)
                self.store.write_bytes(rows_name(self.plan.split, shard), rows)
            self.store.write_bytes(done_name(self.plan.split, shard), done.to_json())
            report(StageStats(seconds={"publish": time.perf_counter() - started}))
        except WallocDataError:
            raise
        except (MemoryError, RuntimeError) as error:
            if not is_machine_error(error):
                raise
            raise machine_error(self.store.location(name), error) from error
        except OSError as error:
            raise ConversionError(
                f"{self.store.location(name)}: cannot be written ({error.strerror or error}); finished shards are "
                "kept, run the same command to resume"
            ) from error
        finally:
            # Errors here must not hide the original error.
            with suppress(OSError):
                local.unlink(missing_ok=True)
        return done
