"""Batches through a `DataLoader`'s worker processes, and what is said when one of them dies.

Batches travel in shared memory. Where a worker has too little of it, torch fails in a thread of the worker that can
tell nobody, and the loader would wait for ever; so the worker's own thread moves the batch there.
"""

import re
import shutil
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, _utils, get_worker_info

from walloc_data.errors import WorkerError

__all__ = ["batches_of", "in_shared_memory"]

_SHARED_MEMORY = "/dev/shm"  # noqa: S108
_DIED = re.compile(r"DataLoader worker \(pid.* (is killed by signal: (?P<signal>[\w ]+)|exited unexpectedly)")
_REMEDIES = {
    "Bus error": "the shared memory ({shm}) is full: {enlarge}",
    "Killed": "the machine or container ran out of memory, or somebody killed it: lower num_workers, prefetch_batches "
    "or batch_size",
}
_ENLARGE = (
    "enlarge it (docker run --shm-size=8g; in Kubernetes an emptyDir with medium: Memory at /dev/shm), or lower "
    "batch_size, prefetch_batches or num_workers"
)


def in_shared_memory(batch: Any) -> Any:
    """Move the tensors of a batch that a worker made to where the main process can have them.

    Do nothing in the main process.

    Raises:
        WorkerError: there is no room for it.
    """
    if get_worker_info() is None:
        return batch
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple) else (batch,)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    try:
        for tensor in tensors:
            if tensor.numel():
                tensor.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        raise WorkerError(
            f"no shared memory for a batch of {num_bytes} bytes in {_room()} ({str(error).splitlines()[0]}): {_ENLARGE}"
        ) from error
    return batch


def batches_of(loader: "DataLoader[Any]") -> Iterator[Any]:
    """Iterate once over a loader, whose workers have started when this returns.

    Raises:
        WorkerError: a worker died. The loader's next pass has new ones.
    """
    return _pass(loader, iter(loader))


def _pass(loader: "DataLoader[Any]", batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except KeyboardInterrupt:
            # In a terminal the workers got it too; from a scheduler this process alone did.
            _interrupt(loader)
            raise
        except RuntimeError as error:
            if (how := _how_it_died(error)) is None:
                raise
            _forget_workers(loader)
            remedy = _REMEDIES.get(how, "its own output above says more").format(shm=_room(), enlarge=_ENLARGE)
            raise WorkerError(f"a process that reads batches died ({how}): {remedy}") from error
        yield batch


def _how_it_died(error: BaseException | None) -> str | None:
    """Return how a worker died, if that is what torch says."""
    how = None
    while error is not None:
        if match := _DIED.search(str(error)):
            how = match["signal"] or how or "it ended by itself"
        error = error.__cause__ or error.__context__
    return how


def _interrupt(loader: Any) -> None:
    """End the workers at once: torch would wait five seconds for each of them."""
    iterator = loader._iterator
    if not getattr(iterator, "_worker_pids_set", False):
        return
    # From here on torch's handler of SIGCHLD takes no worker's end for a failure, and cannot hide Ctrl-C behind it.
    _utils.signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]
    iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.terminate()
    _forget_workers(loader)


def _forget_workers(loader: Any) -> None:
    """End the workers that are left; the next pass must not wait for those that are gone."""
    iterator, loader._iterator = loader._iterator, None
    if iterator is not None:
        iterator._shutdown_workers()


def _room() -> str:
    try:
        room = shutil.disk_usage(_SHARED_MEMORY)
    except OSError:
        return _SHARED_MEMORY
    return f"{_SHARED_MEMORY}, {room.free} bytes free of {room.total}"
