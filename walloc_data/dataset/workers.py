"""Worker processes of a loader, and errors for workers that die.

Batches are passed in shared memory, whose file descriptors go through a socket in the temporary folder. If there is too
little memory, or no socket can be made, torch fails in a background thread of the worker and the loader would wait
forever; therefore the main thread of the worker moves batches to shared memory, after a look at the folder.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from multiprocessing import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, _utils, get_worker_info

from walloc_data.errors import WorkerError

__all__ = ["batches_of", "check_sockets", "in_shared_memory"]

_SHARED_MEMORY = "/dev/shm"  # noqa: S108
_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of a socket's path: sun_path without its end
_SOCKET_NAME = len("/listener-xxxxxxxx")  # of multiprocessing.connection
_DIED = re.compile(r"DataLoader worker \(pid.* (is killed by signal: (?P<signal>[\w ]+)|exited unexpectedly)")
_REMEDIES = {
    "Bus error": "the shared memory ({shm}) is full: {enlarge}",
    "Killed": "the machine or container ran out of memory, or it was killed: lower num_workers, prefetch_batches "
    "or batch_size",
}
_ENLARGE = (
    "enlarge it (docker run --shm-size=8g; in Kubernetes an emptyDir with medium: Memory at /dev/shm), or lower "
    "batch_size, prefetch_batches or num_workers"
)


def in_shared_memory(batch: Any) -> Any:
    """Move the tensors of a worker's batch to shared memory. Does nothing in the main process.

    Raises:
        WorkerError: the shared memory is full, or the temporary folder cannot hold the worker's socket.
    """
    if get_worker_info() is None:
        return batch
    check_sockets()
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple) else (batch,)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    try:
        for tensor in tensors:
            if tensor.numel():
                tensor.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        raise WorkerError(
            f"no shared memory for a batch of {num_bytes} bytes in {_free_space()} ({str(error).splitlines()[0]}): "
            f"{_ENLARGE}"
        ) from error
    return batch


def check_sockets() -> None:
    """Raise a WorkerError if this process is a worker and cannot make sockets in its temporary folder."""
    if get_worker_info() is not None:
        _check_socket_folder()


@cache
def _check_socket_folder() -> None:
    if os.name == "nt" or torch.multiprocessing.get_sharing_strategy() != "file_descriptor":  # type: ignore[no-untyped-call]
        return
    try:
        folder = util.get_temp_dir()
    except OSError as error:
        raise WorkerError(
            f"no temporary folder for the sockets of worker processes ({error}): set TMPDIR to a folder on a local disk"
        ) from error
    if (too_long := len(os.fsencode(folder)) + _SOCKET_NAME - _LONGEST_SOCKET) > 0:
        raise WorkerError(
            f"the temporary folder {Path(folder).parent} has a path too long for the sockets of worker processes: "
            f"set TMPDIR to a folder whose path is shorter by {too_long} bytes or more, such as /tmp"
        )


def batches_of(loader: "DataLoader[Any]") -> Iterator[Any]:
    """Return an iterator over a loader, whose workers are started at once.

    Raises:
        WorkerError: a worker died. The next pass of the loader starts new ones.
    """
    kept: Any = loader
    if any(not worker.is_alive() for worker in getattr(kept._iterator, "_workers", ())):
        _kill_workers(kept)  # Ctrl-C ended some while the caller's code ran
    return _pass(loader, iter(loader))


def _pass(loader: "DataLoader[Any]", batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except KeyboardInterrupt:
            # A terminal sends Ctrl-C to the workers, too; a scheduler may signal only this process.
            _kill_workers(loader)
            raise
        except RuntimeError as error:
            if (how := _exit_cause(error)) is None:
                raise
            _kill_workers(loader)
            remedy = _REMEDIES.get(how, "see its output above").format(shm=_free_space(), enlarge=_ENLARGE)
            raise WorkerError(f"a worker process of the loader died ({how}): {remedy}") from error
        yield batch


def _exit_cause(error: BaseException | None) -> str | None:
    """Return how a worker died, from torch's error; None for other errors."""
    how = None
    while error is not None:
        if match := _DIED.search(str(error)):
            how = match["signal"] or how or "it exited"
        error = error.__cause__ or error.__context__
    return how


def _kill_workers(loader: Any) -> None:
    """Kill the workers, so that the next pass starts new ones.

    Not by the iterator's own shutdown: it waits five seconds for each worker, and for ever on the lock of its event if
    a worker was killed while it held that.
    """
    iterator, loader._iterator = loader._iterator, None
    if iterator is None:
        return
    iterator._shutdown = True
    if iterator._worker_pids_set:
        # After this, torch's SIGCHLD handler does not report the end of workers as a failure, which would hide Ctrl-C.
        _utils.signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]
        iterator._worker_pids_set = False
    if (pinning := getattr(iterator, "_pin_memory_thread_done_event", None)) is not None:
        pinning.set()  # a daemon thread, which looks every five seconds
    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join()
    for queue in iterator._index_queues:
        queue.cancel_join_thread()
        queue.close()


def _free_space() -> str:
    try:
        room = shutil.disk_usage(_SHARED_MEMORY)
    except OSError:
        return _SHARED_MEMORY
    return f"{_SHARED_MEMORY}, {room.free} bytes free of {room.total}"
