"""A Python that has imported torch, and forks into the programs that it is asked to be: see `tests.warm`.

Torch takes four seconds of a processor to import, more than most tests of whole programs take without it. The fork has
nothing else imported, but for the modules that the server's arguments name, and is its own process in every other way:
it has its own streams, environment, folder and signals, and ends as any Python does. Ctrl-C interrupts it even where
the test run ignores that signal, as whatever a script starts in the background does.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import numpy
import torch
import torch._dynamo  # two more seconds, of every program that makes an optimizer

assert numpy  # imported with torch


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for every request; returns it in the fork. The server itself ends when the connection does."""
    running: dict[int, tuple[int, int]] = {}  # by pidfd: process id, where its exit code is awaited
    while True:
        ready, _, _ = select.select([connection, *running], [], [])
        for pidfd in ready:
            if pidfd is not connection:
                pid, answer = running.pop(pidfd)
                _, status = os.waitpid(pid, 0)
                os.write(answer, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(answer)
                os.close(pidfd)
        if connection not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(connection, 2**20, 4)
        if not message:
            for pid, _ in running.values():
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        request: dict[str, Any] = json.loads(message)
        child = os.fork()
        if child == 0:
            for number in range(3):
                os.dup2(descriptors[number], number)
            connection.detach()
            os.closerange(3, 4096)
            return request
        for descriptor in descriptors[:3]:
            os.close(descriptor)
        running[os.pidfd_open(child)] = child, descriptors[3]
        connection.send(str(child).encode())


def become(request: dict[str, Any]) -> None:
    """Run the program of a request as `python ARGUMENTS` would."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if filters := os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(filters)
    arguments = request["arguments"]
    while arguments[0] in ("-u", "-W"):
        if arguments[0] == "-W":
            warnings.simplefilter(arguments[1])
            arguments = arguments[1:]
        arguments = arguments[1:]
    sys.path[:] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path] + sys.path[1:]
    kind, rest = (arguments[0], arguments[1:]) if arguments[0] in ("-c", "-m") else ("", arguments)
    if kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        script = Path(rest[0]).resolve()
        sys.path.insert(0, str(script.parent))
        sys.argv = rest
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__file__ = str(script)
        exec(compile(script.read_text(), script, "exec"), main.__dict__)


def end(request: dict[str, Any]) -> None:
    """Run a program, and end as Python ends after one; but for taking torch apart object by object."""
    code = 0
    try:
        become(request)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


torch.set_num_threads(1)
with warnings.catch_warnings(action="ignore"):
    for name in sys.argv[2:]:
        importlib.import_module(name)
gc.collect()
gc.freeze()  # what is imported is never collected, so that forks share its memory
end(serve(socket.socket(fileno=int(sys.argv[1]))))
