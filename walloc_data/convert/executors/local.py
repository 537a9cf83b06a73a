"""Executor with worker processes on this machine. A worker that dies is replaced."""

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from walloc_data.convert.executors.serial import WorkSetup
from walloc_data.convert.journal import ShardDone
from walloc_data.convert.plan import ShardId
from walloc_data.convert.shard import StageStats
from walloc_data.convert.units import Task
from walloc_data.errors import ConversionError, MissingExtraError, WallocDataError

__all__ = ["MAX_ATTEMPTS", "run_processes"]

# die_with_parent comes first, so that the server ends with this process even while it imports torch. The workers end
# with the server.
_START = """
import os, sys
from walloc_data.convert.executors.server import die_with_parent, serve
die_with_parent()
if os.getppid() == int(sys.argv[1]):
    serve(*map(int, sys.argv[1:]))
"""

MAX_ATTEMPTS = 3  # per shard, because a picture may kill every worker that decodes it


class _ServerGoneError(Exception):
    """The server process has ended, and with it the workers."""


@dataclass(eq=False)
class _Worker:
    process: int
    connection: Connection
    server: "_Server"
    task: Task | None = None


def run_processes(
    setup: WorkSetup,
    tasks: Iterable[Task],
    *,
    workers: int,
    locks: tuple[int, ...],
    on_report: Callable[[Task, StageStats], None],
    on_shard: Callable[[Task, ShardId, ShardDone], None],
    on_lost: Callable[[Task], None],
    on_done: Callable[[Task], None],
    on_tick: Callable[[], None],
) -> None:
    """Make shards in `workers` processes.

    Args:
        locks: descriptors of locks, which the processes inherit: a lock is held until the last process ends.
        on_tick: called several times a second, even if nothing happened.

    Raises:
        ConversionError: the system is Windows, a shard killed its worker three times, or a picture stopped the run.
    """
    if os.name == "nt":
        raise ConversionError("several workers need a Unix system (processes must inherit locks): use workers=1")
    queue = _Queue(tasks)
    if not queue:
        return
    pool = _Pool(setup, locks=locks)
    attempts: Counter[int] = Counter()
    try:
        while True:
            while len(pool.busy()) < workers and queue:
                task = queue.take()
                try:
                    pool.give(task)
                except _ServerGoneError:
                    queue.put_back(task)
                    attempts[-1] += 1
                    if attempts[-1] >= MAX_ATTEMPTS:
                        raise ConversionError("the server process of the workers keeps dying: use workers=1") from None
            if not pool.busy():
                return
            for worker in pool.poll(timeout_s=0.2):
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    lost, ended = worker.task, pool.reap(worker)
                    if lost is not None:
                        on_lost(lost)
                        attempts[lost.unit] += 1
                        if attempts[lost.unit] >= MAX_ATTEMPTS:
                            raise ConversionError(_died(ended, lost, setup)) from None
                        queue.put_back(lost)
                    continue
                if kind == "error":
                    raise _error(*value)
                if worker.task is None:
                    continue
                if kind == "report":
                    on_report(worker.task, value)
                elif kind == "shard":
                    attempts[worker.task.unit] = 0
                    on_shard(worker.task, *value)
                    if value[0].number is not None:  # if the worker dies, the next one need not repeat it
                        worker.task = replace(worker.task, done=worker.task.done | {value[0].number})
                elif kind == "done":
                    task, worker.task = worker.task, None
                    on_done(task)
            on_tick()
    finally:
        pool.close()


class _Queue:
    """Queue of tasks; those of dead workers come first."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks: Iterator[Task] = iter(tasks)
        self._ready: list[Task] = []

    def __bool__(self) -> bool:
        if not self._ready and (task := next(self._tasks, None)) is not None:
            self._ready.append(task)
        return bool(self._ready)

    def take(self) -> Task:
        return self._ready.pop(0) if self else next(self._tasks)

    def put_back(self, task: Task) -> None:
        self._ready.insert(0, task)


class _Server:
    """Client of the server process (`walloc_data.convert.executors.server`)."""

    def __init__(self, setup_file: str, codec_folder: str, *, locks: tuple[int, ...]) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", _START, str(os.getpid()), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                # Output of libraries must not mix with the output of --json on stdout.
                stdout=2,
                pass_fds=(theirs.fileno(), *locks),
                process_group=0,  # Ctrl-C is sent to the parent only
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )
        finally:
            theirs.close()
        self._talk = Connection(os.dup(self._socket.fileno()))
        self._talk.send((setup_file, codec_folder))
        self._is_ready = False

    def start_worker(self, tag: str) -> tuple[int, Connection]:
        """Start one worker; return its process id and the connection to it.

        Raises:
            _ServerGoneError: the server has ended.
        """
        ours, theirs = socket.socketpair()
        try:
            if not self._is_ready:
                kind, value = self._talk.recv()
                if kind == "error":
                    raise _error(*value)
                self._is_ready = True
            self._talk.send(("start", tag))
            socket.send_fds(self._socket, [b"\0"], [theirs.fileno()])
            return self._talk.recv(), Connection(ours.detach())
        except (EOFError, ConnectionError) as error:
            raise _ServerGoneError from error
        finally:
            ours.close()
            theirs.close()

    def exit_code(self, process: int) -> int:
        """Return the exit code of a worker; -SIGKILL if the server has ended, too."""
        try:
            self._talk.send(("wait", process))
            code: int = self._talk.recv()
            return code
        except (EOFError, OSError):
            return -signal.SIGKILL

    def close(self) -> None:
        """End the server and its workers."""
        self._talk.close()
        self._socket.close()
        self.process.kill()
        self.process.wait()


class _Pool:
    def __init__(self, setup: WorkSetup, *, locks: tuple[int, ...]) -> None:
        from walloc_data.codec import fetch_codec

        self._locks, self._started = locks, 0
        self._workers: list[_Worker] = []
        self._servers: list[_Server] = []
        setup.staging.mkdir(parents=True, exist_ok=True)
        self._codec_folder = str(fetch_codec(setup.store, scratch=setup.staging / "codec-of-workers", decoders=False))
        self._setup = setup.staging / "setup.pickle"
        descriptor = os.open(self._setup, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123
            pickle.dump(setup, file)

    def give(self, task: Task) -> None:
        """Send a task to an idle worker, or to a new one."""
        worker = next((worker for worker in self._workers if worker.task is None), None)
        if worker is None:
            if not self._servers:
                self._servers.append(_Server(str(self._setup), self._codec_folder, locks=self._locks))
            server = self._servers[-1]
            try:
                worker = _Worker(*server.start_worker(str(self._started)), server)
            except _ServerGoneError:
                self._servers.remove(server)
                server.close()
                raise
            self._started += 1
            self._workers.append(worker)
        worker.task = task
        with suppress(OSError):  # it died; `poll` will find its connection closed
            worker.connection.send(task)

    def busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.task is not None]

    def poll(self, *, timeout_s: float) -> list[_Worker]:
        """Return workers that have sent a message or whose connection has closed."""
        by_pipe: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers}
        return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout_s)]

    def reap(self, worker: _Worker) -> str:
        """Remove a dead worker; return how it ended."""
        self._workers.remove(worker)
        worker.connection.close()
        code = worker.server.exit_code(worker.process)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """Kill all processes. Unfinished shards are never at their final place."""
        for worker in self._workers:
            worker.connection.close()  # an idle one exits
            if worker.task is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker.process, signal.SIGKILL)  # safe: the id is not reused before the server reaps it
        for worker in self._workers:
            worker.server.exit_code(worker.process)
        for server in self._servers:
            server.close()
        self._workers.clear()
        with suppress(OSError):
            self._setup.unlink(missing_ok=True)


def _error(kind: type[WallocDataError], message: str) -> WallocDataError:
    # Exceptions whose constructors take more than a message cannot be pickled: only the message is sent.
    return ConversionError(message) if issubclass(kind, MissingExtraError) else kind(message)


def _died(ended: str, task: Task, setup: WorkSetup) -> str:
    return (
        f"{setup.describe(task.unit)} ended its worker {MAX_ATTEMPTS} times, last {ended}. The cause may be too little "
        "memory: use fewer workers or a smaller max_pixels, and run the same command to resume"
    )
