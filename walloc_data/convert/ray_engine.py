"""Shards as tasks on a Ray cluster; Ray runs a task again when its node or worker goes away."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from walloc_data.convert.engine import Task, WorkSetup
from walloc_data.convert.records import ShardDone
from walloc_data.convert.worker import ShardWorker
from walloc_data.errors import ConversionError, MissingExtraError, WallocDataError

__all__ = ["run_ray"]

MAX_RETRIES = 5  # of one shard, after its node or worker went away

# One worker is kept per process of the cluster and conversion, so that its codec is loaded once.
_kept: dict[str, ShardWorker] = {}


def run_ray(
    setup: WorkSetup,
    tasks: Iterable[Task],
    *,
    tasks_at_once: int,
    address: str | None,
    on_done: Callable[[Task, ShardDone], None],
    on_tick: Callable[[], None],
) -> None:
    """Make shards on a Ray cluster, `tasks_at_once` at a time.

    Every node needs walloc_data, and reaches source and output under the same names: an object store or a shared
    file system. The source must be readable by position.

    Raises:
        ConversionError: Ray gave a shard up, or a picture stopped the run.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", extra="ray", purpose="engine='ray'") from error
    if setup.source is None:
        raise ConversionError("engine='ray' reads sources by position; convert a stream with engine='local'")
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
                on_done(task, _result(reference, task))
            on_tick()
    finally:
        if own:
            ray.shutdown()


def _result(reference: Any, task: Task) -> ShardDone:
    import ray

    try:
        done: ShardDone = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, WallocDataError):
            raise cause from error
        raise ConversionError(f"shard {task.shard} failed on the Ray cluster: {error}") from error
    except ray.exceptions.RayError as error:
        raise ConversionError(
            f"shard {task.shard}: Ray gave it up ({type(error).__name__}: {error}). What is published stays; the same "
            "command goes on from there"
        ) from error
    return done


def _make(setup: WorkSetup, task: Task, name: str) -> ShardDone:
    """On the cluster: make one shard."""
    import torch

    store = setup.store
    # On the file system of a local data set, so that publishing is a rename; it goes away with the run's own folder.
    folder = None if store.local_path is None else setup.staging
    with tempfile.TemporaryDirectory(prefix="walloc_data-", dir=folder) as staging:
        if name not in _kept:
            torch.set_num_threads(1)
            _kept[name] = replace(setup, staging=Path(staging)).worker()
        worker = _kept[name]
        worker.staging = Path(staging)
        return worker.run(task.shard, setup.samples(task))
