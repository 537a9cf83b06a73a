"""Daemon threads for network requests, which do not delay the end of the program."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["DaemonThreads"]

Result = TypeVar("Result")


class DaemonThreads:
    """Pool of daemon threads that run functions in the order of submission.

    Unlike `concurrent.futures.ThreadPoolExecutor`, it does not keep the interpreter alive: after Ctrl-C a program ends
    at once, even if a store has not answered yet.

    Args:
        num_threads: at most; they start as they are needed.
        name: of the threads.

    Example:
        >>> from walloc_data.storage import DaemonThreads
        >>> threads = DaemonThreads(2, name="square")
        >>> futures = [threads.submit(pow, number, 2) for number in range(4)]
        >>> [future.result() for future in futures]
        [0, 1, 4, 9]
        >>> threads.close()
    """

    def __init__(self, num_threads: int, *, name: str) -> None:
        self.num_threads, self.name = num_threads, name
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """Run a function when a thread is free.

        Raises:
            RuntimeError: after `close`.
        """
        if self._closed:
            raise RuntimeError(f"the threads {self.name!r} were closed, so that nothing runs {function}")
        future: Future[Result] = Future()
        self._waiting.put((future, lambda: function(*arguments)))
        if len(self._threads) < self.num_threads:
            number = len(self._threads)
            thread = threading.Thread(target=self._run, name=f"{self.name}-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self) -> None:
        """Cancel queued calls, and let the threads end after the running ones, without waiting for them."""
        self._closed = True
        for _ in self._threads:
            self._waiting.put(None)

    def _run(self) -> None:
        while (task := self._waiting.get()) is not None:
            future, action = task
            if self._closed:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(action())
            except BaseException as error:
                future.set_exception(error)
            del future, action, task  # what they hold must not live until the next task
