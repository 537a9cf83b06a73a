"""Reading over a network that fails: a real S3 endpoint, killed and restarted, and a proxy that injects faults."""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.dataset import LatentLoader
from walloc_data.errors import CorruptShardError, FormatError, StorageError
from walloc_data.storage import Store

pytestmark = [
    pytest.mark.object_store,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.usefixtures("credentials"),
]

Ids = Callable[[torch.Tensor], list[int]]
Change = Callable[[str, str, bytes | None], None]


def _ids(loader: LatentLoader, ids_of: Ids) -> list[list[int]]:
    return [ids_of(batch[0]) for batch in loader]


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


def test_the_first_batch_needs_one_shard(url: str, faults: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("data/train", "slow", 10**6)]
    dataset = LatentDataset(url, shuffle=True)
    monkeypatch.setattr(LatentDataset, "num_prefetch_shards", 0)
    next(iter(dataset.loader(batch_size=16)))
    assert faults.count("data/train") == 1


def test_shards_are_fetched_ahead_and_once(url: str, faults: Any, monkeypatch: pytest.MonkeyPatch, ids_of: Ids) -> None:
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


FAULTS = ["500", "503", "429", "cut", "short", "corrupt", "reset", "html", "empty", "long", "slow", "etag"]


def test_faults_on_the_way_lose_nothing(url: str, faults: Any, monkeypatch: pytest.MonkeyPatch, ids_of: Ids) -> None:
    """Each of them twice on a shard of its own, and three on the index."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [(f"train-{shard:05d}", fault, 2) for shard, fault in enumerate(FAULTS)]
    faults.rules += [("index/", fault, 1) for fault in ("cut", "html", "corrupt")]
    loader = LatentDataset(url, shuffle=True, window_shards=4).loader(batch_size=8, num_workers=1)
    assert sorted(itertools.chain(*_ids(loader, ids_of))) == list(range(320))
    harmless = ("slow", "etag")
    fetched = {fault: faults.count(f"train-{shard:05d}") for shard, fault in enumerate(FAULTS)}
    assert fetched == {fault: 1 if fault in harmless else 3 for fault in FAULTS}
    assert not [rule for rule in faults.rules if rule[2] and rule[1] not in harmless], "a fault was not met"


@pytest.mark.parametrize(
    ("fault", "message"),
    [("expired", "ExpiredToken|expired"), ("403", "do not allow this"), ("301", "in another region")],
)
@pytest.mark.parametrize("path", ["walloc.json", "index/", "train-00000"])
def test_refusals_are_named_at_once(
    url: str, faults: Any, monkeypatch: pytest.MonkeyPatch, fault: str, message: str, path: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules, faults.methods = [(path, fault, 10**6)], ("GET", "HEAD")
    monkeypatch.setattr(LatentDataset, "num_prefetch_shards", 0)
    began = time.monotonic()
    with pytest.raises(StorageError, match=message):
        LatentDataset(url)[0]
    assert time.monotonic() - began < 10
    assert faults.count(path) <= 2


def test_a_response_that_hangs_is_asked_for_again(
    url: str, faults: Any, ids_of: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("train-00000", "hang", 1)]
    options = {"config_kwargs": {"read_timeout": 1}}
    loader = LatentDataset(url, storage_options=options).loader(batch_size=16)
    assert list(itertools.chain(*_ids(loader, ids_of))) == list(range(320))
    assert faults.count("train-00000") == 2


@pytest.mark.slow
def test_a_store_that_is_killed_and_restarted_costs_only_time(
    url: str, swift: Any, ids_of: Ids, tmp_path: Path
) -> None:
    expected = _ids(LatentDataset(url, shuffle=True, window_shards=2, cache="array").loader(batch_size=8), ids_of)
    loader = LatentDataset(url, shuffle=True, window_shards=2, cache_folder=tmp_path / "other")
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
    url: str, faults: Any, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    faults.rules = [("train-00002", "corrupt", 10**6)]
    dataset = LatentDataset(url)
    monkeypatch.setattr(LatentDataset, "num_prefetch_shards", 0)
    with pytest.raises(
        CorruptShardError, match=r"train-00002.tar: its sha256 is \w+, but the manifest says \w+, 3 times"
    ):
        list(dataset.loader(batch_size=16, num_workers=num_workers))
    assert faults.count("train-00002") == 3


def test_a_missing_shard_and_a_missing_bucket_fail_at_once(
    source: Path, upload: Callable[[Path], str], change: Change, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(source)
    change(url, "data/train-00004.tar", None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    dataset = LatentDataset(url)
    monkeypatch.setattr(LatentDataset, "num_prefetch_shards", 0)
    with pytest.raises(StorageError, match=r"fetching s3://.*train-00004.tar: FileNotFoundError"):
        list(dataset.loader(batch_size=16))
    assert faults.count("train-00004") <= 2  # never eight times
    with pytest.raises(
        StorageError, match=r"train-00004.tar: FileNotFoundError: .*\. Check the URL, whether the upload"
    ):
        dataset[16 * 4]
    for missing in ("s3://no-such-bucket/x", url + "-typo"):
        message = rf"^{missing}: no walloc.json there at {faults.url} \(.*\): not a data set of latents, or its .*"
        with pytest.raises(StorageError, match=message + r"Check the URL, and AWS_ENDPOINT_URL$"):
            LatentDataset(missing)


def test_an_impossible_bucket_and_one_that_is_elsewhere_are_named_at_once(
    url: str, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    message = (
        r"s3://Bad_Bucket/x/walloc.json: OSError: .*The name of the bucket, after s3://, must be 3 to 63 characters"
    )
    with pytest.raises(StorageError, match=message):
        LatentDataset("s3://Bad_Bucket/x")
    assert faults.count("Bad_Bucket") <= 2  # of which the first tells where the bucket is
    faults.rules = [("walloc.json", "301", 10**6)]
    message = (
        r"walloc.json: OSError: .*another region or at another endpoint: set AWS_DEFAULT_REGION, or AWS_ENDPOINT_URL"
    )
    with pytest.raises(StorageError, match=message):
        LatentDataset(url)
    assert faults.count("walloc.json") <= 3  # one, and what the client asks to be redirected


def test_wrong_credentials_fail_at_once_and_show_no_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tell-nobody")
    # Tried again, it would say "walloc.json: failed 8 times, last with PermissionError".
    with pytest.raises(StorageError, match=r"walloc\.json: PermissionError.*The credentials are wrong") as caught:
        LatentDataset(url)
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
    source: Path, upload: Callable[[Path], str], change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(source)
    dataset = LatentDataset(url)
    monkeypatch.setattr(LatentDataset, "num_prefetch_shards", 0)
    other = (source / "data" / "train-00001.tar").read_bytes()
    change(url, "data/train-00000.tar", other)
    with pytest.raises(CorruptShardError, match=r"train-00000.tar: .* 3 times. The shard was damaged or replaced"):
        dataset[0]


def test_an_index_that_is_not_the_manifests_is_refused(
    source: Path, upload: Callable[[Path], str], change: Change, hundred: Path
) -> None:
    url = upload(source)
    change(url, "index/train.parquet", (hundred / "index" / "train.parquet").read_bytes())
    with pytest.raises(FormatError, match=r"index/train.parquet: its sha256 is \w+, but the manifest says"):
        LatentDataset(url)
    change(url, "index/train.parquet", b"PAR1 nothing of the kind")
    with pytest.raises(FormatError, match=r"index/train.parquet: its sha256 is \w+, but the manifest says"):
        LatentDataset(url)
