"""A data set is named by its path or URL, or given as a store that is open already."""

import os
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from walloc_data import LatentDataset, encode_splits, verify_dataset
from walloc_data.convert import dataset_info
from walloc_data.errors import StorageError
from walloc_data.maintain import append_dataset, remove_split
from walloc_data.report import add_preview, report
from walloc_data.storage import DaemonThreads, OpenShards, Store, shards
from walloc_data.transforms import LatentOperators


@pytest.mark.slow
def test_functions_take_a_store_where_they_take_a_path(tmp_path: Path) -> None:
    store = Store(tmp_path / "latents")
    pictures = [(Image.new("RGB", (32, 32), (30 * i, 90, 20)), i % 2) for i in range(8)]
    encode_splits({"train": pictures[:6], "val": pictures[6:]}, store, size_px=32, progress=False)
    append_dataset([(Image.new("RGB", (32, 32), (9, 9, 9)), 1)], store, progress=False)
    remove_split(store, split="val")
    assert dataset_info(store).manifest is not None
    assert verify_dataset(store, progress=False).problems == ()
    assert len(LatentDataset(store)) == 7
    add_preview(store, num_samples=2)
    assert report(store, tmp_path / "report.html").stat().st_size > 1000


def test_options_of_a_store_that_is_open_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, storage_options={"anon": True})
    for function in (dataset_info, verify_dataset, LatentDataset):
        with pytest.raises(StorageError, match="storage_options belong to the Store that is given: leave them out"):
            function(store, storage_options={"anon": False})


@pytest.mark.parametrize("url", ["s3:/bucket/x", Path("s3://bucket/x")])
def test_a_url_with_one_slash_is_no_local_folder(url: str | Path) -> None:
    for function in (LatentDataset, Store):
        with pytest.raises(StorageError, match=r"^s3:/bucket/x: did you mean s3://bucket/x\?$"):
            function(url)


@pytest.mark.parametrize("url", ["", "s3://", "s3:///", "gs://", "file://"])
def test_a_url_that_names_nothing_is_neither_the_root_of_the_disk_nor_a_folder(url: str) -> None:
    with pytest.raises(StorageError, match=rf"^'{url}' names no folder and no bucket: is a variable empty"):
        Store(url)


def test_the_root_of_the_disk_is_a_folder_too() -> None:
    for url in ("/", "//", "file:///"):
        assert Store(url).local_path in (Path("/"), Path("//"))


def test_a_url_with_one_slash_shows_no_credentials() -> None:
    with pytest.raises(StorageError, match=r"^s3://\.\.\.: credentials do not belong in a URL"):
        Store("s3:/key:secret@bucket/x")


def test_a_pipe_in_a_data_set_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(StorageError, match="/a: a named pipe, not a file"):
        Store(tmp_path).read_range("a", start=0, num_bytes=10)


def test_a_range_beyond_the_end_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    store = Store(tmp_path)
    tracemalloc.start()
    assert store.read_range("a", start=4, num_bytes=2**34) == b"456789"
    assert store.read_range("a", start=20, num_bytes=5) == b""
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_store_tries_at_least_once() -> None:
    with pytest.raises(StorageError, match="max_attempts must be at least 1, not 0"):
        Store("s3://bucket/x", max_attempts=0)


def test_pools_of_shards_are_made_while_another_thread_closes_shards() -> None:
    done, errors, interval = threading.Event(), [], sys.getswitchinterval()
    pools = [OpenShards() for _ in range(2000)]

    def close() -> None:
        try:
            while not done.is_set():
                shards._close_to(10)
        except RuntimeError as error:  # was "Set changed size during iteration"
            errors.append(error)

    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=close)
    thread.start()
    try:
        pools += [OpenShards() for _ in range(4000)]
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert errors == []


def test_closed_threads_take_no_work() -> None:
    threads = DaemonThreads(1, name="reader")
    assert threads.submit(pow, 2, 5).result(timeout=10) == 32
    threads.close()
    with pytest.raises(RuntimeError, match="the threads 'reader' were closed"):
        threads.submit(pow, 2, 5)


def test_a_store_inside_another_is_opened_in_the_same_way() -> None:
    store = Store("s3://bucket/latents", storage_options={"anon": True}, max_attempts=3, retry_seconds=7)
    inner = store.inside(".walloc/train.new/")
    assert inner.url == "s3://bucket/latents/.walloc/train.new"
    assert (inner.storage_options, inner.max_attempts, inner.retry_seconds) == ({"anon": True}, 3, 7)
    assert store.inside("", max_attempts=1).url == store.url
    assert store.inside("", max_attempts=1).max_attempts == 1


def test_anything_but_a_place_is_refused_by_its_type(tmp_path: Path) -> None:
    for given in (3, b"latents", Image.new("RGB", (1, 1)), None):
        with pytest.raises(StorageError, match=rf"^pass a path or URL, or its Store, not {type(given).__name__}$"):
            LatentOperators.load(given)
