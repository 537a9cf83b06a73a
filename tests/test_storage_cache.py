"""The cache of whole shards: checked, bounded, shared, and indifferent to killed processes."""

import email.utils
import errno
import hashlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from walloc_data.errors import CorruptShardError, MissingExtraError, StorageError
from walloc_data.format import ShardRecord
from walloc_data.storage import ShardCache, ShardFile, Store, file_lock
from walloc_data.storage.retry import is_retryable, retry_after_s


def shard(root: Path, number: int, num_bytes: int = 1000) -> ShardRecord:
    data = hashlib.shake_256(str(number).encode()).digest(num_bytes)
    name = f"data/train-{number:05d}.tar"
    (root / "data").mkdir(exist_ok=True, parents=True)
    (root / name).write_bytes(data)
    return ShardRecord(name, 1, num_bytes, hashlib.sha256(data).hexdigest())


def test_a_shard_is_fetched_once_and_mapped(tmp_path: Path) -> None:
    store, cache = Store(tmp_path / "data set"), ShardCache(tmp_path / "cache")
    record = shard(tmp_path / "data set", 0)
    expected = (tmp_path / "data set" / record.name).read_bytes()
    assert cache.open(store, record).read(0, 1000) == expected
    (tmp_path / "data set" / record.name).unlink()
    assert cache.open(store, record).read(0, 1000) == expected


def test_a_corrupt_shard_is_refetched_then_named(tmp_path: Path) -> None:
    record = shard(tmp_path, 0)

    class Flaky(Store):
        fetched = 0

        def download_into(self, path: str, target: Path, *, max_bytes: int | None = None) -> None:
            super().download_into(path, target, max_bytes=max_bytes)
            self.fetched += 1
            if self.fetched <= self.bad:
                data = bytearray(target.read_bytes())
                data[500] ^= 1
                target.write_bytes(data)

        bad = 2

    store = Flaky(tmp_path)
    assert len(ShardCache(tmp_path / "cache").open(store, record)) == 1000
    assert store.fetched == 3
    store.fetched, store.bad = 0, 3
    with pytest.raises(
        CorruptShardError, match=r"train-00000.tar: its sha256 is \w+, but the manifest says \w+, 3 times"
    ):
        ShardCache(tmp_path / "other").open(store, record)
    assert not list((tmp_path / "other" / "shards").iterdir())


def test_the_longest_unused_shard_makes_room(tmp_path: Path) -> None:
    store, cache = Store(tmp_path), ShardCache(tmp_path / "cache", max_bytes=3000)
    records = [shard(tmp_path, number) for number in range(5)]
    for number in (0, 1, 2):
        cache.open(store, records[number])
        os.utime(cache.path(records[number]), (number, number))
    cache.open(store, records[0])  # used again
    cache.open(store, records[3])
    assert [cache.path(record).exists() for record in records] == [True, False, True, True, False]
    with pytest.raises(StorageError, match=r"2000 bytes do not fit a cache of max_cache_bytes=1000: raise it"):
        ShardCache(tmp_path / "small", max_bytes=1000).open(store, shard(tmp_path, 9, 2000))


def test_an_open_shard_stays_readable_when_it_is_evicted(tmp_path: Path) -> None:
    store, cache = Store(tmp_path), ShardCache(tmp_path / "cache", max_bytes=1000)
    first, second = shard(tmp_path, 0), shard(tmp_path, 1)
    opened = cache.open(store, first)
    cache.open(store, second)
    assert not cache.path(first).exists()
    assert opened.read(0, 1000) == (tmp_path / first.name).read_bytes()


def test_a_shard_that_was_tampered_with_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    store, cache = Store(tmp_path), ShardCache(tmp_path / "cache")
    record = shard(tmp_path, 0)
    cache.fetch(store, record)
    cache.path(record).write_bytes(b"cut short")
    assert cache.open(store, record).read(0, 1000) == (tmp_path / record.name).read_bytes()


def test_threads_that_want_one_shard_fetch_it_once(tmp_path: Path) -> None:
    record = shard(tmp_path, 0)
    fetched = []

    class Slow(Store):
        def download_into(self, path: str, target: Path, *, max_bytes: int | None = None) -> None:
            fetched.append(path)
            time.sleep(0.05)
            super().download_into(path, target, max_bytes=max_bytes)

    cache = ShardCache(tmp_path / "cache")
    threads = [threading.Thread(target=cache.open, args=(Slow(tmp_path), record)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


@pytest.mark.parametrize("shards_that_fit", [1, 2])
def test_shards_that_are_fetched_at_once_keep_to_the_limit(tmp_path: Path, shards_that_fit: int) -> None:
    records = [shard(tmp_path, number) for number in range(4)]
    cache = ShardCache(tmp_path / "cache", max_bytes=shards_that_fit * 1000 + 300)
    most = 0
    lock = threading.Lock()

    class Slow(Store):
        def download_into(self, path: str, target: Path, *, max_bytes: int | None = None) -> None:
            nonlocal most
            time.sleep(0.1)
            with lock:  # what is reserved or there; one listing may see a file that goes and the one that comes
                listings = [len(list((tmp_path / "cache" / "shards").iterdir())) for _ in range(3)]
                most = max(most, 1000 * min(listings))
            super().download_into(path, target, max_bytes=max_bytes)

    views: list[bytes] = []
    threads = [
        threading.Thread(target=lambda record=record: views.append(cache.open(Slow(tmp_path), record).read(0, 1000)))
        for record in records
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(views) == sorted((tmp_path / record.name).read_bytes() for record in records)
    assert 1000 <= most <= shards_that_fit * 1000
    assert len(list((tmp_path / "cache" / "shards").glob("*.tar"))) == shards_that_fit


def test_a_download_that_ends_while_another_makes_room_is_counted(tmp_path: Path) -> None:
    first, second = shard(tmp_path, 0), shard(tmp_path, 1)
    started, may_end = threading.Event(), threading.Event()

    class Slow(Store):
        def download_into(self, path: str, target: Path, *, max_bytes: int | None = None) -> None:
            if path == first.name:
                started.set()
                assert may_end.wait(timeout=30)
            super().download_into(path, target, max_bytes=max_bytes)

    class Watched(ShardCache):
        def _reserved(self, partial: Path, match: re.Match[str], *, mine: bool) -> int:
            may_end.set()  # the other download may get its final name now, after the folder was listed
            until = time.monotonic() + 0.5
            while time.monotonic() < until and not self.path(first).exists():
                time.sleep(0.01)
            return super()._reserved(partial, match, mine=mine)

    cache = Watched(tmp_path / "cache", max_bytes=1300)
    other = threading.Thread(target=cache.open, args=(Slow(tmp_path), first))
    other.start()
    assert started.wait(timeout=30)
    cache.open(Slow(tmp_path), second)
    other.join(timeout=30)
    assert [path.name for path in (tmp_path / "cache" / "shards").glob("*.tar")] == [cache.path(second).name]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    record = shard(tmp_path, 0)

    class Full(Store):
        def download_into(self, path: str, target: Path, *, max_bytes: int | None = None) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        StorageError, match=r"no space for .*train-00000.tar \(1000 bytes\) \(\d+ bytes are free on the disk\)"
    ):
        ShardCache(tmp_path / "cache").open(Full(tmp_path), record)
    assert not list((tmp_path / "cache" / "shards").iterdir())


def test_a_fetch_left_by_a_killed_process_neither_blocks_nor_counts(tmp_path: Path) -> None:
    store, cache = Store(tmp_path), ShardCache(tmp_path / "cache", max_bytes=2500)
    left, other = shard(tmp_path, 0), shard(tmp_path, 1, 2000)
    cache.fetch(store, left)
    cache.path(left).rename(cache.path(left).with_name(f"{left.sha256}.1000.partial"))
    cache.fetch(store, other)  # 1000 + 2000 would not fit
    assert [path.name for path in (tmp_path / "cache" / "shards").iterdir()] == [f"{other.sha256}.tar"]


def test_a_lock_excludes_others_and_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from walloc_data.storage import file_lock\n"
        "with file_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with file_lock(path, wait=False) as held:
            assert not held
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with file_lock(path, wait=False) as held:
        assert held
        with file_lock(path, wait=False) as again:
            assert not again


def test_a_lock_is_free_again_though_a_process_was_forked_under_it(tmp_path: Path) -> None:
    """As the workers of one loader are, while another loader fetches."""
    with file_lock(tmp_path / "lock"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
        child.start()
    with file_lock(tmp_path / "lock", wait=False) as held:
        assert held
    child.kill()
    child.join()


def test_a_file_of_another_length_is_not_mapped(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(CorruptShardError, match=r"x.tar: 5 bytes, but its record says 6: it was changed or truncated"):
        ShardFile(tmp_path / "file", num_bytes=6, context="x.tar")


class _Answer(Exception):  # noqa: N818
    def __init__(self, status: int) -> None:
        self.status = status


def _answer_of_s3(number: int, code: str, status: int) -> OSError:
    """Return s3fs's error for an answer: an OSError whose cause is botocore's error."""
    cause = Exception(code)
    cause.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
    error = OSError(number, code)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError("bad gateway"), True),
        (_Answer(503), True),
        (_Answer(429), True),
        (_Answer(403), False),
        (_Answer(404), False),
        (FileNotFoundError("NoSuchBucket"), False),
        (PermissionError("403"), False),
        (ValueError("no such region"), False),
        (type("NoCredentialsError", (Exception,), {})(), False),
        (OSError(errno.ENOSPC, "disk full"), False),
        (_answer_of_s3(errno.EINVAL, "InvalidBucketName", 400), False),
        (_answer_of_s3(errno.EINVAL, "ExpiredToken", 400), False),
        (_answer_of_s3(errno.ENOENT, "PermanentRedirect", 301), False),
        (_answer_of_s3(errno.EIO, "NotImplemented", 501), False),
        (_answer_of_s3(errno.EINVAL, "RequestTimeout", 400), True),
        (_answer_of_s3(errno.EINVAL, "BadDigest", 400), True),
        (_answer_of_s3(errno.EBUSY, "SlowDown", 503), True),
        (_answer_of_s3(errno.EREMOTEIO, "InternalError", 500), True),
    ],
    ids=lambda value: value if isinstance(value, bool) else repr(value)[:30],
)
def test_only_errors_that_may_pass_are_asked_again(error: Exception, again: bool) -> None:
    assert is_retryable(error) is again


def test_retries_stop_and_name_the_last_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(seconds))
    slept: list[float] = []
    store = Store("memory://x", max_attempts=4)

    def failing(*_: object, **__: object) -> bytes:
        raise ConnectionResetError("by peer")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", failing)
    with pytest.raises(
        StorageError, match=r"reading memory://x/a: failed 4 times in 0 s, last with ConnectionResetError: by peer"
    ):
        store.read_bytes("a", max_bytes=9)
    assert len(slept) == 3
    assert slept[0] < slept[1] < slept[2]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0", 0.0), ("a date in 100 s", 100.0), ("soon", None), ("²", None)],
)
def test_a_server_says_how_long_to_wait(header: str, seconds: float | None) -> None:
    if header == "a date in 100 s":
        header = email.utils.formatdate(time.time() + 100, usegmt=True)
    error = OSError("throttled")
    error.__cause__ = Exception()
    about = {"HTTPStatusCode": 503, "HTTPHeaders": {"retry-after": header}}
    error.__cause__.response = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": about}  # type: ignore[attr-defined]
    found = retry_after_s(error)
    assert found == seconds or (seconds is not None and found is not None and seconds - 60 < found <= seconds)


def _use_in_child(store: Store, queue: "multiprocessing.Queue[object]") -> None:
    queue.put(store.read_bytes("a", max_bytes=10))


def test_a_store_works_on_in_a_forked_process_without_touching_its_parents_client(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    store = Store(f"local://{tmp_path}")  # fsspec's own protocol for files: as remote as any to us
    assert store.read_bytes("a", max_bytes=10) == b"abc"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_use_in_child, args=(store, queue))
    child.start()
    assert queue.get(timeout=20) == b"abc"
    child.join()
    assert child.exitcode == 0
    queue.close()


def test_small_files_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    for store in (Store(tmp_path), Store(f"local://{tmp_path}")):
        assert store.read_bytes("a", max_bytes=10) == b"0123456789"
        with pytest.raises(StorageError, match="at most"):
            store.read_bytes("a", max_bytes=9)


def test_urls_carry_no_credentials_and_unknown_stores_are_named() -> None:
    with pytest.raises(StorageError, match="credentials do not belong in a URL"):
        Store("s3://key:secret@bucket/x")
    with pytest.raises(StorageError, match="no file system is known for carrier-pigeon://"):
        Store("carrier-pigeon://x").exists("a")
    if not _installed("gcsfs"):
        with pytest.raises(MissingExtraError, match=r"gs:// storage needs the package 'gcsfs'.*walloc_data\[gs\]"):
            Store("gs://bucket/x").exists("a")


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_a_web_server_is_a_store_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        store = Store(f"http://127.0.0.1:{server.server_port}")
        assert store.read_bytes("a", max_bytes=3) == b"abc"
        assert store.num_bytes("a") == 3
        store.download("a", tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == b"abc"
        with pytest.raises(StorageError, match=r"reading http://.*/nothing: FileNotFoundError"):
            store.read_bytes("nothing", max_bytes=3)
        with pytest.raises(StorageError, match=r"fetching http://.*/nothing: FileNotFoundError"):
            store.download("nothing", tmp_path / "b", max_bytes=3)  # the page of the error is longer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass
