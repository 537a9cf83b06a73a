"""A real S3 endpoint that can be killed, and a proxy in front of it that injects faults."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from walloc_data.format import Manifest

BUCKET = "reading"


@dataclass
class Faults:
    """A proxy in front of the store: each rule does something to the responses for paths that contain a string."""

    url: str = ""
    rules: list[tuple[str, str, int]] = field(default_factory=list)  # (part of the path, fault, how often)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, path: str) -> str | None:
        with self.lock:
            self.requests.append(path)
            for i, (part, fault, count) in enumerate(self.rules):
                if part in path and count > 0:
                    self.rules[i] = (part, fault, count - 1)
                    return fault
        return None

    def count(self, part: str) -> int:
        return sum(part in path for path in self.requests)


@pytest.fixture
def faults(swift: Any) -> Iterator[Faults]:
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            fault = faults.take(self.path) if self.command == "GET" else None
            upstream = HTTPConnection("127.0.0.1", swift.port)
            length = int(self.headers.get("Content-Length") or 0)
            upstream.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
            response = upstream.getresponse()
            status, body = response.status, response.read()
            if fault == "503":
                status, body = 503, b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"
            if fault == "301":
                status, body = (
                    301,
                    b"<Error><Code>PermanentRedirect</Code><Message>Not this endpoint.</Message></Error>",
                )
            if fault == "corrupt":
                body = body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]
            if fault == "short":  # well-formed, but not all of it
                body = body[: len(body) // 2]
            self.send_response(status)
            for name, value in response.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "etag"):
                    self.send_header(name, value)
            head = self.command == "HEAD"
            self.send_header("Content-Length", response.getheader("Content-Length", "0") if head else str(len(body)))
            self.end_headers()
            upstream.close()
            if head:
                return
            if fault == "cut":  # the connection breaks in the middle of the body
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return
            if fault == "hang":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                time.sleep(4)
                self.close_connection = True
                return
            for start in range(0, len(body), 4096):
                self.wfile.write(body[start : start + 4096])
                if fault == "slow":
                    time.sleep(0.05)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # clients hang up on purpose here

    server = Server(("127.0.0.1", 0), Handler)
    faults.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield faults
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def credentials(swift: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ecosystem keeps them: the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test:tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture(scope="session")
def source(swift: Any, tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Manifest]) -> Path:
    """20 shards of 16 samples on disk."""
    root = tmp_path_factory.mktemp("source")
    make_dataset(root, num_samples=320)
    return root


_numbers = itertools.count()


def _options(url: str) -> dict[str, object]:
    return {"key": "test:tester", "secret": "testing", "endpoint_url": url, "skip_instance_cache": True}


@pytest.fixture(scope="session")
def upload(swift: Any, make_bucket: Callable[[str], dict[str, Any]]) -> Callable[[Path], str]:
    """Put a folder into the bucket under a prefix of its own; gives the url."""
    import s3fs

    fs = s3fs.S3FileSystem(**_options(swift.url))
    make_bucket(BUCKET)

    def put(folder: Path) -> str:
        prefix = f"{BUCKET}/{next(_numbers)}"
        files = [path for path in folder.rglob("*") if path.is_file()]
        fs.put([str(path) for path in files], [f"{prefix}/{path.relative_to(folder)}" for path in files])
        return f"s3://{prefix}"

    return put


@pytest.fixture(scope="session")
def url(upload: Callable[[Path], str], source: Path) -> str:
    return upload(source)


@pytest.fixture
def change(swift: Any) -> Callable[[str, str, bytes | None], None]:
    """Replace one file of an uploaded data set, or remove it."""
    import s3fs

    def put(url: str, name: str, data: bytes | None) -> None:
        fs = s3fs.S3FileSystem(**_options(swift.url))
        if data is None:
            fs.rm_file(f"{url}/{name}")
        else:
            fs.pipe_file(f"{url}/{name}", data)

    return put
