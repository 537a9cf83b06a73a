"""The server process that forks the workers of `walloc_data.convert.executors.local`.

Importing torch takes seconds; forking a process that has imported it takes milliseconds, and read-only data of all
workers (millions of file names, the codec) is in memory once. The fork server of multiprocessing is not used because
it runs the caller's `__main__` again, which fails in notebooks and in scripts without a guard. Messages are pickles,
exchanged only between processes that started each other.

Requests come through a socket, which also carries the descriptor of the connection to the new worker:

    ("start", tag) and a descriptor    -> the worker's process id
    ("wait", process id)               -> the exit code of a worker that has ended
"""

import ctypes
import gc
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from walloc_data.errors import ConversionError, WallocDataError

__all__ = ["die_with_parent", "serve"]


class _OrphanError(Exception):
    """The parent process has ended; nothing must be published any more."""


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def serve(parent: int, descriptor: int) -> None:
    """Start workers for the process `parent` until it closes its end of the socket `descriptor`."""
    control = socket.socket(fileno=descriptor)
    connection, server = Connection(os.dup(descriptor)), os.getpid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        setup_file, codec_folder = connection.recv()
        start = _prepare(Path(setup_file), Path(codec_folder))
        connection.send(("ready", None))
        gc.freeze()  # garbage collection in a worker would copy shared pages
        while True:
            kind, value = connection.recv()
            if kind == "wait":
                connection.send(os.waitstatus_to_exitcode(os.waitpid(value, 0)[1]))
                continue
            _, [pipe], _, _ = socket.recv_fds(control, 1, 1)
            if (child := os.fork()) == 0:
                connection.close()
                control.close()
                _run_worker(start, pipe, tag=value, server=server)
            os.close(pipe)
            connection.send(child)
    except (EOFError, ConnectionError):
        os._exit(0)  # the parent has ended or finished; workers end with this process
    except Exception as error:
        connection.send(("error", _described(error)))


def _prepare(setup_file: Path, codec_folder: Path) -> Callable[..., Any]:
    """Import modules, read the setup, and load the codec, before workers are forked."""
    import pyarrow.parquet  # noqa: F401
    import torch
    from PIL import Image

    import walloc_data.convert.worker  # noqa: F401

    torch.set_num_threads(1)  # one core per worker; threads do not survive a fork
    Image.init()
    setup = pickle.loads(setup_file.read_bytes())  # noqa: S301 (written by the parent, readable by its user alone)
    # CUDA cannot be used after a fork: each worker loads its own codec there.
    codec = setup.load_codec(codec_folder) if setup.device == "cpu" else None

    def start(tag: str, alive: Callable[[], None]) -> Any:
        mine = codec if codec is not None else setup.load_codec(codec_folder)
        return setup.worker(codec=mine, alive=alive, tag=tag)

    return start


def _run_worker(start: Callable[..., Any], pipe: int, *, tag: str, server: int) -> None:
    """Run the units that arrive through a pipe and report results, until the pipe is closed; never returns."""
    code = 1
    try:
        die_with_parent()
        connection = Connection(pipe)

        def alive() -> None:
            if os.getppid() != server:
                raise _OrphanError

        try:
            alive()
            worker = start(tag, alive)
            while (task := connection.recv()) is not None:
                worker.run(
                    task,
                    report=lambda stats: connection.send(("report", stats)),
                    on_shard=lambda shard, done: connection.send(("shard", (shard, done))),
                )
                connection.send(("done", None))
        except (_OrphanError, EOFError, ConnectionError):
            pass
        except Exception as error:
            connection.send(("error", _described(error)))
        code = 0
    finally:
        os._exit(code)


def _described(error: Exception) -> tuple[type[WallocDataError], str]:
    if isinstance(error, WallocDataError):
        return type(error), str(error)
    return ConversionError, f"a worker failed: {''.join(traceback.format_exception(error))}"
