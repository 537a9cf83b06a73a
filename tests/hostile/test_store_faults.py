"""Wrong answers of a store while something is written cost time, or are named at once; bytes arrive whole."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from walloc_data.cli import main
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


@pytest.mark.parametrize(("fault", "message"), [("expired", "ExpiredToken|expired"), ("403", "do not allow this")])
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
    with pytest.raises(StorageError, match=r"long: \d+ bytes or more; at most 1000 are downloaded"):
        store.download("long", tmp_path / "here", max_bytes=1000)
    assert not (tmp_path / "here").exists()
    store.download("long", tmp_path / "here", max_bytes=2**21)
    assert (tmp_path / "here").stat().st_size == 2**21


@pytest.mark.parametrize("command", ["info", "verify", "decode", "preview", "report"])
def test_faults_on_the_way_cost_every_command_time_only(
    root: Path, make_bucket: Callable[[str], dict[str, Any]], faults: Any, command: str
) -> None:
    options = make_bucket("faults-of-commands") | {"endpoint_url": faults.url}
    url = f"s3://faults-of-commands/{command}"
    store = Store(url, storage_options=options)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        store.write_bytes(path.relative_to(root).as_posix(), path.read_bytes())
    faults.rules = [("walloc.json", "503", 1), ("codec.json", "429", 1), ("train.parquet", "reset", 1)]
    faults.rules += [("train-00001", "cut", 1), ("train-00002", "500", 1)]
    output = {"decode": ["-o", "decoded"], "preview": ["-o", "p.webp"], "report": ["-o", "r.html"]}
    assert main([command, url, "--storage-options", json.dumps(options), *output.get(command, [])]) == 0
    if command != "info":
        assert not any(count for _, _, count in faults.rules), "a fault was not met"
