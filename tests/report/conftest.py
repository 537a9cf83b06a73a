"""A data set to look at, and a stand-in of the Hub's HTTP API to upload to."""

import base64
import hashlib
import io
import json
import shutil
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
import torch

from walloc_data.format import (
    INDEX_COLUMNS,
    ChannelStatistics,
    EncodeSettings,
    Manifest,
    ShardRecord,
    SplitRecord,
    index_name,
    sample_key,
    shard_name,
)

ROOT = Path(__file__).resolve().parents[2]
CODEC_FILES = {
    "klt-16x": ("codec.json", "model.safetensors"),
    "rgb-16x-v1": ("codec.json", "model.safetensors", "decoder-2.safetensors"),
}


def _write_small_dataset(root: Path, *, num_shards: int = 3, seed: int = 0, codec: str = "klt-16x") -> Manifest:
    """A whole data set of one split: two latents of noise in each shard, which no picture gave."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from walloc_data.codec import codec_folder, load_codec
    from walloc_data.latents import encode_webp, pack

    spec = load_codec(codec, decoder=False)[1].spec
    rng = np.random.default_rng(seed)
    records, rows = [], []
    (root / "data").mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        path = root / shard_name("train", shard)
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for source_index in (2 * shard, 2 * shard + 1):
                latent = torch.from_numpy(rng.integers(-20, 20, (1, 12, 4, 4), dtype=np.int8))
                data, key = encode_webp(pack(latent)[0]), sample_key(source_index)
                for name, member in ((f"{key}.webp", data), (f"{key}.json", b"{}")):
                    header = tarfile.TarInfo(name)
                    header.size = len(member)
                    tar.addfile(header, io.BytesIO(member))
                    if member is data:
                        offset = tar.offset - -(-len(data) // 512) * 512
                rows.append([key, shard, offset, len(data), None, 32, 32, source_index, zlib.crc32(data)])
        data = path.read_bytes()
        records.append(ShardRecord(shard_name("train", shard), 2, len(data), hashlib.sha256(data).hexdigest()))
    kinds = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64(), "uint32": pa.uint32()}
    columns = zip(*rows, strict=True)
    (root / "index").mkdir(exist_ok=True)
    pq.write_table(
        pa.table({name: pa.array(v, kinds[kind]) for (name, kind, _), v in zip(INDEX_COLUMNS, columns, strict=True)}),
        root / index_name("train"),
    )
    files = {
        **{f"codec/{name}": (codec_folder(codec) / name).read_bytes() for name in CODEC_FILES[codec]},
        "_info.json": b"{}",
        "README.md": b"---\nlicense: other\n---\n# A data set\n",
        ".walloc/lock": b"",
        ".walloc/train/00000.json": b"{}",
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    split = SplitRecord(
        {"kind": "folder"}, 2 * num_shards, 0, tuple(records), (12, 4, 4), False, ChannelStatistics.zero(spec)
    )
    manifest = Manifest(spec, EncodeSettings(samples_per_shard=2), None, {"train": split}, {"walloc_data": "0"})
    (root / "walloc.json").write_text(manifest.to_json())
    return manifest


@pytest.fixture(scope="session")
def write_small_dataset() -> Callable[..., Manifest]:
    return _write_small_dataset


@dataclass
class HubStandIn:
    """The part of the Hub's HTTP API that an upload uses, on loopback, with everything in memory.

    It speaks the large-file protocol of Git LFS; the Hub's newer one (Xet) is switched off in the tests.
    """

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)  # {"repo", "summary", "added", "deleted"}
    large: dict[str, bytes] = field(default_factory=dict)  # by sha256
    puts: int = 0
    refuse_puts_after: int | None = None
    status: int | None = None  # answer everything with this
    faults: list[tuple[str, int, str]] = field(default_factory=list)  # once each: (part of the path, status, wait)
    lost: list[str] = field(default_factory=list)  # once each: done, but the answer is 504
    refused: int = 0

    def fault(self, path: str) -> tuple[int, str] | None:
        for fault in self.faults:
            if fault[0] in path:
                self.faults.remove(fault)
                self.refused += 1
                return fault[1], fault[2]
        return None

    def is_large(self, path: str) -> bool:
        return path.endswith((".tar", ".parquet", ".safetensors", ".png"))

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
        if self.is_large(path):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry


def _handler(hub: HubStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else self._chunked()
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if hub.status is not None:
                self.reply({"error": "refused"}, hub.status)
                return
            if (fault := hub.fault(self.path)) is not None:
                self.reply({"error": "too many"}, fault[0], {"Retry-After": fault[1]} if fault[1] else {})
                return
            answer = self.route(parts, body)
            if lost := [part for part in hub.lost if part in self.path]:
                hub.lost.remove(lost[0])
                self.reply({"error": "gateway time-out"}, 504)
                return
            self.reply(*answer) if answer is not None else self.reply(
                {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"}
            )

        do_GET = do_POST = do_PUT = do_HEAD = do  # noqa: N815

        def _chunked(self) -> bytes:
            data = b""
            while "chunked" in self.headers.get("Transfer-Encoding", ""):
                size = int(self.rfile.readline(), 16)
                data += self.rfile.read(size)
                self.rfile.readline()
                if not size:
                    break
            return data

        def route(self, parts: list[str], body: bytes) -> tuple[Any, ...] | None:
            match parts:
                case ["api", "repos", "create"]:
                    value = json.loads(body)
                    name = f"{value['organization'] or 'me'}/{value['name']}"
                    if name in hub.repos:
                        return {"error": "exists"}, 409
                    hub.repos[name] = {}
                    return ({"url": f"{hub.url}/datasets/{name}", "name": name},)
                case ["api", "validate-yaml"]:
                    return ({"errors": [], "warnings": []},)
                case ["lfs", oid]:
                    if hub.refuse_puts_after is not None and hub.puts >= hub.refuse_puts_after:
                        return b"full", 400
                    if hashlib.sha256(body).hexdigest() != oid:
                        return b"not what was promised", 400
                    hub.puts += 1
                    hub.large[oid] = body
                    return (b"",)
                case ["datasets", owner, name, "info", "lfs", "objects", "batch"]:
                    objects = []
                    for item in json.loads(body)["objects"]:
                        if item["oid"] not in hub.large:
                            item["actions"] = {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}}
                        objects.append(item)
                    return ({"transfer": "basic", "objects": objects},)
                case ["api", "datasets", owner, name, *rest]:
                    files = hub.repos.get(f"{owner}/{name}")
                    return None if files is None else self.repository(f"{owner}/{name}", files, rest, body)
                case ["datasets", owner, name, "resolve", _, *path]:
                    data = hub.repos.get(f"{owner}/{name}", {}).get("/".join(path))
                    if data is None:
                        return {"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"}
                    etag = hashlib.sha1(data).hexdigest()
                    return data, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": "a" * 40}
            return {"error": f"not spoken here: {parts}"}, 501

        def repository(self, repo: str, files: dict[str, bytes], rest: list[str], body: bytes) -> tuple[Any, ...]:
            match rest:
                case [] | ["revision", _]:
                    return ({"id": repo, "sha": "a" * 40, "private": False, "siblings": []},)
                case ["tree", _]:
                    assert parse_qs(urlsplit(self.path).query)["recursive"] == ["True"] or "true" in self.path
                    return ([hub.entry(path, data) for path, data in sorted(files.items())],)
                case ["preupload", _]:
                    asked = json.loads(body)["files"]
                    return (
                        {
                            "files": [
                                {
                                    "path": item["path"],
                                    "uploadMode": "lfs" if hub.is_large(item["path"]) else "regular",
                                    "shouldIgnore": False,
                                }
                                for item in asked
                            ]
                        },
                    )
                case ["commit", _]:
                    return self.commit(repo, files, body)
            return {"error": f"not spoken here: {rest}"}, 501

        def commit(self, repo: str, files: dict[str, bytes], body: bytes) -> tuple[Any, ...]:
            done: dict[str, Any] = {"repo": repo, "added": [], "deleted": []}
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    done["summary"] = value["summary"]
                elif item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                    done["added"].append(value["path"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                    done["added"].append(value["path"])
                elif value["path"] not in files:
                    return {"error": f"{value['path']} does not exist"}, 400
                else:
                    del files[value["path"]]
                    done["deleted"].append(value["path"])
            hub.commits.append(done)
            return ({"commitUrl": f"{hub.url}/datasets/{repo}/commit/{'b' * 40}", "commitOid": "b" * 40},)

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A Hub on loopback; pass `storage_options={"endpoint": hub.url, "token": "hf_test"}`."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    stand_in = HubStandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stand_in))
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    disable_progress_bars()
    yield stand_in
    enable_progress_bars()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def bucket(make_bucket: Callable[[str], dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """A bucket of a real S3 endpoint (OpenStack Swift) on loopback, and the storage options that reach it."""
    return "s3://report-tests", make_bucket("report-tests")


@pytest.fixture
def kms(swift: Any) -> Iterator[str]:
    """A proxy before the store that gives every object an ETag that says nothing of its content."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            upstream = HTTPConnection("127.0.0.1", swift.port)
            length = int(self.headers.get("Content-Length") or 0)
            upstream.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
            response = upstream.getresponse()
            body = response.read()
            self.send_response(response.status)
            # Parts of an upload must be named by the ETags that the store knows.
            opaque = "partNumber" not in self.path
            for name, value in response.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    hidden = name.lower() == "etag" and opaque
                    self.send_header(name, f'"{hashlib.md5(self.path.encode()).hexdigest()}"' if hidden else value)
            head = self.command == "HEAD"
            self.send_header("Content-Length", response.getheader("Content-Length", "0") if head else str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if head else body)
            upstream.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


HOSTILE_CLASS = '<img src=x onerror="document.title=1">'
HOSTILE_FILE = "<svg onload=alert(1)>.jpg"


@dataclass(frozen=True)
class Encoded:
    """An encoded data set, and what it was made from."""

    out: Path
    source: Path


@pytest.fixture(scope="session")
def imagenette_latents(imagenette_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Ten classes of four photographs and one of three, with hostile names; and three files that are no pictures."""
    from walloc_data import encode_dataset

    root = tmp_path_factory.mktemp("report")
    source = root / "source"
    shutil.copytree(imagenette_folder, source)
    pictures = sorted(source.rglob("*.JPEG"))
    hostile = source / HOSTILE_CLASS
    hostile.mkdir()
    for i, picture in enumerate(pictures[:3]):
        shutil.copy(picture, hostile / f"{i}.JPEG")
    (hostile / HOSTILE_FILE).write_bytes(b"not a picture")
    (hostile / "empty.png").write_bytes(b"")
    (hostile / "cut.jpg").write_bytes(pictures[0].read_bytes()[:2000])
    encode_dataset(source, root / "nette", samples_per_shard=16, size_px=96, progress=False)
    return Encoded(root / "nette", source)


@pytest.fixture(scope="session")
def kodak_latents(kodak: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Three photographs without labels, of two shapes."""
    from PIL import Image

    from walloc_data import encode_dataset

    root = tmp_path_factory.mktemp("report-kodak")
    (root / "source").mkdir()
    for i, path in enumerate(kodak[:3]):
        picture = Image.open(path).resize((192, 128) if i else (128, 192))
        picture.save(root / "source" / path.name)
    encode_dataset(root / "source", root / "kodak", progress=False)
    return Encoded(root / "kodak", root / "source")
