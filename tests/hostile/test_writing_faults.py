"""Whole conversions and changes whose store refuses, stalls, lies and loses answers: the bytes of one on disk, or one
error, after which the same command goes on to the same bytes.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from walloc_data import LatentDataset, encode_dataset
from walloc_data.cli import main
from walloc_data.convert import verify_dataset
from walloc_data.errors import StorageError, WallocDataError
from walloc_data.maintain import adopt_dataset, append_dataset, merge_datasets, remove_samples, retry_failures
from walloc_data.storage import Store

pytestmark = pytest.mark.object_store

BUCKET = "faults-of-conversions"
OPTIONS: dict[str, Any] = {"size_px": 48, "samples_per_shard": 3, "codec": "klt-16x", "progress": False}
# What passes, of several files of one run each.
BURSTS = {
    "refusals for now": ("500", "503", "429", "refused"),
    "lost answers": ("reset", "cut", "lie", "slow"),
    "other answers": ("empty", "html", "etag"),
}
PARTS = ("train-00000", "train-00001", "walloc.json", "index/train.parquet", "plan.json", "codec.json")
FINAL = {
    "403": "do not allow this",
    "expired": "xpired",
    "301": "another region or at another endpoint",
    "404": "404|NoSuch",
}


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tries a second apart take the place of twelve."""
    monkeypatch.setattr("walloc_data.storage.retry.random.uniform", lambda low, high: 0.1)


@pytest.fixture
def options(make_bucket: Callable[[str], dict[str, Any]], faults: Any, patience: None) -> Iterator[dict[str, Any]]:
    yield make_bucket(BUCKET) | {"endpoint_url": faults.url}
    faults.rules = []


def contents(store: Store) -> dict[str, bytes]:
    """Every file of a data set that does not tell times and places."""
    names = ["walloc.json", *(name for folder in ("data", "index", "failures", "codec") for name in store.list(folder))]
    return {name: store.read_bytes(name, max_bytes=2**26) for name in names}


def without_places(files: dict[str, bytes]) -> dict[str, Any]:
    manifest = json.loads(files["walloc.json"])
    for split in manifest["splits"].values():
        split["source"].pop("location", None)
    return {**files, "walloc.json": manifest}


def burst(faults: Any, kinds: tuple[str, ...], parts: tuple[str, ...] = PARTS) -> None:
    """Two faults of every kind, each at some of the files, of the methods that they are of."""
    faults.methods = ("PUT", "GET", "HEAD")
    faults.rules = [(part, kinds[(i + j) % len(kinds)], 1) for i, part in enumerate(parts) for j in range(2)]


@pytest.mark.parametrize("kind", BURSTS)
def test_a_conversion_through_a_store_that_fails_now_and_then_has_the_bytes_of_one_on_disk(
    whole: Path, options: dict[str, Any], faults: Any, kind: str
) -> None:
    url = f"s3://{BUCKET}/encode-{kind.replace(' ', '-')}"
    burst(faults, BURSTS[kind])
    for _ in range(4):
        try:
            encode_dataset(whole.parent / "pictures", url, storage_options=options, **OPTIONS)
            break
        except WallocDataError:
            assert kind == "other answers"  # these cannot always be told from true ones; nothing is lost by them
    assert sum(count for _, _, count in faults.rules) < len(PARTS)
    faults.rules = []
    assert without_places(contents(Store(url, storage_options=options))) == without_places(contents(Store(whole)))


@pytest.mark.parametrize("fault", FINAL)
def test_a_refusal_in_the_middle_of_a_conversion_is_one_error_and_the_same_command_goes_on(
    whole: Path, options: dict[str, Any], faults: Any, fault: str
) -> None:
    url = f"s3://{BUCKET}/refused-{fault}"
    faults.methods, faults.rules = ("PUT",), [("train-00001" if fault == "403" else "walloc.json", fault, 10**6)]
    with pytest.raises(WallocDataError, match=FINAL[fault]):
        encode_dataset(whole.parent / "pictures", url, storage_options=options, **OPTIONS)
    faults.rules = []
    encode_dataset(whole.parent / "pictures", url, storage_options=options, **OPTIONS)
    assert without_places(contents(Store(url, storage_options=options))) == without_places(contents(Store(whole)))


def upload(root: Path, url: str, options: dict[str, Any]) -> Store:
    store = Store(url, storage_options=options)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        store.write_bytes(path.relative_to(root).as_posix(), path.read_bytes())
    return store


CHANGES: dict[str, Callable[[Path, str, dict[str, Any]], Any]] = {
    "append": lambda pictures, url, options: append_dataset(
        pictures, url, again=True, storage_options=options, progress=False
    ),
    "remove": lambda pictures, url, options: remove_samples(
        url, split="train", keys=["000000003"], storage_options=options
    ),
    "retry": lambda pictures, url, options: retry_failures(pictures, url, storage_options=options, progress=False),
    "merge": lambda pictures, url, options: merge_datasets(url, url, f"{url}-merged", storage_options=options),
}


# Refused for good: two changes stand for all, whose interruption between any two writes is tested on disk.
@pytest.mark.parametrize(
    ("change", "fault"), [*((change, "burst") for change in CHANGES), ("remove", "403"), ("merge", "403")]
)
def test_a_change_through_a_store_that_fails_leaves_the_data_set_of_before_or_of_after(
    root: Path, whole: Path, options: dict[str, Any], faults: Any, change: str, fault: str
) -> None:
    pictures, url = whole.parent / "pictures", f"s3://{BUCKET}/{change}-{fault}"
    store = upload(root, url, options)
    before = contents(store)
    if fault == "burst":
        burst(faults, ("503", "reset", "refused", "lie", "cut"))
    else:
        faults.methods, faults.rules = ("PUT",), [("walloc.json", "403", 10**6)]
    try:
        CHANGES[change](pictures, url, options)
    except WallocDataError:
        faults.rules = []
        if change != "merge":  # readers see one or the other
            assert verify_dataset(url, storage_options=options, progress=False).problems == ()
        arrived = Store(f"{url}-merged", storage_options=options).exists("walloc.json")  # the proxy's 403 is an answer
        if contents(store)["walloc.json"] == before["walloc.json"] and not arrived:
            CHANGES[change](pictures, url, options)
    faults.rules = []
    made = f"{url}-merged" if change == "merge" else url
    assert verify_dataset(made, storage_options=options, progress=False).problems == ()
    number = {"append": 14, "remove": 6, "retry": 7, "merge": 14}[change]
    assert len(LatentDataset(made, storage_options=options)) == number


@pytest.mark.parametrize("fault", ["503", "cut", "corrupt", "403"])
def test_a_source_in_a_store_that_fails_is_encoded_or_stops_with_one_error(
    whole: Path, options: dict[str, Any], faults: Any, fault: str, tmp_path: Path
) -> None:
    """The shards of a data set are a source, too: packed latents, that are adopted."""
    url = f"s3://{BUCKET}/source-{fault}"
    store = Store(url, storage_options=options)
    for path in sorted((whole / "data").glob("*.tar")):
        store.write_bytes(path.name, path.read_bytes())
    faults.rules = [("train-00001.tar", fault, 2)]

    def adopt() -> Any:
        tars = f"wds:{url}/train-{{00000..00002}}.tar"
        return adopt_dataset(tars, tmp_path / "out", codec="klt-16x", storage_options=options, progress=False)

    if fault == "403":
        with pytest.raises(WallocDataError, match=r"train-00001\.tar.*do not allow this"):
            adopt()
        faults.rules = []
    adopt()
    found = LatentDataset(tmp_path / "out", cache_folder=tmp_path / "cache")
    assert len(found) == 7 or fault == "corrupt"  # nobody knows the checksum of a source
    assert verify_dataset(tmp_path / "out", progress=False).problems == ()


def test_a_push_through_a_store_that_fails_now_and_then_arrives(
    root: Path, options: dict[str, Any], faults: Any
) -> None:
    url = f"s3://{BUCKET}/push"
    burst(faults, ("503", "reset", "refused", "lie"))
    assert main(["push", str(root), url, "--storage-options", json.dumps(options)]) == 0
    faults.rules = []
    assert contents(Store(url, storage_options=options)) == contents(Store(root))


def test_a_store_that_lies_for_ever_is_named(options: dict[str, Any], faults: Any) -> None:
    store = Store(f"s3://{BUCKET}/lies", storage_options=options, max_attempts=3)
    faults.methods, faults.rules = ("PUT",), [("walloc.json", "lie", 10**6)]
    with pytest.raises(StorageError, match=r"failed 3 times .* the store said that it was written, and it is not ther"):
        store.write_bytes("walloc.json", b"{}")
