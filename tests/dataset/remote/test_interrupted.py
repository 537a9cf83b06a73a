"""A store that is down: what is said, for how long it is tried, and what Ctrl-C does meanwhile."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from walloc_data import LatentDataset
from walloc_data.errors import StorageError
from walloc_data.storage import Store

pytestmark = [pytest.mark.object_store, pytest.mark.usefixtures("credentials")]

TRAINER = """
import sys
from walloc_data import LatentDataset
url, folder, num_workers = sys.argv[1:]
loader = LatentDataset(url, shuffle=True, cache_folder=folder).loader(batch_size=8, num_workers=int(num_workers))
print("begun", flush=True)
for batch in loader:
    print("batch", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "to"), [(0, "process"), (2, "process"), (2, "group")])
def test_ctrl_c_ends_a_trainer_whose_store_is_down(
    url: str, faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int, to: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("data/train", "503", 10**6)]
    command = ["-c", TRAINER, url, str(tmp_path), str(num_workers)]
    with warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as trainer:
        try:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == "begun\n"
            deadline = time.monotonic() + 60
            while faults.count("data/train") < 12 and time.monotonic() < deadline:  # fetchers and workers try again
                time.sleep(0.05)
            # As a terminal does, or as a scheduler that knows the process alone.
            (os.killpg if to == "group" else os.kill)(trainer.pid, signal.SIGINT)
            began = time.monotonic()
            out, err = trainer.communicate(timeout=30)
        finally:
            if trainer.poll() is None:
                os.killpg(trainer.pid, signal.SIGKILL)
    assert time.monotonic() - began < 15
    assert trainer.returncode == -signal.SIGINT, err
    assert "KeyboardInterrupt" in err
    assert out == ""
    said = [line for line in err.splitlines() if "Retrying for up to 120 s" in line]
    assert 1 <= len(said) <= 1 + num_workers + 1  # once in each process for each store that it asks
    assert f"fetching {url}/data/train-" in said[0]
    assert "Reduce your rate" in said[0]


def test_a_try_is_one_request_and_tries_end(
    url: str, faults: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("data/train-00000", "503", 10**6)]
    store = Store(url, max_attempts=3)
    with pytest.raises(
        StorageError, match=r"fetching .*train-00000.tar: failed 3 times in \d+ s, last with OSError: .*"
    ):
        store.download("data/train-00000.tar", tmp_path / "shard")
    assert faults.count("train-00000") == 3
    assert caplog.text.count("Retrying for up to 120 s") == 1
    hasty = Store(url, retry_seconds=0.5)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"failed [12] times in \d+ s"):
        hasty.download("data/train-00000.tar", tmp_path / "shard")
    assert time.monotonic() - began < 30  # not the 120 s of the default


def test_a_users_own_number_of_tries_is_kept(url: str, faults: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("walloc.json", "503", 2)]
    options = {"config_kwargs": {"retries": {"total_max_attempts": 3}}}
    assert Store(url, storage_options=options, max_attempts=1).read_bytes("walloc.json", max_bytes=2**20)
    assert faults.count("walloc.json") == 3


def test_a_data_set_takes_a_store_with_limits_of_its_own(
    url: str, faults: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("data/train-00000", "503", 10**6)]
    dataset = LatentDataset(Store(url, max_attempts=2), cache_folder=tmp_path / "cache")
    with pytest.raises(StorageError, match=r"fetching .*train-00000.tar: failed 2 times in \d+ s"):
        dataset[0]
    assert faults.count("train-00000") == 2
    with pytest.raises(StorageError, match="storage_options belong to the Store that is given"):
        LatentDataset(Store(url), storage_options={"anon": True})
