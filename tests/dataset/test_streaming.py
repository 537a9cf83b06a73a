"""Reading over a network that fails: a real S3 endpoint, killed and restarted, and a proxy that injects faults."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.errors import CorruptShardError, FormatError, LoaderError, StorageError
from walloc_data.format import Manifest
from walloc_data.storage import Store, file_lock

pytestmark = [
    pytest.mark.object_store,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]

ROOT = Path(__file__).resolve().parents[2]
PORT = 8190
BUCKET = "reading"

Ids = Callable[[torch.Tensor], list[int]]


class Swift:
    """The real endpoint; can be killed and started again on the same data."""

    def __init__(self, scripts: Path, folder: Path) -> None:
        self.scripts, self.folder = scripts, folder
        self.url = ""

    def start(self) -> None:
        command = ["bash", self.scripts / "up.sh", self.folder, str(PORT)]
        started = subprocess.run(command, capture_output=True, text=True, check=False)
        if started.returncode:
            pytest.fail(f"Swift did not start: {started.stderr}")
        self.url = started.stdout.strip()

    def kill(self) -> None:
        subprocess.run(["bash", self.scripts / "down.sh", self.folder], check=False)


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    where = os.environ.get("WALLOC_DATA_OBJECT_STORE") or ROOT.parent / "shared" / "object-store"
    scripts = Path(where)
    if not (scripts / "up.sh").is_file() or shutil.which("swift-proxy-server") is None:
        pytest.skip("needs OpenStack Swift and the scripts that start it: set WALLOC_DATA_OBJECT_STORE")
    pytest.importorskip("s3fs")
    store = Swift(scripts, tmp_path_factory.mktemp("swift"))
    store.start()
    yield store
    store.kill()


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
def faults(swift: Swift) -> Iterator[Faults]:
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            fault = faults.take(self.path) if self.command == "GET" else None
            upstream = HTTPConnection("127.0.0.1", PORT)
            length = int(self.headers.get("Content-Length") or 0)
            upstream.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
            response = upstream.getresponse()
            status, body = response.status, response.read()
            if fault == "503":
                status, body = 503, b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"
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


@pytest.fixture(autouse=True)
def _credentials(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the ecosystem keeps them: the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test:tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture(scope="module")
def source(swift: Swift, tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Manifest]) -> Path:
    """20 shards of 16 samples on disk."""
    root = tmp_path_factory.mktemp("source")
    make_dataset(root, num_samples=320)
    return root


_numbers = itertools.count()


def _options(url: str) -> dict[str, object]:
    return {"key": "test:tester", "secret": "testing", "endpoint_url": url, "skip_instance_cache": True}


@pytest.fixture(scope="module")
def upload(swift: Swift) -> Callable[[Path], str]:
    """Put a folder into the bucket under a prefix of its own; gives the url."""
    import s3fs

    fs = s3fs.S3FileSystem(**_options(swift.url))
    fs.mkdir(BUCKET)

    def put(folder: Path) -> str:
        prefix = f"{BUCKET}/{next(_numbers)}"
        files = [path for path in folder.rglob("*") if path.is_file()]
        fs.put([str(path) for path in files], [f"{prefix}/{path.relative_to(folder)}" for path in files])
        return f"s3://{prefix}"

    return put


@pytest.fixture(scope="module")
def url(upload: Callable[[Path], str], source: Path) -> str:
    return upload(source)


def _remove(url: str, name: str, endpoint: str) -> None:
    import s3fs

    s3fs.S3FileSystem(**_options(endpoint)).rm_file(f"{url}/{name}")


def _put(url: str, name: str, data: bytes, endpoint: str) -> None:
    import s3fs

    s3fs.S3FileSystem(**_options(endpoint)).pipe_file(f"{url}/{name}", data)


def _ids(loader: object, ids_of: Ids) -> list[list[int]]:
    return [ids_of(batch[0]) for batch in loader]  # type: ignore[attr-defined]


@pytest.mark.parametrize("cache", ["shards", "array"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bucket_reads_like_a_folder(url: str, source: Path, ids_of: Ids, cache: str, num_workers: int) -> None:
    remote = LatentDataset(url, shuffle=True, window_shards=4, cache=cache).loader(
        batch_size=8, num_workers=num_workers
    )
    local = LatentDataset(source, shuffle=True, window_shards=4).loader(batch_size=8)
    assert remote.state_dict() == local.state_dict()
    for _ in range(2):
        assert _ids(remote, ids_of) == _ids(local, ids_of)


def test_the_first_batch_needs_one_shard(url: str, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("data/train", "slow", 10**6)]
    dataset = LatentDataset(url, shuffle=True)
    monkeypatch.setattr(LatentDataset, "shards_ahead", 0)
    next(iter(dataset.loader(batch_size=16)))
    assert faults.count("data/train") == 1


def test_shards_are_fetched_ahead_and_once(
    url: str, faults: Faults, monkeypatch: pytest.MonkeyPatch, ids_of: Ids
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    loader = LatentDataset(url, shuffle=True, window_shards=4).loader(batch_size=8, num_workers=2)
    iterator = iter(loader)
    first = ids_of(next(iterator)[0])
    deadline = time.monotonic() + 20
    while faults.count("data/train") < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert faults.count("data/train") >= 5  # though one batch was asked for
    rest = [ids_of(batch[0]) for batch in iterator]
    assert sorted(itertools.chain(first, *rest)) == list(range(320))
    assert len(list(loader)) == 40  # the second epoch is in the cache
    assert faults.count("data/train") == 20


@pytest.mark.parametrize("fault", ["503", "cut", "short", "corrupt", "slow"])
def test_faults_on_the_way_lose_nothing(
    url: str, faults: Faults, monkeypatch: pytest.MonkeyPatch, ids_of: Ids, fault: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("train-00003", fault, 2), ("train-00011", fault, 1), ("index/", fault, fault in ("503", "cut"))]
    loader = LatentDataset(url, shuffle=True, window_shards=4).loader(batch_size=8, num_workers=1)
    assert sorted(itertools.chain(*_ids(loader, ids_of))) == list(range(320))
    if fault != "slow":
        assert faults.count("train-00003") == 3
        assert faults.count("train-00011") == 2


def test_a_response_that_hangs_is_asked_for_again(
    url: str, faults: Faults, ids_of: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("train-00000", "hang", 1)]
    options = {"config_kwargs": {"read_timeout": 1}}
    loader = LatentDataset(url, storage_options=options).loader(batch_size=16)
    assert list(itertools.chain(*_ids(loader, ids_of))) == list(range(320))
    assert faults.count("train-00000") == 2


def test_a_store_that_is_killed_and_restarted_costs_only_time(url: str, swift: Swift, ids_of: Ids) -> None:
    dataset = LatentDataset(url, shuffle=True, window_shards=2)
    expected = _ids(LatentDataset(url, shuffle=True, window_shards=2, cache="array").loader(batch_size=8), ids_of)
    loader = LatentDataset(url, shuffle=True, window_shards=2, cache_folder=dataset._reader.cache.folder / "other")
    iterator = iter(loader.loader(batch_size=8, num_workers=1))
    got = [ids_of(next(iterator)[0]) for _ in range(2)]
    swift.kill()
    restart = threading.Timer(2.0, swift.start)
    restart.start()
    got += [ids_of(batch[0]) for batch in iterator]
    restart.join()
    assert got == expected


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_shard_is_named_after_three_tries(
    url: str, faults: Faults, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("train-00002", "corrupt", 10**6)]
    dataset = LatentDataset(url)
    monkeypatch.setattr(LatentDataset, "shards_ahead", 0)
    with pytest.raises(CorruptShardError, match=r"train-00002.tar: sha256 \w+ where the manifest says \w+, 3 times"):
        list(dataset.loader(batch_size=16, num_workers=num_workers))
    assert faults.count("train-00002") == 3


def test_a_missing_shard_and_a_missing_bucket_fail_at_once(
    source: Path, upload: Callable[[Path], str], swift: Swift, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(source)
    _remove(url, "data/train-00004.tar", swift.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    dataset = LatentDataset(url)
    monkeypatch.setattr(LatentDataset, "shards_ahead", 0)
    with pytest.raises(StorageError, match=r"fetching s3://.*train-00004.tar: FileNotFoundError"):
        list(dataset.loader(batch_size=16))
    assert faults.count("train-00004") <= 2  # never eight times
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x/walloc.json: FileNotFoundError: .*bucket"):
        LatentDataset("s3://no-such-bucket/x")


def test_wrong_credentials_fail_at_once_and_show_no_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tell-nobody")
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"walloc\.json: PermissionError") as caught:
        LatentDataset(url)
    assert time.monotonic() - started < 5
    assert "tell-nobody" not in str(caught.value)
    store = Store(url, storage_options={"secret": "tell-nobody"})
    assert "tell-nobody" not in repr(store)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match=r"walloc\.json: "):
        LatentDataset(url)


def test_a_shard_that_was_replaced_is_never_read(
    source: Path, upload: Callable[[Path], str], swift: Swift, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(source)
    dataset = LatentDataset(url)
    monkeypatch.setattr(LatentDataset, "shards_ahead", 0)
    other = (source / "data" / "train-00001.tar").read_bytes()
    _put(url, "data/train-00000.tar", other, swift.url)
    with pytest.raises(CorruptShardError, match=r"train-00000.tar: .* 3 times. The shard was damaged or replaced"):
        dataset[0]


def test_a_cache_too_small_for_the_data_evicts_and_refetches(
    url: str, source: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ids_of: Ids
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    largest = max(path.stat().st_size for path in (source / "data").iterdir())
    limit = 6 * largest
    dataset = LatentDataset(url, shuffle=True, window_shards=2, max_cache_bytes=limit, cache_folder=tmp_path / "small")
    loader = dataset.loader(batch_size=8, num_workers=2)
    most = 0
    for _ in range(2):
        seen = []
        for batch in loader:
            seen += ids_of(batch[0])
            with file_lock(tmp_path / "small" / "locks" / "room.lock"):  # nothing comes or goes while we count
                shards = list((tmp_path / "small" / "shards").glob("*.tar"))
                most = max(most, sum(path.stat().st_size for path in shards))
        assert sorted(seen) == list(range(320))
    assert most <= limit
    assert faults.count("data/train") > 30  # two epochs of 20 shards, hardly any of which stayed
    with pytest.raises(LoaderError, match=r"windows of 2 shards needs \d+ bytes .* raise it, or lower window_shards"):
        LatentDataset(url, shuffle=True, window_shards=2, max_cache_bytes=2 * largest)
    with pytest.raises(StorageError, match="do not fit a cache of max_cache_bytes=100"):
        LatentDataset(url, max_cache_bytes=100)[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_full_disk_is_one_clear_error(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        dataset = LatentDataset(url, cache_folder=disk)
        monkeypatch.setattr(LatentDataset, "shards_ahead", 0)
        with pytest.raises(
            StorageError, match=r"no room for s3://.*set cache_folder to another disk, or lower max_cache"
        ):
            list(dataset.loader(batch_size=16))
        assert not [path for path in (disk / "shards").iterdir() if path.suffix == ".partial"]
        array = LatentDataset(url, cache_folder=disk, cache="array", max_cache_bytes=60_000)
        with pytest.raises(StorageError, match=r"cannot keep decoded latents there|no room for"):
            list(array.loader(batch_size=16))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


TRAINER = """
import json, sys
from walloc_data import LatentDataset
url, folder, limit, log = sys.argv[1:]
loader = LatentDataset(url, shuffle=True, window_shards=2, cache_folder=folder, max_cache_bytes=int(limit)).loader(
    batch_size=8, num_workers=1
)
ids = []
for _ in range(2):
    for latents, _ in loader:
        ids += ((latents[:, 0, 0, 0].int() & 255) + 256 * latents[:, 0, 0, 1].int()).tolist()
open(log, "w").write(json.dumps(ids))
"""


def test_two_trainers_share_one_cache(
    url: str, source: Path, faults: Faults, tmp_path: Path, ids_of: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    roomy, largest = 10**9, max(path.stat().st_size for path in (source / "data").iterdir())
    expected = _ids(LatentDataset(source, shuffle=True, window_shards=2).loader(batch_size=8), ids_of)
    for limit in (roomy, 7 * largest):
        folder = tmp_path / f"cache-{limit}"
        before = faults.count("data/train")

        def train(name: str, folder: Path = folder, limit: int = limit) -> list[int]:
            log = tmp_path / name
            command = [sys.executable, str(script), url, str(folder), str(limit), str(log)]
            subprocess.run(command, check=True, timeout=100)
            return json.loads(log.read_text())

        with ThreadPoolExecutor(2) as executor:
            first, second = executor.map(train, ("one", "two"))
        assert first == second
        assert first[:320] == list(itertools.chain(*expected))
        assert sorted(first[320:]) == list(range(320))
        if limit == roomy:
            assert faults.count("data/train") - before == 20  # each shard once for both
            assert not list((folder / "shards").glob("*.partial"))


def test_a_fetcher_that_is_killed_blocks_nobody(
    url: str, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids_of: Ids
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("train-00000", "hang", 1)]
    code = f"from walloc_data import LatentDataset; LatentDataset({url!r}, cache_folder={str(tmp_path)!r})[0]"
    fetcher = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not list((tmp_path / "shards").glob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.02)
    fetcher.kill()
    fetcher.wait()
    assert list((tmp_path / "shards").glob("*.partial"))
    loader = LatentDataset(url, cache_folder=tmp_path).loader(batch_size=16)
    assert list(itertools.chain(*_ids(loader, ids_of))) == list(range(320))
    assert not list((tmp_path / "shards").glob("*.partial"))


def test_an_index_that_is_not_the_manifests_is_refused(
    source: Path, upload: Callable[[Path], str], swift: Swift, hundred: Path
) -> None:
    url = upload(source)
    _put(url, "index/train.parquet", (hundred / "index" / "train.parquet").read_bytes(), swift.url)
    with pytest.raises(FormatError, match=r"index/train.parquet: 100 rows; the manifest says 320"):
        LatentDataset(url)
    _put(url, "index/train.parquet", b"PAR1 nothing of the kind", swift.url)
    with pytest.raises(FormatError, match=r"index/train.parquet: not a readable index"):
        LatentDataset(url)
