"""Data sets on web servers: what they refuse, fail at, and send although nobody asked."""

import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from walloc_data.errors import StorageError
from walloc_data.storage import Store

LARGE_BYTES = 2**28


class _Handler(BaseHTTPRequestHandler):
    """Server that fails twice, knows no ranges, or refuses, by the name of the file."""

    asked: ClassVar[dict[str, int]] = {}

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.asked[name] = self.asked.get(name, 0) + 1
        status = {"absent": 404, "private": 403, "busy": 503 if self.asked[name] < 4 else 200}.get(name, 200)
        num_bytes = 0 if status != 200 else LARGE_BYTES if name == "large" else 10
        self.send_response(status)
        self.send_header("Content-Length", str(num_bytes))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for start in range(0, num_bytes, 2**20):
                self.wfile.write(b"0123456789" if num_bytes == 10 else bytes(min(2**20, num_bytes - start)))
        except OSError:  # the client has read enough
            pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(_Handler, "asked", {})
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between tries
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/latents"
    server.shutdown()
    server.server_close()
    thread.join()


def test_no_more_is_read_than_is_allowed_of_a_server_that_knows_no_ranges(server: str) -> None:
    store = Store(server)
    assert store.read_bytes("a", max_bytes=10) == b"0123456789"
    tracemalloc.start()
    with pytest.raises(StorageError, match=r"/latents/large: 268435456 bytes or more; at most 1000 are downloaded"):
        store.read_bytes("large", max_bytes=1000)
    assert tracemalloc.get_traced_memory()[1] < 2**25  # was more than twice the file
    tracemalloc.stop()


def test_a_server_that_is_busy_is_asked_again(server: str) -> None:
    assert Store(server).num_bytes("busy") == 10
    _Handler.asked.clear()
    assert Store(server).exists("busy")


def test_only_a_file_that_the_server_does_not_have_is_absent(server: str) -> None:
    assert Store(server).exists("a")
    assert not Store(server).exists("absent")
    assert _Handler.asked["absent"] <= 2  # HEAD, then GET
    with pytest.raises(StorageError, match=r"looking for http://.*/latents/private: ClientResponseError: 403"):
        Store(server).exists("private")


def test_a_server_that_is_not_there_is_not_a_folder_without_files(server: str) -> None:
    with pytest.raises(StorageError, match=r"/latents/a: failed 2 times in 0 s, last with ClientConnectorError"):
        Store("http://127.0.0.1:9/latents", max_attempts=2).exists("a")
