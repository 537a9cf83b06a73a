"""Two data sets become one, and new pictures come to a split: every sample of both is there, once, as it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tests.convert.conftest import StopError, as_bytes, make_folder, store_steps
from tests.maintain.conftest import assert_whole, contents, items
from walloc_data import LatentDataset, encode_dataset
from walloc_data.cli import main
from walloc_data.errors import FormatError, SettingsMismatchError, SourceError, StorageError
from walloc_data.maintain import append_dataset, merge_datasets, remove_samples, retry_failures

Encode = Callable[..., Path]


@pytest.mark.slow
def test_two_data_sets_become_one_with_every_sample_as_it_was(encode_items: Encode, tmp_path: Path) -> None:
    first = encode_items(tmp_path / "a", range(12), ("cow", "ant"), mirror=True)
    second = encode_items(tmp_path / "b", range(12, 19), ("bee", "cow"), mirror=True, samples_per_shard=3)
    encode_items(second, range(30, 33), ("cow",), split="val", mirror=True, samples_per_shard=3)
    untouched = {path: path.read_bytes() for root in (first, second) for path in root.rglob("*") if path.is_file()}
    summaries = merge_datasets(first, second, tmp_path / "c")
    assert [(summary.split, summary.num_samples) for summary in summaries] == [("train", 19), ("val", 3)]
    assert_whole(tmp_path / "c")
    assert LatentDataset(tmp_path / "c").manifest.class_names == ("ant", "cow", "bee")
    assert contents(tmp_path / "c") == contents(first) | contents(second)
    assert contents(tmp_path / "c", "val") == contents(second, "val")
    assert {path: path.read_bytes() for path in untouched} == untouched
    table = pyarrow.parquet.read_table(tmp_path / "c" / "index" / "train.parquet")
    assert sorted(table["source_index"].to_pylist()) == list(range(19))
    assert len(set(table["key"].to_pylist())) == 19
    again = merge_datasets(tmp_path / "c", first, tmp_path / "d")  # a merged one is one like any other
    assert again[0].num_samples == 31
    assert [part["num_items"] for part in LatentDataset(tmp_path / "d").record.source["parts"]] == [12, 7, 12]


def test_columns_of_different_types_are_joined_and_absent_ones_are_null(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    first = [{"image": picture, "age": 3, "size": [1, 2]}, {"image": picture, "age": None, "size": [3, 4]}]
    second = [{"image": picture, "age": 2.5, "place": "x"}]
    for name, rows in (("a", first), ("b", second)):
        encode_dataset(rows, tmp_path / name, progress=False, shuffle_seed=None)
    merge_datasets(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert_whole(tmp_path / "c")
    table = pyarrow.parquet.read_table(tmp_path / "c" / "index" / "train.parquet")
    assert table["age"].to_pylist() == [3.0, None, 2.5]
    assert table["size"].to_pylist() == [[1, 2], [3, 4], None]
    assert table["place"].to_pylist() == [None, None, "x"]


def fragments(captions: range) -> datasets.IterableDataset:
    """A stream of two fragments."""
    rows = [
        {**item, "image": {"bytes": as_bytes(Image.fromarray(item["image"])), "path": None}}
        for item in items(captions, ("ant",))
    ]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["ant"]),
            "caption": datasets.Value("string"),
            "size": datasets.Value("int64"),
        }
    )
    stored = [{**row, "label": 0} for row in rows]
    return datasets.Dataset.from_list(stored, features=features).to_iterable_dataset(num_shards=2)


@pytest.mark.slow
def test_splits_that_were_read_in_fragments_are_changed_like_others(encode_items: Encode, tmp_path: Path) -> None:
    for name, numbers, size in (("a", range(10), 3), ("b", range(10, 16), 2)):
        encode_dataset(fragments(numbers), tmp_path / name, samples_per_shard=size, sample_json=True, progress=False)
        assert_whole(tmp_path / name)
    encode_dataset(fragments(range(20, 24)), tmp_path / "b", split="val", progress=False)
    before = [contents(tmp_path / name) for name in "ab"]
    merge_datasets(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert_whole(tmp_path / "c")
    assert contents(tmp_path / "c") == before[0] | before[1]
    append_dataset(items(range(30, 33), ("dog",)), tmp_path / "a", progress=False)
    assert_whole(tmp_path / "a")
    keys = pyarrow.parquet.read_table(tmp_path / "a" / "index" / "train.parquet")["key"].to_pylist()
    assert sum("-" in key for key in keys) == 10
    remove_samples(tmp_path / "a", split="train", keys=[keys[0], keys[-1]])
    assert_whole(tmp_path / "a")
    assert len(contents(tmp_path / "a")) == 11
    remove_samples(tmp_path / "b", split="train", keys=["00001-0000001"])
    assert_whole(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_px": 16}, "settings.size_px: None and 16"),
        ({"mirror": True}, "settings.mirror: False and True"),
        ({"background": (0, 0, 0)}, r"settings.background: \[255, 255, 255\] and \[0, 0, 0\]"),
    ],
)
def test_data_sets_whose_latents_mean_something_else_are_not_joined(
    options: dict[str, object], message: str, encode_items: Encode, tmp_path: Path
) -> None:
    first = encode_items(tmp_path / "a", range(3))
    second = encode_items(tmp_path / "b", range(3), **options)
    with pytest.raises(SettingsMismatchError, match=message):
        merge_datasets(first, second, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_label_without_a_class_is_one_error(encode_items: Encode, tmp_path: Path) -> None:
    first = encode_items(tmp_path / "a", range(3), ("ant",))
    second = encode_items(tmp_path / "b", range(3), ("bee", "cow"))
    text = (second / "walloc.json").read_text()
    (second / "walloc.json").write_text(json.dumps(json.loads(text) | {"class_names": ["bee"]}))
    with pytest.raises(FormatError, match=r"train-00000\.tar: sample 00000000\d: label 1 is not the number of a class"):
        merge_datasets(first, second, tmp_path / "both")
    assert not (tmp_path / "both" / "walloc.json").exists()


def test_what_cannot_be_merged_is_said(encode_items: Encode, tmp_path: Path) -> None:
    first = encode_items(tmp_path / "a", range(3))
    encode_dataset([np.zeros((8, 8, 3), np.uint8)], tmp_path / "b", progress=False)
    with pytest.raises(FormatError, match="one part has labels and the other has none"):
        merge_datasets(first, tmp_path / "b", tmp_path / "c")
    with pytest.raises(StorageError, match="contains a data set already: choose a new folder"):
        merge_datasets(first, first, tmp_path / "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(StorageError, match="not an empty folder"):
        merge_datasets(first, first, tmp_path / "full")
    assert main(["merge", str(first), str(first), "-o", str(tmp_path / "twice")]) == 0
    assert_whole(tmp_path / "twice")
    assert len(LatentDataset(tmp_path / "twice")) == 6


def test_unfinished_files_of_a_killed_merge_go_with_the_next(encode_items: Encode, tmp_path: Path) -> None:
    first, out = encode_items(tmp_path / "a", range(3)), tmp_path / "out"
    for path in (
        ".walloc/merge.json",
        "._info.json.0123456789ab.partial",
        "data/.train-00000.tar.0123456789ab.partial",
    ):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(b"")
    merge_datasets(first, first, out)
    assert_whole(out)


@pytest.mark.slow
def test_new_pictures_come_behind_those_that_are_there(encode_items: Encode, tmp_path: Path) -> None:
    out = encode_items(tmp_path / "out", range(8), ("ant", "bee"))
    encode_items(out, range(8, 10), ("bee",), split="val")
    before, val = contents(out), contents(out, "val")
    inodes = {path: path.stat().st_ino for path in (out / "data").iterdir()}
    summary = append_dataset(items(range(20, 27), ("bee", "cow")), out, progress=False)
    assert (summary.num_samples, summary.num_added, summary.shards_made, summary.shards_kept) == (15, 7, 2, 2)
    assert_whole(out)
    expected = encode_items(tmp_path / "alone", range(20, 27), ("bee", "cow"))
    assert contents(out) == before | contents(expected)
    assert contents(out, "val") == val
    assert LatentDataset(out).manifest.class_names == ("ant", "bee", "cow")
    assert {path: path.stat().st_ino for path in inodes} == inodes
    with pytest.raises(SourceError, match=r"has these pictures already .*use again=True \(--again\)"):
        append_dataset(items(range(20, 27), ("bee", "cow")), out, progress=False)
    remove_samples(out, split="train", classes=["cow"])
    assert_whole(out)
    append_dataset(items(range(40, 42), ("dog",)), out, progress=False)
    assert_whole(out)
    assert sorted(value[3] for value in contents(out).values() if value[2] == "dog") == [40, 41]


def test_an_interrupted_append_goes_on_and_another_is_refused_until_it_is_forgotten(
    encode_items: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = encode_items(tmp_path / "out", range(4))
    before = contents(out)
    with monkeypatch.context() as patch:
        store_steps(patch, 8)
        with pytest.raises(StopError):
            append_dataset(items(range(10, 20), ("ant",)), out, progress=False)
    assert contents(out) == before
    assert (out / ".walloc" / "train.append").is_dir()
    with pytest.raises(SettingsMismatchError, match="An append of other pictures to split 'train' is unfinished"):
        append_dataset(items(range(30, 32), ("ant",)), out, progress=False)
    append_dataset(items(range(30, 32), ("ant",)), out, restart=True, progress=False)
    assert_whole(out)
    assert len(contents(out)) == 6


def test_failures_are_carried_along_and_those_of_a_split_with_a_plan_done_again(tmp_path: Path) -> None:
    pictures = make_folder(tmp_path / "pictures", classes=2, per_class=3)
    whole = (pictures / "class_1" / "002.jpg").read_bytes()
    (pictures / "class_1" / "002.jpg").write_bytes(whole[:-300] + bytes(300))
    (pictures / "class_0" / "001.jpg").write_bytes(b"")
    out = tmp_path / "out"
    encode_dataset(pictures, out, progress=False)
    failed = LatentDataset(out).record.num_failures
    assert failed >= 1
    twice = tmp_path / "twice"
    merge_datasets(out, out, twice)
    assert_whole(twice)
    assert LatentDataset(twice).record.num_failures == 2 * failed
    with pytest.raises(FormatError, match="was made from several sources, or changed, and has no plan"):
        retry_failures(pictures, twice, progress=False)
    (pictures / "class_1" / "002.jpg").write_bytes(whole)
    encode_dataset(pictures, out, overwrite=True, progress=False)
    assert main(["retry", str(pictures), str(out)]) == 0
    assert_whole(out)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["append", "merge"])
def test_stopped_before_any_write_nothing_is_lost_and_the_same_call_goes_on(
    what: str, encode_items: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = encode_items(tmp_path / "original", range(6), samples_per_shard=4)
    other = encode_items(tmp_path / "other", range(6, 11), ("bee", "dog"), samples_per_shard=4)
    before, after = contents(original), contents(original) | contents(other)

    def change(out: Path) -> None:
        if what == "append":
            append_dataset(items(range(6, 11), ("bee", "dog")), out / "a", progress=False)
        else:
            merge_datasets(out / "a", other, out / "c")

    def begin(name: str) -> Path:
        shutil.copytree(original, tmp_path / name / "a")
        return tmp_path / name

    out = begin("whole")
    with monkeypatch.context() as patch:
        steps = store_steps(patch, 10**6)
        change(out)
    result = "a" if what == "append" else "c"
    assert contents(out / result) == after
    assert len(steps) > 12
    for stop_at in range(1, len(steps), 3 if what == "merge" else 5):
        out = begin(str(stop_at))
        with monkeypatch.context() as patch:
            store_steps(patch, stop_at)
            with pytest.raises(StopError):
                change(out)
        assert contents(out / "a") in (before, after)
        try:
            change(out)
        except (SourceError, StorageError):  # it was done already, but for cleaning up
            if what == "append":
                append_dataset(items(range(50, 51), ("ant",)), out / "a", progress=False, restart=True)
                after_more = contents(out / "a")
                assert {name: after_more[name] for name in after} == after
                assert_whole(out / "a")
                continue
        assert contents(out / result) == after
        assert_whole(out / result)
