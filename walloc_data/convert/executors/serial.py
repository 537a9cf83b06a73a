"""The setup of workers, and the executor that works in this process."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from walloc_data.convert.journal import ShardDone
from walloc_data.convert.plan import Plan, ShardId
from walloc_data.convert.shard import StageStats
from walloc_data.convert.units import OnError, Task
from walloc_data.convert.worker import Worker
from walloc_data.errors import CodecError
from walloc_data.sources import Source
from walloc_data.storage import Store

__all__ = ["WorkSetup", "run_here"]


@dataclass(frozen=True)
class WorkSetup:
    """Picklable setup of a worker."""

    plan: Plan
    source: Source
    store: Store
    staging: Path
    device: str
    on_error: OnError

    def worker(self, *, codec: Any = None, alive: Callable[[], None] = lambda: None, tag: str = "0") -> Worker:
        """Return a worker with its own staging folder; without `codec` it loads the codec of the data set."""
        staging = self.staging / f"worker-{tag}"
        return Worker(
            self.plan,
            self.source,
            codec if codec is not None else self.fetch_codec(staging),
            store=self.store,
            staging=staging,
            on_error=self.on_error,
            device=self.device,
            alive=alive,
        )

    def fetch_codec(self, scratch: Path) -> Any:
        """Fetch and load the codec of the data set."""
        from walloc_data.codec import fetch_codec

        return self.load_codec(fetch_codec(self.store, scratch=scratch, decoders=False))

    def load_codec(self, folder: Path) -> Any:
        """Load the codec of the data set from a local copy of its folder."""
        from walloc_data.codec import load_codec

        codec, _ = load_codec(folder, decoder=False, device=self.device)
        if codec.spec.encoder_sha256 != self.plan.codec.encoder_sha256:
            raise CodecError(
                f"{self.store.location('codec')}: not the codec of the plan: restore the folder, or overwrite the "
                "split (--overwrite)"
            )
        return codec

    def describe(self, unit: int) -> str:
        """Return a description of a unit for messages."""
        if self.plan.num_fragments is not None:
            names = [self.source.fragment_name(fragment) for fragment in self.plan.fragments(unit)]
            return f"unit {unit} of split {self.plan.split!r} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
        size = self.plan.settings.samples_per_shard
        return f"shard {unit} of split {self.plan.split!r} (positions {unit * size} to {(unit + 1) * size - 1})"


def run_here(
    setup: WorkSetup,
    tasks: Iterable[Task],
    *,
    codec: Any,
    on_report: Callable[[Task, StageStats], None],
    on_shard: Callable[[Task, ShardId, ShardDone], None],
    on_done: Callable[[Task], None],
) -> None:
    """Run the units one after another in this process."""
    worker = setup.worker(codec=codec)
    for task in tasks:
        worker.run(task, report=partial(on_report, task), on_shard=partial(on_shard, task))
        on_done(task)
