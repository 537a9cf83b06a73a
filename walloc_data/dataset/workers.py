"""Worker processes of a loader, and errors for workers that die.

Batches are passed in shared memory, whose file descriptors go through a socket in the temporary folder. If there is too
little memory, no socket can be made, or too many files are open, torch fails in a background thread of the worker and
the loader would wait forever. Therefore the main thread of the worker checks these before each batch, and a worker
whose other threads fail all the same ends, which the loader sees.
"""

import errno
import multiprocessing.queues
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, _utils, get_worker_info

from walloc_data.errors import WorkerError

__all__ = ["batches_of", "in_shared_memory", "prepare_worker"]

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
_MORE_FILES = "raise the limit (`ulimit -n`), or lower prefetch_batches"
_SPARE_FILES = 8  # for the socket and connections of the worker's other thread
_END = object()


def in_shared_memory(batch: Any) -> Any:
    """Move the tensors of a worker's batch to shared memory. Does nothing in the main process.

    Raises:
        WorkerError: the shared memory is full, the temporary folder cannot hold the worker's socket, or too many files
            are open.
    """
    if get_worker_info() is None:
        return batch
    prepare_worker()
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple) else (batch,)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    _check_descriptors(2 * len(tensors) + _SPARE_FILES)
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


def prepare_worker() -> None:
    """Make a worker end, not wait, if it cannot send batches. Does nothing in the main process.

    Raises:
        WorkerError: the temporary folder cannot hold the worker's socket.
    """
    if get_worker_info() is not None:
        _prepare_once()


@cache
def _prepare_once() -> None:
    _check_socket_folder()
    # The thread that pickles batches calls the first when it fails, the one that sends descriptors the second.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
    sys.excepthook = lambda kind, error, trace: _end(error)


def _end(error: BaseException, _: object = None) -> None:
    traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        print(f"too many open files in a worker process: {_MORE_FILES}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


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


def _check_descriptors(count: int) -> None:
    """Raise a WorkerError if this process cannot open so many more files: each waiting tensor holds a descriptor."""
    held: list[int] = []
    try:
        for _ in range(count):
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise WorkerError(
            f"too many open files in a worker process, for batches on their way: {_MORE_FILES}"
        ) from error
    finally:
        for descriptor in held:
            os.close(descriptor)


def batches_of(loader: "DataLoader[Any]") -> Iterator[Any]:
    """Return an iterator over a loader, whose workers are started at once.

    Raises:
        WorkerError: a worker died. The next pass of the loader starts new ones.
    """
    kept: Any = loader
    if any(not worker.is_alive() for worker in getattr(kept._iterator, "_workers", ())):
        _kill_workers(kept)  # Ctrl-C ended some while the caller's code ran
    with _worker_errors(loader):
        batches = iter(loader)
    return _pass(loader, batches)


def _pass(loader: "DataLoader[Any]", batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with _worker_errors(loader):
            batch = next(batches, _END)
        if batch is _END:
            return
        yield batch


@contextmanager
def _worker_errors(loader: "DataLoader[Any]") -> Iterator[None]:
    """Context: kill the workers when one has died, or on Ctrl-C, and say why it died."""
    try:
        yield
    except KeyboardInterrupt:
        # A terminal sends Ctrl-C to the workers, too; a scheduler may signal only this process.
        _kill_workers(loader)
        raise
    except (EOFError, ConnectionError) as error:
        if not loader.num_workers or "in DataLoader worker process" in str(error):
            raise  # the data set's own, or a transform's
        _kill_workers(loader)  # while a tensor was received: the worker's other thread has failed
        raise WorkerError(
            f"a worker process of the loader sent half a batch ({error or type(error).__name__}): see its output "
            f"above; if too many files are open, {_MORE_FILES}"
        ) from error
    except RuntimeError as error:
        if (how := _exit_cause(error)) is None:
            raise
        _kill_workers(loader)
        remedy = _REMEDIES.get(how, "see its output above").format(shm=_free_space(), enlarge=_ENLARGE)
        raise WorkerError(f"a worker process of the loader died ({how}): {remedy}") from error


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
