"""A split that is added or gone on with takes over the data set's settings and the numbers of its classes."""

import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.convert.conftest import as_bytes, hashes, make_folder, picture
from walloc_data import LatentDataset, encode_dataset
from walloc_data.cli import main
from walloc_data.convert import verify_dataset
from walloc_data.convert.begin import with_classes
from walloc_data.errors import SettingsMismatchError
from walloc_data.sources import open_source
from walloc_data.storage import Store, read_manifest

SMALL = dict[str, Any](samples_per_shard=4, size_px=16, shuffle_seed=None, progress=False)


def test_a_split_that_is_added_needs_no_settings(pictures: Path, tmp_path: Path) -> None:
    few, out = make_folder(tmp_path / "few", per_class=2), tmp_path / "out"
    train = ["--size", "24", "--samples-per-shard", "5", "--no-shuffle", "--mirror", "--no-preview"]
    assert main(["encode", str(pictures), str(out), *train]) == 0
    assert main(["encode", str(few), str(out), "--split", "val", "--no-preview"]) == 0
    manifest = read_manifest(Store(out))
    assert (manifest.settings.size_px, manifest.settings.samples_per_shard, manifest.settings.mirror) == (24, 5, True)
    assert [shard.num_samples for shard in manifest.splits["val"].shards] == [5, 1]
    assert manifest.splits["val"].latent_shape == (12, 3, 3)
    with pytest.raises(SettingsMismatchError, match=r"settings\.size_px: 24 -> 32"):
        encode_dataset(few, out, split="test", size_px=32, progress=False)


def test_a_conversion_is_gone_on_with_without_its_settings(pictures: Path, tmp_path: Path) -> None:
    for name in ("out", "whole"):
        encode_dataset(pictures, tmp_path / name, part="1/2" if name == "out" else None, **SMALL)
    assert encode_dataset(pictures, tmp_path / "out", progress=False).num_samples == 24
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    # The only split begins from the defaults when it is overwritten.
    encode_dataset(pictures, tmp_path / "out", overwrite=True, progress=False)
    assert read_manifest(Store(tmp_path / "out")).settings.size_px is None


def test_classes_are_matched_by_their_names(pictures: Path, tmp_path: Path) -> None:
    import datasets

    out = tmp_path / "out"
    encode_dataset(pictures, out, **SMALL)
    two = make_folder(tmp_path / "two", classes=3, per_class=2)
    for path in [*(two / "class_0").iterdir()]:
        path.unlink()
    (two / "class_0").rmdir()
    encode_dataset(two, out, split="val", progress=False)
    rows = pq.read_table(out / "index" / "val.parquet").to_pylist()
    assert [row["label"] for row in rows] == [1, 1, 2, 2]
    with tarfile.open(out / "data" / "val-00000.tar") as tar:
        assert tar.extractfile(f"{rows[0]['key']}.cls").read() == b"1"  # type: ignore[union-attr]
    # The same names in another order; sources travel to other processes.
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["class_2", "class_0", "class_1"])}
    )
    images = [{"bytes": as_bytes(picture(number)), "path": None} for number in range(6)]
    turned = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2, 2, 1, 0]}, features=features)
    source = with_classes(open_source(turned), ("class_0", "class_1", "class_2"), context="out")
    assert [pickle.loads(pickle.dumps(source)).read(index).label for index in range(3)] == [2, 0, 1]
    encode_dataset(turned, out, split="test", progress=False)
    labels = {row["source_index"]: row["label"] for row in pq.read_table(out / "index" / "test.parquet").to_pylist()}
    assert [labels[index] for index in range(6)] == [2, 0, 1, 1, 0, 2]
    assert read_manifest(Store(out)).class_names == ("class_0", "class_1", "class_2")
    assert len(LatentDataset(out, split="val", cache_folder=tmp_path / "cache").subset(classes=["class_2"])) == 2
    assert verify_dataset(out, progress=False).problems == ()
    assert encode_dataset(two, out, split="val", progress=False).new_samples == 0
    with pytest.raises(SettingsMismatchError, match=r"more has classes that .* not have: 'class_3', 'class_4'\."):
        encode_dataset(make_folder(tmp_path / "more", classes=5, per_class=1), out, split="more", progress=False)


@pytest.fixture
def large_and_small(tmp_path: Path) -> Path:
    """Seven pictures of 1920 pixels, then one of 4800."""
    folder = make_folder(tmp_path / "pictures", classes=1, per_class=7)
    (folder / "class_0" / "large.png").write_bytes(as_bytes(picture(1, width=80, height=60)))
    return folder


def test_the_largest_picture_may_be_lowered_to_get_past_one(large_and_small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(large_and_small, out, part="1/2", **SMALL)
    with pytest.raises(SettingsMismatchError, match=r"cannot become 1000: split 'train' has a picture of 1920 "):
        encode_dataset(large_and_small, out, max_pixels=1000, progress=False)
    summary = encode_dataset(large_and_small, out, max_pixels=4000, progress=False)
    assert (summary.num_samples, summary.num_failures) == (7, 1)
    encode_dataset(large_and_small, tmp_path / "fresh", max_pixels=4000, **SMALL)
    assert hashes(out) == hashes(tmp_path / "fresh")
    # Raised again, it would make another shard of the second.
    with pytest.raises(SettingsMismatchError, match=r"cannot become 5000: class_0/large\.png .*80 x 60 pixels; at"):
        encode_dataset(large_and_small, out, max_pixels=5000, progress=False)
    summary = encode_dataset(large_and_small, out, max_pixels=5000, retry_failures=True, progress=False)
    assert (summary.num_samples, summary.num_failures, summary.new_samples) == (8, 0, 4)
    encode_dataset(large_and_small, tmp_path / "raised", max_pixels=5000, **SMALL)
    assert hashes(out) == hashes(tmp_path / "raised")


def test_another_release_goes_on_with_a_conversion(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, part="1/2", **SMALL)
    path = out / ".walloc" / "train" / "plan.json"
    plan = json.loads(path.read_text())
    plan["written_by"] |= {"walloc_data": "0.0.9"}
    path.write_text(json.dumps(plan))
    assert encode_dataset(pictures, out, progress=False).num_samples == 24


def test_a_release_that_writes_other_shards_does_not_go_on_with_a_conversion(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, part="1/2", **SMALL)
    path = out / ".walloc" / "train" / "plan.json"
    plan = json.loads(path.read_text())
    del plan["written_by"]["shards"]  # as the first version wrote plans
    path.write_text(json.dumps(plan))
    with pytest.raises(SettingsMismatchError, match=r"written_by\.shards: 1 -> 2\n.*overwrite the split"):
        encode_dataset(pictures, out, progress=False)
    assert encode_dataset(pictures, out, overwrite=True, progress=False).num_samples == 24


@pytest.mark.slow
def test_a_preview_that_cannot_be_drawn_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "large.png").write_bytes(as_bytes(picture(0).resize((6000, 5600))))  # more than a preview draws
    assert main(["encode", str(folder), str(tmp_path / "out"), "--json"]) == 0
    [note] = json.loads(capsys.readouterr().out)["preview_notes"]
    assert note.startswith("The data set is finished, but its preview could not be drawn (FormatError: ")
    assert main(["encode", str(folder), str(tmp_path / "out")]) == 0
    assert note in capsys.readouterr().out
    assert main(["finish", str(tmp_path / "out")]) == 0
    assert note in capsys.readouterr().out
