"""Caches and conversions where locks, rights or whole modules are missing."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from walloc_data import LatentDataset
from walloc_data.errors import StorageError
from walloc_data.format import Manifest
from walloc_data.storage import ShardCache, Store, default_cache_folder, file_lock, lock_path, read_manifest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users reach: pytest's own is private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def another_user() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")


@needs_root
@pytest.mark.parametrize("cache", ["shards", "array"])
def test_a_second_user_reads_a_cache_that_the_first_has_filled(
    make_dataset: Callable[..., Manifest], open_folder: Path, cache: str
) -> None:
    make_dataset(open_folder / "data set")
    url = f"local://{open_folder}/data set"  # fsspec's own protocol for files: as remote as any to us

    def sums() -> list[float]:
        dataset = LatentDataset(url, cache=cache, cache_folder=open_folder / "cache")  # type: ignore[arg-type]
        return [float(latents.float().sum()) for latents, _ in dataset.loader(batch_size=100)]

    first = sums()
    (open_folder / "cache").chmod(0o755)
    with another_user():
        assert not os.access(open_folder / "cache" / "locks", os.W_OK, effective_ids=True)
        assert sums() == first


@needs_root
@pytest.mark.parametrize("cache", ["shards", "array"])
def test_a_cache_that_may_not_be_written_names_the_remedy(
    make_dataset: Callable[..., Manifest], open_folder: Path, cache: str
) -> None:
    make_dataset(open_folder / "data set")
    (open_folder / "cache" / "index").mkdir(parents=True)
    remedy = r"cache.*: cannot store {} \(Permission denied: .*\): set cache_folder, or XDG_CACHE_HOME"
    url = f"local://{open_folder}/data set"
    with another_user(), pytest.raises(StorageError, match=remedy.format("the index of local://.*data set")):
        LatentDataset(url, cache_folder=open_folder / "cache")
    dataset = LatentDataset(url, cache=cache, cache_folder=open_folder / "cache")  # type: ignore[arg-type]
    what = {"shards": r".*train-00000.tar \(\d+ bytes\)", "array": r"decoded latents \(\d+ bytes in all.*\)"}
    with another_user(), pytest.raises(StorageError, match=remedy.format(what[cache])):
        dataset[0]


@needs_root
def test_a_lock_file_of_another_user_is_locked_all_the_same(open_folder: Path) -> None:
    (open_folder / "shared").mkdir()
    (open_folder / "shared").chmod(0o1777)
    lock = open_folder / "shared" / "lock"
    with file_lock(lock), another_user(), file_lock(lock, wait=False) as taken:
        assert not taken
    with another_user(), file_lock(lock, wait=False) as taken:
        assert taken


def test_no_home_is_named(
    make_dataset: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_dataset(tmp_path / "one", num_samples=4)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_bytes(b"")
    record = read_manifest(Store(tmp_path / "one")).splits["train"]
    with pytest.raises(StorageError, match=r"cannot store .*Not a directory.*set cache_folder, or XDG_CACHE_HOME"):
        ShardCache().fetch(Store(f"local://{tmp_path}/one"), record.shards[0])
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-has-this-name/cache")
    with pytest.raises(StorageError, match=r"no home folder for the cache .*: set XDG_CACHE_HOME, or cache_folder"):
        default_cache_folder()


@pytest.mark.parametrize("cache", ["shards", "array"])
def test_a_cache_without_file_locks_works_and_says_so_once(
    make_dataset: Callable[..., Manifest],
    no_flock: Path,
    tmp_path: Path,
    cache: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_dataset(tmp_path / "data set", num_samples=40)
    dataset = LatentDataset(f"local://{tmp_path}/data set", cache=cache, cache_folder=no_flock)  # type: ignore[arg-type]
    assert sum(len(labels) for _, labels in dataset.loader(batch_size=16, num_workers=2)) == 40
    assert caplog.text.count("index: this file system has no file locks; locks are in") == 1


def test_locks_without_flock_still_exclude_on_this_machine(no_flock: Path) -> None:
    with file_lock(no_flock / "lock") as held:
        assert held is not None
        assert not held.beside
        with file_lock(no_flock / "lock", wait=False) as again, file_lock(no_flock / "other", wait=False) as other:
            assert again is None
            assert other is not None
    with file_lock(no_flock / "lock", wait=False) as again:
        assert again is not None


def test_a_temporary_folder_of_somebody_else_is_refused(
    no_flock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"walloc_data-{os.getuid()}").symlink_to(no_flock)
    with pytest.raises(StorageError, match=r"belongs to another user: remove it, or set TMPDIR"):
        lock_path(no_flock / "lock")


def test_a_machine_without_locks_is_told_where_they_may_lie(no_flock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(no_flock))
    with pytest.raises(
        StorageError, match=r"lock: neither this file system nor that of .* has file locks .*: set TMPDIR"
    ):
        lock_path(no_flock / "lock")


def test_an_unfinished_shard_of_another_machine_is_left_alone(
    make_dataset: Callable[..., Manifest], no_flock: Path, tmp_path: Path
) -> None:
    """A free lock does not mean that nobody writes, if locks do not reach other machines."""
    make_dataset(tmp_path / "data set", num_samples=40)
    store = Store(tmp_path / "data set")
    shards = read_manifest(store).splits["train"].shards
    cache = ShardCache(no_flock, max_bytes=2 * max(shard.num_bytes for shard in shards))
    (no_flock / "shards").mkdir()
    theirs = no_flock / "shards" / f"{shards[1].sha256}.{shards[1].num_bytes}.0badcafe.partial"
    theirs.write_bytes(b"on its way")
    cache.fetch(store, shards[0])
    cache.fetch(store, shards[2])
    assert theirs.exists()
    assert not cache.path(shards[0]).exists()  # there was room for one beside theirs
    os.utime(theirs, (0, 0))  # long ago
    cache.fetch(store, shards[0])
    assert not theirs.exists()
    assert cache.path(shards[2]).exists()
