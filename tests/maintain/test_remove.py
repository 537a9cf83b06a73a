"""Samples, classes and splits are removed: what stays has the same latents, what goes leaves nothing behind."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.convert.conftest import StopError, make_folder, store_steps
from tests.maintain.conftest import assert_whole, contents
from walloc_data import LatentDataset, encode_dataset
from walloc_data.cli import main
from walloc_data.convert import verify_dataset
from walloc_data.errors import CorruptShardError, FormatError, SettingsMismatchError
from walloc_data.maintain import remove_samples, remove_split

Encode = Callable[..., Path]


def key_of(out: Path, number: int) -> str:
    """The key of the picture at a position of the source."""
    return f"{number:09d}"


def test_samples_are_removed_by_key_and_the_rest_stays_as_it_was(encode_items: Encode, tmp_path: Path) -> None:
    out = encode_items(tmp_path / "out", range(23), mirror=True)
    before = contents(out)
    shards = {path.name: path.stat() for path in (out / "data").iterdir()}
    record = LatentDataset(out).record
    gone = {7, 11, 12}
    summary = remove_samples(out, split="train", keys=[key_of(out, number) for number in gone])
    assert (summary.num_samples, summary.num_removed) == (20, 3)
    assert_whole(out)
    assert contents(out) == {name: value for name, value in before.items() if value[3] not in gone}
    kept = [name for name, status in shards.items() if (out / "data" / name).stat().st_ino == status.st_ino]
    assert len(kept) == summary.shards_kept
    assert len(kept) + summary.shards_made == len(shards) == 5
    assert summary.shards_made <= 3
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for number in gone:
        assert f"{number:09d}.webp".encode() not in everything
    now = LatentDataset(out).record
    difference = np.array(record.statistics.counts) - np.array(now.statistics.counts)
    assert difference.sum() == 3 * 12 * 4 * 5
    assert (now.source["num_removed"], now.source["num_items"]) == (3, 23)


def test_a_class_is_removed_and_the_others_keep_their_numbers(encode_items: Encode, tmp_path: Path) -> None:
    out = encode_items(tmp_path / "out", range(12))
    before = contents(out)
    remove_samples(out, split="train", classes=["bee"])
    assert_whole(out)
    assert LatentDataset(out).manifest.class_names == ("ant", "bee", "cow")
    assert contents(out) == {name: value for name, value in before.items() if value[2] != "bee"}
    remove_samples(out, split="train", classes=[0])
    assert_whole(out)
    assert {value[2] for value in contents(out).values()} == {"cow"}
    assert LatentDataset(out).record.source["num_removed"] == 8


def test_whole_shards_go_without_any_being_written(encode_items: Encode, tmp_path: Path) -> None:
    out = encode_items(tmp_path / "out", range(15), shuffle_seed=None)
    summary = remove_samples(out, split="train", keys=[key_of(out, number) for number in range(5, 10)])
    assert (summary.shards_made, summary.shards_kept, summary.num_samples) == (0, 2, 10)
    assert_whole(out)
    assert sorted(value[3] for value in contents(out).values()) == [*range(5), *range(10, 15)]


def test_unfinished_files_of_a_killed_change_go_with_the_next(encode_items: Encode, tmp_path: Path) -> None:
    """One killed while its new files get their usual names leaves an unfinished link."""
    out = encode_items(tmp_path / "out", range(15), shuffle_seed=None)
    for folder in (out, *(out / name for name in ("data", "index", "failures", "codec"))):
        (folder / ".train-00003.tar.0123456789ab.partial").write_bytes(b"")
    remove_samples(out, split="train", keys=[key_of(out, 0)])
    assert_whole(out)


def test_pictures_are_removed_by_their_names_in_the_source(tmp_path: Path) -> None:
    pictures, out = make_folder(tmp_path / "pictures"), tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=10, progress=False)
    (tmp_path / "names.txt").write_text("class_0/003.jpg\nclass_2/007.jpg\n")
    assert main(["remove", str(out), "--split", "train", "--names-from", str(tmp_path / "names.txt")]) == 0
    assert_whole(out)
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"class_0/003.jpg" not in everything
    with pytest.raises(SettingsMismatchError, match="exists already and has no plan to resume"):
        encode_dataset(pictures, out, progress=False)
    encode_dataset(pictures, out, samples_per_shard=10, overwrite=True, progress=False)
    assert_whole(out)
    assert len(LatentDataset(out)) == 24


def test_what_cannot_be_removed_is_said_and_nothing_changes(
    encode_items: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = encode_items(tmp_path / "out", range(6))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for options, message in (
        ({}, "nothing to remove: pass keys"),
        ({"keys": ["000000001", "none", "x"]}, "no sample whose key is 'none', 'x'. Nothing was changed"),
        ({"names": ["absent"]}, "no sample whose source_name is 'absent'"),
        ({"classes": ["dog"]}, r"no class 'dog'; it has \['ant', 'bee', 'cow'\]"),
        ({"classes": ["ant", "bee", "cow"]}, "these are all samples of split 'train': remove the split"),
    ):
        with pytest.raises(FormatError, match=message):
            remove_samples(out, split="train", **options)  # type: ignore[arg-type]
    (out / "walloc.json").write_text((out / "walloc.json").read_text().replace('"bee"', '"ant"'))
    with pytest.raises(
        FormatError, match=r"2 classes are named 'ant': give the keys .* or in Python the labels \[0, 1\]"
    ):
        remove_samples(out, split="train", classes=["ant"])
    (out / "walloc.json").write_bytes(before[out / "walloc.json"])
    with pytest.raises(FormatError, match="no split 'val'"):
        remove_samples(out, split="val", keys=["000000001"])
    with pytest.raises(FormatError, match="'train' is the only split: delete the data set instead"):
        remove_split(out, split="train")
    assert main(["remove", str(tmp_path / "absent"), "--split", "train"]) == 1
    assert "no walloc.json" in capsys.readouterr().err
    assert not (tmp_path / "absent").exists()
    assert {path: path.read_bytes() for path in before} == before


def test_a_damaged_shard_that_must_be_written_anew_stops_and_nothing_changes(
    encode_items: Encode, tmp_path: Path
) -> None:
    out = encode_items(tmp_path / "out", range(10), shuffle_seed=None)
    shard = out / "data" / "train-00001.tar"
    data = bytearray(shard.read_bytes())
    data[2000] ^= 1
    shard.write_bytes(bytes(data))
    manifest = (out / "walloc.json").read_bytes()
    with pytest.raises(CorruptShardError, match=r"does not match the manifest.*Nothing was changed"):
        remove_samples(out, split="train", keys=["000000007"])
    assert (out / "walloc.json").read_bytes() == manifest
    remove_samples(out, split="train", keys=["000000002"])  # of the other shard
    problems = verify_dataset(out, progress=False).problems
    assert problems
    assert all("train-00001.tar" in problem for problem in problems[:1])


def test_a_split_is_removed_with_all_its_files(encode_items: Encode, tmp_path: Path) -> None:
    out = encode_items(tmp_path / "out", range(6))
    encode_items(out, range(6, 9), split="val")
    before = contents(out)
    assert remove_split(out, split="val").num_removed == 3
    assert_whole(out)
    assert contents(out) == before
    assert not [path for path in out.rglob("*val*") if path.is_file()]
    assert "val" not in (out / "README.md").read_text().partition("---")[2].partition("---")[0].replace("eval", "")
    encode_items(out, range(6, 9), split="val")
    assert_whole(out)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["samples", "split"])
def test_stopped_before_any_write_the_split_is_the_old_or_the_new_one(
    what: str, encode_items: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(out: Path) -> None:
        if what == "samples":
            remove_samples(out, split="train", keys=["000000001", "000000002"])
        else:
            remove_split(out, split="val")

    original = encode_items(tmp_path / "original", range(8), samples_per_shard=4)
    encode_items(original, range(8, 10), split="val", samples_per_shard=4)
    before, out = contents(original), shutil.copytree(original, tmp_path / "whole")
    with monkeypatch.context() as patch:
        steps = store_steps(patch, 10**6)
        change(out)
    after = contents(out)
    splits = set(LatentDataset(out).manifest.splits)
    assert len(steps) > 8
    for stop_at in range(0, len(steps), 2):  # the files of one step are written by two or three calls
        out = shutil.copytree(original, tmp_path / str(stop_at))
        with monkeypatch.context() as patch:
            store_steps(patch, stop_at)
            with pytest.raises(StopError):
                change(out)
        found = contents(out)
        assert found in (before, after)
        if set(LatentDataset(out).manifest.splits) == splits and found == after:  # the change was made
            remove_samples(out, split="train", keys=["000000003"])
        else:
            change(out)
        assert_whole(out)
