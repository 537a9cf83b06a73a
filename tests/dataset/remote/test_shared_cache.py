"""One cache folder for every worker and trainer of a machine: bounded, full, shared, and left by the killed."""

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from walloc_data import LatentDataset
from walloc_data.dataset import LatentLoader
from walloc_data.errors import LoaderError, StorageError
from walloc_data.storage import file_lock

pytestmark = [
    pytest.mark.object_store,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.usefixtures("credentials"),
]

Ids = Callable[[torch.Tensor], list[int]]


def _ids(loader: LatentLoader, ids_of: Ids) -> list[list[int]]:
    return [ids_of(batch[0]) for batch in loader]


@pytest.mark.slow
def test_a_cache_too_small_for_the_data_evicts_and_refetches(
    url: str, source: Path, faults: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ids_of: Ids
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    largest = max(path.stat().st_size for path in (source / "data").iterdir())
    limit = 6 * largest
    monkeypatch.setattr("walloc_data.dataset.reader._MAX_OPEN_CACHED", 1)  # what is open is not fetched again
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
        monkeypatch.setattr(LatentDataset, "num_prefetch_shards", 0)
        with pytest.raises(
            StorageError, match=r"no space for s3://.*set cache_folder to another disk, or lower max_cache"
        ):
            list(dataset.loader(batch_size=16))
        assert not [path for path in (disk / "shards").iterdir() if path.suffix == ".partial"]
        array = LatentDataset(url, cache_folder=disk, cache="array", max_cache_bytes=60_000)
        with pytest.raises(StorageError, match=r"cannot store decoded latents|no space for"):
            list(array.loader(batch_size=16))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


TRAINER = """
import json, sys
from walloc_data import LatentDataset
url, folder, small, log = sys.argv[1:]
ids = []
for name, limit in (("roomy", 10**9), ("small", int(small))):
    dataset = LatentDataset(url, shuffle=True, window_shards=2, cache_folder=f"{folder}/{name}", max_cache_bytes=limit)
    loader = dataset.loader(batch_size=8, num_workers=1)
    for latents, _ in loader:
        ids += ((latents[:, 0, 0, 0].int() & 255) + 256 * latents[:, 0, 0, 1].int()).tolist()
open(log, "w").write(json.dumps(ids))
"""


@pytest.mark.slow
def test_two_trainers_share_one_cache(
    url: str, source: Path, faults: Any, tmp_path: Path, ids_of: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    largest = max(path.stat().st_size for path in (source / "data").iterdir())
    expected = _ids(LatentDataset(source, shuffle=True, window_shards=2).loader(batch_size=8), ids_of)

    def train(name: str) -> list[int]:
        log = tmp_path / name
        warm.run([script, url, tmp_path, str(7 * largest), log], check=True, timeout=300)
        return json.loads(log.read_text())

    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(train, ("one", "two"))
    assert first == second == 2 * list(itertools.chain(*expected))
    assert len(list((tmp_path / "roomy" / "shards").glob("*.tar"))) == 20
    assert not list(tmp_path.glob("*/shards/*.partial"))
    # Each shard once for both where there is room; where there is not, a few come again.
    assert 40 <= faults.count("data/train") <= 80


@pytest.mark.slow
def test_a_fetcher_that_is_killed_blocks_nobody(
    url: str, faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids_of: Ids
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("train-00000", "hang", 1)]
    code = f"from walloc_data import LatentDataset; LatentDataset({url!r}, cache_folder={str(tmp_path)!r})[0]"
    fetcher = warm.Popen(["-c", code])
    deadline = time.monotonic() + 30
    while not list((tmp_path / "shards").glob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.02)
    fetcher.kill()
    fetcher.wait()
    assert list((tmp_path / "shards").glob("*.partial"))
    loader = LatentDataset(url, cache_folder=tmp_path).loader(batch_size=16)
    assert list(itertools.chain(*_ids(loader, ids_of))) == list(range(320))
    assert not list((tmp_path / "shards").glob("*.partial"))
