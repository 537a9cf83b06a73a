"""Changes of data sets whose shards are listed in files of their own leave them as whole as all others."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from tests.convert.conftest import as_bytes, picture
from tests.maintain.conftest import assert_whole, contents, items
from walloc_data import LatentDataset, encode_dataset
from walloc_data.maintain import append_dataset, merge_datasets, remove_samples, remove_split
from walloc_data.storage import manifest


@pytest.fixture(autouse=True)
def few_shards_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_LISTED_SHARDS", 1)


@pytest.mark.slow
def test_samples_are_added_and_removed_and_splits_too(encode_items: Callable[..., Path], tmp_path: Path) -> None:
    out = encode_items(tmp_path / "out", range(12))
    encode_items(out, range(20, 26), split="val")
    everything = contents(out)
    append_dataset(items(range(12, 18), ("ant", "bee", "cow")), out)
    assert_whole(out)
    now = contents(out)
    assert everything.items() <= now.items()
    assert len(now) == 18
    remove_samples(out, split="train", classes=["bee"])
    assert_whole(out)
    assert contents(out) == {name: value for name, value in now.items() if value[2] != "bee"}
    remove_split(out, split="val")
    assert_whole(out)
    value = json.loads((out / "walloc.json").read_text())
    assert value["splits"]["train"]["shards_file"]["num_shards"] == len(LatentDataset(out).record.shards) > 1


def test_a_merged_data_set_keeps_the_class_names_of_columns_on_which_its_parts_agree(tmp_path: Path) -> None:
    for name, classes in (("a", ["x", "y"]), ("b", ["x", "y"])):
        features = datasets.Features(
            image=datasets.Image(),
            kinds=datasets.Sequence(datasets.ClassLabel(names=classes)),
            place=datasets.Features({"side": datasets.ClassLabel(names=[name, "z"])})["side"],
        )
        png = {"bytes": as_bytes(picture(0)), "path": None}
        rows = {"image": [png, png], "kinds": [[0, 1], []], "place": [0, 1]}
        data = datasets.Dataset.from_dict(rows, features=features)
        encode_dataset(data, tmp_path / name, label_column="none", progress=False)
    merge_datasets(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert_whole(tmp_path / "c")
    merged = LatentDataset(tmp_path / "c", target="kinds")
    assert merged.column_classes == {"kinds": ("x", "y")}
    assert [kinds for _, kinds in merged].count([0, 1]) == 2
