"""New Python processes in a few hundredths of a second, for tests of whole programs: `subprocess`, but warm.

`run` and `Popen` take what `subprocess.run([sys.executable, ...])` takes of these, and `launch` starts a script as
torchrun does. See `tests/warm_server.py` for what such a process is. Tests of what is imported, and when, need a cold
one.

`preload` names modules that such a process has imported before it begins, as it has torch: frameworks take seconds.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

__all__ = ["Popen", "launch", "run"]

_SERVER = Path(__file__).with_name("warm_server.py")
_Modules = tuple[str, ...]
# By process, as each worker of the test run has servers of its own, and by what they have imported.
_connections: dict[tuple[int, _Modules], socket.socket] = {}


def _server(preload: _Modules) -> socket.socket:
    if (os.getpid(), preload) not in _connections:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [sys.executable, _SERVER, str(there.fileno()), *preload],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C to the tests is not for it
        )
        there.close()
        _connections[os.getpid(), preload] = here
        atexit.register(_end, here, process)
    return _connections[os.getpid(), preload]


def _end(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.wait()


class Popen:
    """A process, as `subprocess.Popen` has it: text pipes, signals, exit code."""

    def __init__(
        self,
        arguments: Sequence[Any],
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        start_new_session: bool = False,
        preload: _Modules = (),
    ) -> None:
        self.args, self.returncode = list(arguments), None
        self.stdin = self.stdout = self.stderr = None
        given: list[int] = []
        opened: list[int] = []
        for number, stream in enumerate((stdin, stdout, stderr)):
            if stream is subprocess.PIPE:
                read, write = os.pipe()
                mine, theirs = (write, read) if number == 0 else (read, write)
                setattr(self, ("stdin", "stdout", "stderr")[number], os.fdopen(mine, "w" if number == 0 else "r"))
                opened.append(theirs)
            elif stream is subprocess.DEVNULL:
                theirs = os.open(os.devnull, os.O_RDWR)
                opened.append(theirs)
            elif stream is subprocess.STDOUT:
                theirs = given[1]
            else:
                theirs = number if stream is None else stream.fileno()
            given.append(theirs)
        self._ended, answer = os.pipe()
        request = {
            "arguments": [os.fspath(argument) for argument in arguments],
            "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd or Path.cwd()),
            "new_session": start_new_session,
        }
        connection = _server(preload)
        socket.send_fds(connection, [json.dumps(request).encode()], [*given, answer])
        for descriptor in (*opened, answer):
            os.close(descriptor)
        self.pid = int(connection.recv(100))

    def poll(self) -> int | None:
        """Return the exit code, -N for signal N; None while it runs."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = int(os.read(self._ended, 100))
            os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within `timeout` seconds.
        """
        if self.returncode is None and not select.select([self._ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        """Write `input`, read both pipes to their end, and wait."""
        if self.stdin is not None:
            self.stdin.write(input or "")
            self.stdin.close()
        pipes = {pipe.fileno(): bytearray() for pipe in (self.stdout, self.stderr) if pipe is not None}
        found, deadline = dict(pipes), None if timeout is None else time.monotonic() + timeout
        while pipes:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            ready = select.select(list(pipes), [], [], left)[0]
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            for descriptor in ready:
                data = os.read(descriptor, 2**16)
                pipes[descriptor] += data
                if not data:
                    del pipes[descriptor]
        texts = []
        for pipe in (self.stdout, self.stderr):
            texts.append("" if pipe is None else found[pipe.fileno()].decode())
            if pipe is not None:
                pipe.close()
        self.wait(timeout)
        return texts[0], texts[1]

    def __enter__(self) -> "Popen":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the pipes, which would warn in a later test, and wait; after an error, kill the process first."""
        if kind is not None:
            self.kill()
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self.wait()


def run(
    arguments: Sequence[Any],
    *,
    check: bool = False,
    input: str | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, capturing what it prints.

    Raises:
        subprocess.CalledProcessError: with `check`, its exit code is not 0; what it printed is in the message.
        subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was killed.
    """
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    with Popen(arguments, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd) as process:
        out, err = process.communicate(input, timeout)
    code = process.wait()
    if check and code:
        raise AssertionError(f"exit code {code} of {process.args}:\n{out}\n{err}")
    return subprocess.CompletedProcess(process.args, code, out, err)


def launch(
    arguments: Sequence[Any],
    *,
    world_size: int = 1,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    preload: _Modules = (),
    timeout: float = 400,
) -> None:
    """Run a script in as many processes as torchrun would, with its variables; in one, without.

    On the CPU, one thread each, and without the warnings of the packages that are run.

    Raises:
        AssertionError: a process failed; its output is in the message.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    of_ranks: list[dict[str, str]] = [{}]
    if world_size > 1:
        names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
        sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world_size))
        of_ranks = [names | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    processes = [
        Popen(
            [str(argument) for argument in arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **common, **(env or {}), **of_rank},
            cwd=cwd,
            preload=preload,
        )
        for of_rank in of_ranks
    ]
    outputs = []
    with ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
        for process in processes:
            outputs.append(process.communicate(timeout=timeout)[0][-4000:])
    codes = [process.returncode for process in processes]
    assert not any(codes), f"exit codes {codes} of {arguments}:\n" + "\n".join(outputs)
