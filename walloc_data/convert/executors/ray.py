"""Executor on a Ray cluster. Ray repeats a task when its node or worker fails."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from walloc_data.convert.executors.serial import WorkSetup
from walloc_data.convert.journal import ShardDone
from walloc_data.convert.plan import ShardId
from walloc_data.convert.units import Task
from walloc_data.convert.worker import Worker
from walloc_data.errors import ConversionError, MissingExtraError, WallocDataError

__all__ = ["run_ray"]

MAX_RETRIES = 5  # per unit, after failures of its node or worker

# One worker is kept per process of the cluster and conversion, so that its codec is loaded once.
_kept: dict[str, Worker] = {}


def run_ray(
    setup: WorkSetup,
    tasks: Iterable[Task],
    *,
    tasks_at_once: int,
    address: str | None,
    on_shard: Callable[[Task, ShardId, ShardDone], None],
    on_done: Callable[[Task], None],
    on_tick: Callable[[], None],
) -> None:
    """Run units on a Ray cluster, `tasks_at_once` at a time.

    Every node needs walloc_data, and must reach the source and the data set under the same paths or URLs.

    Raises:
        ConversionError: Ray gave up on a unit, or a picture stopped the run.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", extra="ray", purpose="engine='ray'") from error
    own = not ray.is_initialized()
    if own:
        ray.init(address=address, log_to_driver=False, **({} if address else {"include_dashboard": False}))
    try:
        shared = ray.put(setup)
        remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_make)
        name = f"{setup.store.url}:{setup.plan.split}:{setup.plan.codec.encoder_sha256}:{id(setup)}"
        waiting: dict[Any, Task] = {}
        queue = iter(tasks)
        while True:
            while len(waiting) < tasks_at_once and (task := next(queue, None)) is not None:
                waiting[remote.remote(shared, task, name)] = task
            if not waiting:
                return
            ready, _ = ray.wait(list(waiting), timeout=0.5)
            for reference in ready:
                task = waiting.pop(reference)
                for shard, done in _result(reference, setup.describe(task.unit)):
                    on_shard(task, shard, done)
                on_done(task)
            on_tick()
    finally:
        if own:
            ray.shutdown()


def _result(reference: Any, what: str) -> list[tuple[ShardId, ShardDone]]:
    import ray

    try:
        shards: list[tuple[ShardId, ShardDone]] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, WallocDataError):
            raise cause from error
        raise ConversionError(f"{what} failed on the Ray cluster: {error}") from error
    except ray.exceptions.RayError as error:
        raise ConversionError(
            f"{what}: Ray gave up ({type(error).__name__}: {error}). Finished shards are kept; run the same command to "
            "resume"
        ) from error
    return shards


def _make(setup: WorkSetup, task: Task, name: str) -> list[tuple[ShardId, ShardDone]]:
    """Run one unit, on the cluster."""
    import torch

    store = setup.store
    # On the file system of a local data set, so that publishing is a rename. Removed with the folder of the run.
    folder = None if store.local_path is None else setup.staging
    with tempfile.TemporaryDirectory(prefix="walloc_data-", dir=folder) as staging:
        if name not in _kept:
            torch.set_num_threads(1)
            _kept[name] = replace(setup, staging=Path(staging)).worker()
        worker = _kept[name]
        worker.staging = Path(staging)
        shards: list[tuple[ShardId, ShardDone]] = []
        worker.run(task, on_shard=lambda shard, done: shards.append((shard, done)))
        return shards
