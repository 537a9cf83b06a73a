"""Changes of a data set in an object store, where nothing can be renamed: all is whole after each of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.convert.conftest import StopError, store_steps
from tests.maintain.conftest import items
from walloc_data import LatentDataset, encode_dataset
from walloc_data.convert import verify_dataset
from walloc_data.maintain import append_dataset, merge_datasets, remove_samples, remove_split
from walloc_data.storage import Store

pytestmark = pytest.mark.object_store


def test_pictures_and_splits_come_and_go_in_an_object_store(
    make_bucket: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"storage_options": make_bucket("maintain")}
    out = "s3://maintain/latents"
    for split, numbers in (("train", range(6)), ("val", range(6, 8))):
        encode_dataset(items(numbers, ("ant", "bee")), out, split=split, samples_per_shard=4, progress=False, **options)

    def check(number: int, **how: str) -> None:
        assert verify_dataset(how.get("url", out), progress=False, **options).problems == ()
        data = LatentDataset(how.get("url", out), cache_folder=tmp_path / "cache", **options)
        assert len(data) == number
        assert len(list(data)) == number

    append_dataset(items(range(10, 13), ("cow",)), out, progress=False, **options)
    check(9)
    with monkeypatch.context() as patch:  # stopped before the write that changes over
        store_steps(patch, 2)
        with pytest.raises(StopError):
            remove_samples(out, split="train", classes=["bee"], **options)
    check(9)
    remove_samples(out, split="train", classes=["bee"], **options)
    check(6)
    merge_datasets(out, out, "s3://maintain/twice", **options)
    check(12, url="s3://maintain/twice")
    remove_split(out, split="val", **options)
    check(6)
    store = Store(out, **options)
    assert not [path for folder in ("data", "index", "failures") for path in store.list(folder) if "val" in path]
    assert [name for name in store.list_folders(".walloc") if "." in name] == []
