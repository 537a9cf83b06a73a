"""Folders and Hugging Face data sets: strays are left out by a stated rule, and what is lost is named or refused."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from tests.convert.conftest import as_bytes, make_folder, picture
from walloc_data import encode_dataset
from walloc_data.convert import dataset_info, finish_dataset, verify_dataset
from walloc_data.errors import SourceError, StorageError
from walloc_data.sources import open_source
from walloc_data.sources.stray import is_stray

PNG = [as_bytes(picture(seed, width=16, height=16)) for seed in range(6)]


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG[0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in (".hidden", "._a.jpg", ".DS_Store", "__MACOSX", "@eaDir", "@EADIR", "lost+found")),
        *((name, True) for name in ("$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "#recycle")),
        *((name, False) for name in ("cat", "a.b", "__init__", "_cat", "#1", "@home", ".", "..", "lost", "$100")),
    ],
)
def test_the_rule_for_strays(name: str, expected: bool) -> None:
    assert is_stray(name) is expected


def test_what_systems_leave_is_no_class_and_no_picture(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", classes=2, per_class=2)
    clean = open_source(root)
    put(root, "__MACOSX/class_0/._000.jpg", "@eaDir/000.jpg/SYNOPHOTO_THUMB_M.jpg", "lost+found/a.jpg")
    put(root, "$RECYCLE.BIN/b.png", "class_0/@eaDir/000.jpg/thumb.jpg", "class_1/._000.jpg", "class_1/.hidden.png")
    put(root, "class_1/caption.txt", "class_1/README")
    (root / "class_2").mkdir()
    source = open_source(root)
    assert source.class_names == ("class_0", "class_1", "class_2")
    assert source.identity == clean.identity
    assert [sample.name for sample in source.stream()] == [sample.name for sample in clean.stream()]
    assert source.notes == (
        "left out: hidden and system files and folders: "
        "2 @eaDir, 1 $RECYCLE.BIN, 1 ._*, 1 .hidden.png, 1 __MACOSX, 1 lost+found",
        "left out: files that are not named like pictures: 1 .txt, 1 without a suffix",
    )
    (root / "class_1" / "000.jpg").write_text("broken")
    (root / "class_1" / "001.jpg").write_text("broken")
    out = tmp_path / "out"
    summary = encode_dataset(root, out, size_px=16, progress=False)
    assert summary.notes == (*source.notes, "2 of 3 classes without samples: class_1, class_2")
    info = dataset_info(out)
    assert info.manifest is not None
    assert list(info.manifest.splits["train"].source["notes"]) == list(summary.notes)
    assert str(info).splitlines()[-3:] == [f"  {note}" for note in summary.notes]
    assert dataset_info(encode_parts(root, tmp_path / "parts")).manifest == info.manifest


def encode_parts(root: Path, out: Path) -> Path:
    for part in ("1/2", "2/2"):
        encode_dataset(root, out, size_px=16, part=part, progress=False)
    finish_dataset(str(out))
    return out


def test_a_flat_folder_beside_system_folders_is_flat(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "@eaDir/a.png/thumb.png")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    source = open_source(tmp_path)
    assert (source.labelled, source.num_items) == (False, 2)


def test_data_sets_of_latents_in_a_source_are_left_out_and_are_no_source(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", classes=2, per_class=2)
    encode_dataset(root, tmp_path / "old", size_px=16, progress=False)
    put(tmp_path / "old", "preview.png")
    (tmp_path / "old").rename(root / "old")
    (root / "class_0" / "begun" / ".walloc").mkdir(parents=True)
    put(root, "class_0/begun/preview.png")
    source = open_source(root)
    assert (source.class_names, source.num_items) == (("class_0", "class_1"), 4)
    assert source.notes == ("left out: data sets of latents: class_0/begun, old",)
    with pytest.raises(SourceError, match="this is an encoded data set"):
        open_source(root / "old")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_named_like_a_picture_is_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    source = open_source(tmp_path)
    assert source.num_items == 1
    assert source.notes == ("left out: 1 pipe or device, which is not read",)
    (tmp_path / "z.jpg").symlink_to("/dev/zero")
    assert open_source(tmp_path).notes == ("left out: 2 pipes or devices, which are not read",)


def test_a_link_that_leads_back_to_itself_is_left_out_and_named(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "loop").symlink_to("loop")
    source = open_source(tmp_path)
    assert source.num_items == 1
    assert source.notes == ("left out: links that lead back to themselves: loop",)


@pytest.mark.parametrize("target", ["loop", "loop/x"])
def test_a_destination_behind_a_loop_of_links_is_refused(tmp_path: Path, target: str) -> None:
    put(tmp_path / "in", "a.png")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match=r"loop.*: cannot be written \(Too many levels of symbolic links"):
        encode_dataset(tmp_path / "in", tmp_path / target, size_px=16, progress=False)


def test_a_manifest_that_is_a_loop_of_links_is_not_taken_for_an_absent_one(tmp_path: Path) -> None:
    put(tmp_path / "in", "a.png")
    encode_dataset(tmp_path / "in", tmp_path / "out", size_px=16, progress=False)
    (tmp_path / "out" / "walloc.json").unlink()
    (tmp_path / "out" / "walloc.json").symlink_to("walloc.json")
    with pytest.raises(StorageError, match=r"walloc\.json: Too many levels of symbolic links"):
        dataset_info(tmp_path / "out")


def rows(**columns: Any) -> datasets.Dataset:
    features = {"image": datasets.Image()}
    for name, values in columns.items():
        features[name] = datasets.Value("int64" if isinstance(values[0], int) else "string")
    images = [{"bytes": data, "path": None} for data in PNG]
    return datasets.Dataset.from_dict({"image": images, **columns}, features=datasets.Features(features))


def test_a_transform_is_refused_with_what_to_do() -> None:
    data = rows(label=["a", "a", "b", "b", "a", "b"])
    turned = data.with_transform(lambda batch: batch)
    with pytest.raises(SourceError, match=r"has a transform \(with_transform\).*map\(\).*with_format\(None\)"):
        open_source(turned)
    assert open_source(turned.with_format(None)).num_items == 6
    assert open_source(data.with_format("numpy")).num_items == 6


@pytest.mark.parametrize("values", [[f"caption {number}" for number in range(6)], list(range(6))])
def test_a_column_with_another_value_in_each_row_holds_no_labels(values: list[Any]) -> None:
    data = rows(caption=values)
    with pytest.raises(SourceError, match=r"column 'caption' has a different value in each of 6 rows.*--label-column"):
        open_source(data, label_column="caption")
    assert not open_source(data).labelled
    classes = data.cast_column("caption", datasets.ClassLabel(names=[str(value) for value in values]))
    assert open_source(classes, label_column="caption").labelled


def test_labels_that_most_rows_have_for_themselves_are_noted() -> None:
    data = rows(caption=["a", "b", "c", "d", "d", "d"])
    notes = open_source(data, label_column="caption").notes
    assert notes == ("labels 'caption': 4 classes in 6 rows; are they classes?",)
    assert open_source(rows(label=["a", "b", "c", "c", "c", "c"])).notes == ()


def test_values_of_columns_that_are_lost_are_counted(tmp_path: Path) -> None:
    data = rows(label=["a", "a", "b", "b", "a", "b"], text=["x" * 70_000, "y", "z" * 70_000, None, "", "x"])
    out = tmp_path / "out"
    summary = encode_dataset(data, out, size_px=16, samples_per_shard=2, progress=False)
    assert summary.kept == ("label (2 classes)", "column text")
    assert summary.notes == ("left out of 2 pictures: value of column 'text', over 64 KiB (--sample-json keeps it)",)
    streamed = data.cast_column("label", datasets.ClassLabel(names=["a", "b"])).to_iterable_dataset()
    other = encode_dataset(streamed, tmp_path / "stream", size_px=16, samples_per_shard=2, progress=False)
    assert other.notes == summary.notes
    kept = encode_dataset(data, tmp_path / "kept", size_px=16, sample_json=True, shuffle_seed=None, progress=False)
    assert kept.notes == ()
    with tarfile.open(tmp_path / "kept" / "data" / "train-00000.tar") as tar:
        metas = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith("json")]  # type: ignore[arg-type]
    assert [meta["columns"]["text"] for meta in metas] == ["x" * 70_000, "y", "z" * 70_000, None, "", "x"]
    assert pq.read_table(tmp_path / "kept" / "index" / "train.parquet")["text"].to_pylist() == [
        None, "y", None, None, "", "x",
    ]  # fmt: skip
    assert verify_dataset(out, progress=False).problems == ()
