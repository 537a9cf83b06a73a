"""What a store answers wrongly while something is written to it costs time, or is named at once; bytes arrive whole."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from walloc_data.errors import StorageError
from walloc_data.storage import Store

pytestmark = pytest.mark.object_store


@pytest.fixture
def store(make_bucket: Callable[[str], dict[str, Any]], faults: Any) -> Store:
    options = make_bucket("faults-of-writing") | {"endpoint_url": faults.url}
    return Store("s3://faults-of-writing/set", storage_options=options, retry_seconds=20)


@pytest.mark.parametrize("fault", ["500", "503", "429", "reset"])
def test_faults_while_writing_cost_time_only(store: Store, faults: Any, tmp_path: Path, fault: str) -> None:
    path, data = f"data/{fault}.tar", bytes(range(256)) * 400
    (tmp_path / "shard").write_bytes(data)
    faults.rules, faults.methods = [(path, fault, 2)], ("PUT",)
    store.publish(tmp_path / "shard", path)
    assert faults.rules == [(path, fault, 0)]
    assert store.read_bytes(path, max_bytes=2**20) == data


@pytest.mark.parametrize(("fault", "message"), [("expired", "ExpiredToken|expired"), ("403", "may not do this")])
def test_refusals_to_write_are_named_at_once(
    store: Store, faults: Any, tmp_path: Path, fault: str, message: str
) -> None:
    (tmp_path / "shard").write_bytes(b"shard")
    faults.rules, faults.methods = [("data/refused.tar", fault, 10**6)], ("PUT",)
    began = time.monotonic()
    with pytest.raises(StorageError, match=message):
        store.publish(tmp_path / "shard", "data/refused.tar")
    assert time.monotonic() - began < 10
    assert (tmp_path / "shard").exists()  # what was not sent is not lost


def test_a_file_that_is_longer_than_was_said_is_not_fetched(store: Store, tmp_path: Path) -> None:
    store.write_bytes("long", bytes(2**21))
    with pytest.raises(StorageError, match=r"long: \d+ bytes and perhaps more; at most 1000 are fetched of it"):
        store.download("long", tmp_path / "here", max_bytes=1000)
    assert not (tmp_path / "here").exists()
    store.download("long", tmp_path / "here", max_bytes=2**21)
    assert (tmp_path / "here").stat().st_size == 2**21
