"""Streaming from the Hugging Face Hub: the real `HfFileSystem`, against a stand-in of the Hub's HTTP API."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.errors import StorageError

REPOSITORY = "/api/datasets/me/latents"


@pytest.fixture
def hub(hundred: Path) -> Iterator[str]:
    """Serves `hundred` as the data set repository me/latents, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if "/me/latents/resolve/main/" in path:
                body = (hundred / path.split("/resolve/main/")[1]).read_bytes()
                wanted = self.headers.get("Range")
                if wanted is None:
                    self.reply(body, headers={"ETag": '"0"'})
                else:
                    first, last = map(int, wanted.removeprefix("bytes=").split("-"))
                    part = body[first : last + 1]
                    span = f"bytes {first}-{first + len(part) - 1}/{len(body)}"
                    self.reply(part, 206, {"ETag": '"0"', "Content-Range": span})
            elif path.startswith(f"{REPOSITORY}/tree/main"):
                folder = hundred / path.removeprefix(f"{REPOSITORY}/tree/main").strip("/")
                entries = [
                    {
                        "type": "directory" if entry.is_dir() else "file",
                        "path": str(entry.relative_to(hundred)),
                        "size": entry.stat().st_size,
                        "oid": "0" * 40,
                    }
                    for entry in sorted(folder.iterdir())
                ]
                self.reply(json.dumps(entries).encode())
            elif path == REPOSITORY:
                self.reply(json.dumps({"id": "me/latents", "sha": "0" * 40, "siblings": []}).encode())
            else:
                self.reply(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

        do_GET = do_HEAD = answer  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_data_set_streams_from_the_hub(hub: str, hundred: Path, ids_of: Callable[[torch.Tensor], list[int]]) -> None:
    options = {"endpoint": hub, "token": False}
    remote = LatentDataset("hf://datasets/me/latents", shuffle=True, window_shards=2, storage_options=options)
    local = LatentDataset(hundred, shuffle=True, window_shards=2)
    batches = [ids_of(latents) for latents, _ in remote.loader(batch_size=8, num_workers=1)]
    assert batches == [ids_of(latents) for latents, _ in local.loader(batch_size=8)]


def test_a_repository_that_is_not_there_is_named_at_once(hub: str) -> None:
    with pytest.raises(
        StorageError, match=r"^hf://datasets/me/nothing: no walloc.json there \(.*not found.*Check the URL$"
    ):
        LatentDataset("hf://datasets/me/nothing", storage_options={"endpoint": hub, "token": False})
