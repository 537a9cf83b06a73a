"""The local engine: worker processes, each doing one unit at a time. A worker that dies is replaced."""

import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from walloc_data.convert.engine import WorkSetup
from walloc_data.convert.plan import ShardId
from walloc_data.convert.records import ShardDone
from walloc_data.convert.units import Task
from walloc_data.convert.worker import Tally
from walloc_data.errors import ConversionError, MissingExtraError, WallocDataError

__all__ = ["MAX_ATTEMPTS", "run_processes"]

# A worker ends with its parent from its first moment on, also while it is still importing torch. PR_SET_PDEATHSIG is
# Linux's; elsewhere a worker notices between two windows of pictures.
_START = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    from walloc_data.convert.child import main
    main(*map(int, sys.argv[1:]))
"""

MAX_ATTEMPTS = 3  # per shard: a picture that kills its worker would kill every one after it


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    inbox: Connection  # what the child says
    outbox: Connection
    task: Task | None = None
    ready: bool = False


def run_processes(
    setup: WorkSetup,
    tasks: Iterable[Task],
    *,
    workers: int,
    locks: tuple[int, ...],
    on_report: Callable[[Task, Tally], None],
    on_shard: Callable[[Task, ShardId, ShardDone], None],
    on_lost: Callable[[Task], None],
    on_done: Callable[[Task], None],
    on_tick: Callable[[], None],
) -> None:
    """Make shards in `workers` processes.

    Args:
        locks: descriptors that the processes inherit, so that what they lock stays locked while one of them lives.
        on_tick: called several times a second, also while nothing happens.

    Raises:
        ConversionError: the system is Windows, a shard killed its worker three times, or a picture stopped the run.
    """
    if os.name == "nt":
        raise ConversionError("several workers need a Unix system, whose processes inherit locks: use workers=1")
    pool = _Pool(setup, locks=locks)
    queue = _Queue(tasks)
    attempts: Counter[int] = Counter()
    try:
        while True:
            while len(pool.children) < workers and queue.waiting(len(pool.idle())):
                pool.start()
            for child in pool.idle():
                if (task := queue.take()) is None:
                    break
                pool.give(child, task)
            if not pool.busy():
                return
            for child in pool.heard(timeout_s=0.2):
                try:
                    kind, value = child.inbox.recv()
                except (EOFError, OSError):
                    task = pool.bury(child)
                    if task is not None:
                        on_lost(task)
                        attempts[task.unit] += 1
                        if attempts[task.unit] >= MAX_ATTEMPTS:
                            raise ConversionError(_died(child, task, setup)) from None
                        queue.put_back(task)
                    elif not child.ready:
                        attempts[-1] += 1
                        if attempts[-1] >= MAX_ATTEMPTS:
                            raise ConversionError(f"workers die before they start ({_ended(child)})") from None
                    continue
                if kind == "error":
                    raise _error(*value)
                if kind == "ready":
                    child.ready = True
                elif kind == "report" and child.task is not None:
                    on_report(child.task, value)
                elif kind == "shard" and child.task is not None:
                    attempts[child.task.unit] = 0
                    on_shard(child.task, *value)
                    if value[0].number is not None:  # should the worker die, the next one need not make it again
                        child.task = replace(child.task, done=child.task.done | {value[0].number})
                elif kind == "done" and child.task is not None:
                    task, child.task = child.task, None
                    on_done(task)
            on_tick()
    finally:
        pool.close()


class _Queue:
    """Tasks to come: those of dead workers first."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks: Iterator[Task] = iter(tasks)
        self._ready: list[Task] = []

    def take(self) -> Task | None:
        self._look_ahead()
        return self._ready.pop(0) if self._ready else None

    def waiting(self, idle: int) -> bool:
        """Whether there is work for more than the workers that are idle already."""
        if idle:
            return False
        self._look_ahead()
        return bool(self._ready)

    def _look_ahead(self) -> None:
        if not self._ready and (task := next(self._tasks, None)) is not None:
            self._ready.append(task)

    def put_back(self, task: Task) -> None:
        self._ready.insert(0, task)


class _Pool:
    def __init__(self, setup: WorkSetup, *, locks: tuple[int, ...]) -> None:
        self.locks = locks
        self.children: list[_Child] = []
        self._started = 0
        # Once for all workers: a million file names through a pipe would start them one after another.
        setup.staging.mkdir(parents=True, exist_ok=True)
        self._setup = setup.staging / "setup.pickle"
        descriptor = os.open(self._setup, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123
            pickle.dump(setup, file)

    def start(self) -> None:
        """Start one process. What it is to do reaches it through its pipe."""
        child_reads, parent_writes = os.pipe()
        parent_reads, child_writes = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", _START, str(os.getpid()), str(child_reads), str(child_writes)],
                stdin=subprocess.DEVNULL,
                # Whatever a library prints belongs beside the progress, not into --json's output.
                stdout=2,
                pass_fds=(child_reads, child_writes, *self.locks),
                process_group=0,  # Ctrl-C reaches the parent alone
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )
        finally:
            os.close(child_reads)
            os.close(child_writes)
        child = _Child(process, Connection(parent_reads, writable=False), Connection(parent_writes, readable=False))
        self.children.append(child)
        self._send(child, (str(self._setup), str(self._started)))
        self._started += 1

    def give(self, child: _Child, task: Task) -> None:
        child.task = task
        self._send(child, task)

    def _send(self, child: _Child, message: Any) -> None:
        with suppress(OSError):  # it died; its end of file is on the way
            child.outbox.send(message)

    def idle(self) -> list[_Child]:
        return [child for child in self.children if child.task is None]

    def busy(self) -> list[_Child]:
        return [child for child in self.children if child.task is not None]

    def heard(self, *, timeout_s: float) -> list[_Child]:
        """Children with something to say, or whose pipe has closed."""
        by_pipe: dict[Any, _Child] = {child.inbox: child for child in self.children}
        return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout_s)]

    def bury(self, child: _Child) -> Task | None:
        """Remove a dead child; returns what it was doing."""
        self.children.remove(child)
        _close(child)
        child.process.wait()
        return child.task

    def close(self) -> None:
        """End every process, now; nothing half-done is ever in its place."""
        for child in self.children:
            if child.task is not None:
                child.process.kill()
            _close(child)  # an idle child sees its pipe close and leaves
        for child in self.children:
            try:
                child.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self.children.clear()
        with suppress(OSError):
            self._setup.unlink(missing_ok=True)


def _error(kind: type[WallocDataError], message: str) -> WallocDataError:
    # An error whose constructor takes more than a message travels as its message.
    return ConversionError(message) if issubclass(kind, MissingExtraError) else kind(message)


def _close(child: _Child) -> None:
    child.inbox.close()
    child.outbox.close()


def _ended(child: _Child) -> str:
    code = child.process.returncode
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _died(child: _Child, task: Task, setup: WorkSetup) -> str:
    return (
        f"{setup.describe(task.unit)} ended its worker {MAX_ATTEMPTS} times, last {_ended(child)}. Too little memory "
        "ends a worker so: try fewer workers or a smaller max_pixels. What is published stays; the same command goes "
        "on from there"
    )
