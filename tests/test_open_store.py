"""A data set is named by its path or URL, or given as a store that is open already."""

from pathlib import Path

import pytest
from PIL import Image

from walloc_data import LatentDataset, encode_splits, verify_dataset
from walloc_data.convert import dataset_info
from walloc_data.errors import StorageError
from walloc_data.maintain import append_dataset, remove_split
from walloc_data.report import add_preview, report
from walloc_data.storage import Store


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


def test_a_store_inside_another_is_opened_in_the_same_way() -> None:
    store = Store("s3://bucket/latents", storage_options={"anon": True}, max_attempts=3, retry_seconds=7)
    inner = store.inside(".walloc/train.new/")
    assert inner.url == "s3://bucket/latents/.walloc/train.new"
    assert (inner.storage_options, inner.max_attempts, inner.retry_seconds) == ({"anon": True}, 3, 7)
    assert store.inside("", max_attempts=1).url == store.url
    assert store.inside("", max_attempts=1).max_attempts == 1
