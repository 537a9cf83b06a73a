"""A proxy in front of an object store that injects faults into its answers, by rules.

with fault_proxy(port) as faults:
    faults.rules = [("data/train-00003", "503", 2)]        # the first two answers about this shard
    Store(url, storage_options={"endpoint_url": faults.url})
"""

import hashlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# (status, code, headers) of answers that take the place of the store's.
ANSWERS: dict[str, tuple[int, str, dict[str, str]]] = {
    "500": (500, "InternalError", {}),
    "503": (503, "SlowDown", {}),
    "429": (429, "TooManyRequests", {"Retry-After": "1"}),
    "301": (301, "PermanentRedirect", {}),
    "307": (307, "TemporaryRedirect", {}),
    "403": (403, "AccessDenied", {}),
    "expired": (400, "ExpiredToken", {}),
    "404": (404, "NoSuchKey", {}),
}
_MESSAGES = {"503": "Reduce your rate.", "301": "Not this endpoint.", "expired": "The provided token has expired."}
# What becomes of a whole answer: "corrupt" one bit of it, "short" well-formed but half of it, "cut" the connection
# breaks in the middle, "reset" the connection is reset at once, "hang" nothing comes after half of it, "slow" it
# trickles, "html" a page of some gateway, "empty" nothing, "long" twice as much, "etag" another ETag each time.
# Of a request that brings something: "refused" it is not passed on, with a 503; "lie" it is not, with a 200.
_WRITING = ("refused", "lie")
FAULTS = (*ANSWERS, *_WRITING, "corrupt", "short", "cut", "reset", "hang", "slow", "html", "empty", "long", "etag")


@dataclass
class Faults:
    """Rules of a proxy: each does something to so many of the answers for paths that contain a string.

    Attributes:
        rules: (part of the path, one of `FAULTS`, how often).
        methods: of the requests that rules apply to.
        requests: method and path of each, such as ``GET /bucket/a.tar``.
    """

    url: str = ""
    rules: list[tuple[str, str, int]] = field(default_factory=list)
    methods: tuple[str, ...] = ("GET",)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, path: str) -> str | None:
        with self.lock:
            self.requests.append(f"{method} {path}")
            for i, (part, fault, count) in enumerate(self.rules):
                meant = method in self.methods and (fault not in _WRITING or method in ("PUT", "POST"))
                if meant and part in path and count > 0:
                    self.rules[i] = (part, fault, count - 1)
                    return fault
        return None

    def count(self, part: str) -> int:
        return sum(part in path for path in self.requests)


def _changed(body: bytes, fault: str | None) -> bytes:
    if fault == "corrupt" and body:
        place = min(1000, len(body) - 1)
        return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
    if fault == "short":
        return body[: len(body) // 2]
    return {"empty": b"", "long": body + body, "html": b"<html>Sign in to the network</html>"}.get(fault or "", body)


def _handler(faults: Faults, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            fault = faults.take(self.command, self.path)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            upstream = HTTPConnection("127.0.0.1", port)
            length = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(length)
            if fault in ("refused", "lie"):
                status, code = (200, "OK") if fault == "lie" else (503, "SlowDown")
                text = b"" if fault == "lie" else f"<Error><Code>{code}</Code></Error>".encode()
                self.send_response(status)
                self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
                return
            upstream.request(self.command, self.path, data, dict(self.headers))
            response = upstream.getresponse()
            status, body = response.status, response.read()
            upstream.close()
            extra: dict[str, str] = {}
            if fault in ANSWERS:
                status, code, extra = ANSWERS[fault]
                message = _MESSAGES.get(fault, "No.")
                body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
                if status == 307:
                    extra = {"Location": f"http://127.0.0.1:{port}{self.path}"}
            body = _changed(body, fault)
            if fault == "etag":
                extra = {"ETag": f'"{time.monotonic_ns():032x}"'}
            self.send_response(status)
            for name, value in response.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "etag"):
                    self.send_header(name, value)
            for name, value in extra.items():
                self.send_header(name, value)
            head = self.command == "HEAD"
            said = response.getheader("Content-Length", "0") if head and fault not in ANSWERS else str(len(body))
            self.send_header("Content-Length", said)
            self.end_headers()
            if head:
                return
            if fault in ("cut", "hang"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                if fault == "hang":
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

    return Handler


@contextmanager
def fault_proxy(port: int) -> Iterator[Faults]:
    """Run a proxy in front of the store at a port of this machine."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # clients hang up on purpose here

    faults = Faults()
    server = Server(("127.0.0.1", 0), _handler(faults, port))
    faults.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
