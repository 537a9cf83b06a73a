"""A worker process, started by `walloc_data.convert.pool` with two pipe descriptors.

Not multiprocessing's spawn, which runs the caller's `__main__` again and fails where that has no guard (a script of
five lines, a notebook). Messages are pickles between a parent and the child that it started itself.
"""

import os
import pickle
import signal
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from walloc_data.errors import ConversionError, WallocDataError

__all__ = ["main"]


class _OrphanError(Exception):
    """The parent is gone; what it started must not be published."""


def main(parent: int, read: int, write: int) -> None:
    """Do the units that arrive through one pipe and tell through the other, until told to end or left alone."""
    inbox, outbox = Connection(read, writable=False), Connection(write, readable=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means

    def alive() -> None:
        if os.getppid() != parent:
            raise _OrphanError

    import torch

    torch.set_num_threads(1)  # one worker, one core
    try:
        path, tag = inbox.recv()
        setup = pickle.loads(Path(path).read_bytes())  # noqa: S301 (written by the parent, readable by its user alone)
        worker = setup.worker(alive=alive, tag=tag)
        outbox.send(("ready", None))
        while (task := inbox.recv()) is not None:
            worker.run(
                task,
                report=lambda tally: outbox.send(("report", tally)),
                on_shard=lambda shard, done: outbox.send(("shard", (shard, done))),
            )
            outbox.send(("done", None))
    except (_OrphanError, EOFError, BrokenPipeError):
        return
    except WallocDataError as error:
        outbox.send(("error", (type(error), str(error))))
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        outbox.send(("error", (ConversionError, f"a worker failed: {trace}")))
