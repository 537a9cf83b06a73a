"""Archives of class folders, and captions beside pictures: what users have, read as the unpacked folder is."""

import io
import json
import pickle
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from walloc_data.errors import SourceError
from walloc_data.sources import find_splits, open_source


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 10, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


Files = dict[str, bytes]
CLASSES: Files = {
    "photos/bee/2.png": png(2),
    "photos/ant/1.png": png(1),
    "photos/ant/deep/0.png": png(0),
    "photos/ant/1.txt": b"an ant\n",
    "photos/LICENSE": b"x",
    "photos/notes.txt": b"no picture's",
    "__MACOSX/photos/ant/._1.png": b"x",
}
FOLDERS = ("photos/cow",)  # empty


def unpacked(root: Path, files: Files = CLASSES) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    for folder in FOLDERS if files is CLASSES else ():
        (root / folder).mkdir(parents=True)
    return root / "photos"


def zipped(path: Path, files: Files = CLASSES, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for folder in FOLDERS if files is CLASSES else ():
            archive.writestr(f"{folder}/", b"")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: Files = CLASSES, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for folder in FOLDERS if files is CLASSES else ():
            member = tarfile.TarInfo(folder)
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "zip": lambda path: zipped(path / "x.zip"),
    "stored zip": lambda path: zipped(path / "X.ZIP", method=zipfile.ZIP_STORED),
    "tar": lambda path: tarred(path / "x.tar"),
    "tar.gz": lambda path: tarred(path / "x.tar.gz", mode="w:gz"),
    "tgz": lambda path: tarred(path / "x.tgz", mode="w:gz"),
    "tar.bz2": lambda path: tarred(path / "x.tar.bz2", mode="w:bz2"),
    "txz": lambda path: tarred(path / "x.txz", mode="w:xz"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_an_archive_is_read_as_the_folder_in_it(kind: str, tmp_path: Path) -> None:
    folder = open_source(unpacked(tmp_path / "unpacked"))
    (tmp_path / "archive").mkdir()
    archive = MAKERS[kind](tmp_path / "archive")
    source = open_source(str(archive))
    assert (source.class_names, source.columns) == (("ant", "bee", "cow"), ("txt",))
    assert (source.identity, source.num_items, source.kind) == (folder.identity, 3, "archive")
    travelled = pickle.loads(pickle.dumps(source))
    for index in (2, 0, 1):
        found, expected = travelled.read(index), folder.read(index)
        assert (found.name, found.data, found.label, found.columns) == (
            expected.name,
            expected.data,
            expected.label,
            expected.columns,
        )
        assert found.version == travelled.version(index)
        assert found.problem is None
    assert dict(travelled.read(0).columns) == {"txt": "an ant"}
    assert "left out: files that are not named like pictures: 1 .txt, 1 without a suffix" in source.notes


def test_what_a_compressed_tar_was_decompressed_to_goes_with_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = open_source(MAKERS["tgz"](tmp_path))
    travelled = pickle.loads(pickle.dumps(source))
    assert travelled.read(0).problem is None
    del travelled
    assert len(list(tmp_path.glob("walloc_data-*/archive.tar"))) == 1
    assert not any(str(tmp_path) in note for note in source.notes)  # notes are published
    del source
    assert not list(tmp_path.glob("walloc_data-*"))
    (tmp_path / "bad.tgz").write_bytes(b"no archive")
    with pytest.raises(SourceError, match=r"bad.tgz: not a readable compressed tar"):
        open_source(tmp_path / "bad.tgz")
    assert not list(tmp_path.glob("walloc_data-*"))


SPLITS: Files = {
    "im/train/ant/0.png": png(0),
    "im/train/bee/1.png": png(1),
    "im/val/bee/2.png": png(2),
    "im/list.csv": b"x",
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tgz"])
def test_splits_in_a_folder_or_an_archive_are_found_and_opened(kind: str, tmp_path: Path) -> None:
    if kind == "folder":
        unpacked(tmp_path, SPLITS)
        spec = str(tmp_path / "im")
    else:
        spec = str(zipped(tmp_path / "x.zip", SPLITS) if kind == "zip" else tarred(tmp_path / f"x.{kind}", SPLITS))
        if kind == "tgz":
            tarred(tmp_path / "x.tgz", SPLITS, "w:gz")
    with pytest.raises(
        SourceError, match=r"\['train', 'val'\] are named like splits.*or encode all of them \(--split all"
    ):
        open_source(spec)
    splits = find_splits(spec)
    assert splits == {"train": (f"{spec}/train", "train"), "val": (f"{spec}/val", "val")}
    train, val = (open_source(path) for path, _ in splits.values())
    assert (train.class_names, train.num_items) == (("ant", "bee"), 2)
    assert (val.class_names, val.read(0).name) == (("bee",), "bee/2.png")
    assert list(find_splits(spec, names=["val"])) == ["val"]
    with pytest.raises(SourceError, match=r"no splits \['test'\]; it has \['train', 'val'\]"):
        find_splits(spec, names=["test"])


def test_splits_of_dictionaries_saved_data_sets_and_parquet_are_found(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(0), "path": None}], "label": [0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant"])})
    both = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(rows, features=features) for name in ("test", "train")}
    )
    assert [open_source(spec, split=split).num_items for spec, split in find_splits(both).values()] == [1, 1]
    assert open_source(both, split="test").class_names == ("ant",)
    both.save_to_disk(tmp_path / "saved")
    for name, split in both.items():
        split.to_parquet(tmp_path / "parquet" / f"{name}-00000-of-00001.parquet")
    for folder in ("saved", "parquet"):
        splits = find_splits(tmp_path / folder)
        assert list(splits) == ["train", "test"]
        assert [open_source(spec, split=split).num_items for spec, split in splits.values()] == [1, 1]


def test_sources_without_splits_say_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"not named like splits .*: \['ant', 'bee', 'cow'\]; encode each by itself"):
        find_splits(unpacked(tmp_path))
    with pytest.raises(SourceError, match="its splits are unknown"):
        find_splits("wds:x.tar")
    with pytest.raises(SourceError, match="a list has no splits"):
        find_splits([png(0)])
    with pytest.raises(SourceError, match="encode it by itself, with another --split and --source-split a b"):
        find_splits({"a b": [png(0)]})


def test_damaged_and_strange_members_are_failures_each(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {f"a/{number}.png": png(number) for number in range(4)})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("b/4.png", png(4))
        link = zipfile.ZipInfo("b/5.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, b"../a/0.png")
        places = [(info.header_offset, len(info.filename), info.compress_size) for info in archive.infolist()]
    data = bytearray(path.read_bytes())
    first, second = places[:2]
    data[first[0] + 30 + first[1] + first[2] // 2] ^= 255
    data[second[0]] ^= 1
    path.write_bytes(bytes(data))
    central = data.rindex(b"a/2.png") - 46
    assert data[central : central + 4] == b"PK\x01\x02"
    data[central + 8] |= 1  # says that it is encrypted
    path.write_bytes(bytes(data))
    source = open_source(path)
    problems = [sample.problem for sample in source.stream()]
    assert str(problems[0]).startswith("cannot be read: the archive is damaged here")
    assert problems[1] == "cannot be read: the archive is damaged here"
    assert problems[2] == "cannot be read: it is encrypted"
    assert problems[3] is None
    assert problems[4] == "cannot be read: it is compressed by another method than deflate"
    assert "links and other special members" in source.notes[0]
    (tmp_path / "bad.zip").write_bytes(b"PK" * 100)
    with pytest.raises(SourceError, match=r"bad\.zip: not a readable ZIP file"):
        open_source(tmp_path / "bad.zip")


def test_a_zip_member_that_claims_little_and_unpacks_to_much_is_cut_off(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", {"a/0.png": bytes(2**24), "b/1.png": png(1)})
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = (100).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    source = open_source(path)
    assert source.read(0).problem == "cannot be read: the archive is damaged here: length or CRC-32 differ"
    assert source.read(1).problem is None


def test_a_bare_tar_of_webdataset_samples_keeps_their_labels(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar", {"0.png": png(0), "0.cls": b"3", "1.png": png(1), "1.cls": b"4"})
    source = open_source(path)
    assert (source.kind, [sample.label for sample in source.stream()]) == ("wds", [3, 4])
    with pytest.raises(SourceError, match="files in an archive have no columns"):
        open_source(zipped(tmp_path / "x.zip"), image_column="png")
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(SourceError, match=r"neither a folder nor an archive \(.zip, .tar, .tar.gz"):
        open_source(tmp_path / "x.rar")


def img2dataset(root: Path) -> Path:
    """Make the files that img2dataset's output format "files" leaves."""
    for shard in range(2):
        (root / f"0000{shard}").mkdir(parents=True)
        (root / f"0000{shard}_stats.json").write_text("{}")
        datasets.Dataset.from_dict({"url": ["x"]}).to_parquet(root / f"0000{shard}.parquet")
        for number in range(2):
            stem = root / f"0000{shard}" / f"0000{shard}000{number}"
            stem.with_suffix(".png").write_bytes(png(number))
            stem.with_suffix(".txt").write_text(f"caption {shard} {number}")
            stem.with_suffix(".json").write_text(
                json.dumps({"caption": "x", "width": 10 + number, "status": "success"})
            )
    return root


def test_captions_and_json_beside_pictures_are_columns_and_numbered_folders_no_classes(tmp_path: Path) -> None:
    source = open_source(img2dataset(tmp_path))
    assert (source.labelled, source.num_items) == (False, 4)
    assert source.columns == ("caption", "status", "txt", "width")
    samples = list(source.stream())
    assert [sample.columns["txt"] for sample in samples] == ["caption 0 0", "caption 0 1", "caption 1 0", "caption 1 1"]
    assert [sample.columns["width"] for sample in samples] == [10, 11, 10, 11]
    assert any("as img2dataset writes them" in note for note in source.notes)
    assert any("2 .json, 2 .parquet" in note for note in source.notes)
    labelled = open_source(tmp_path, label_column="folder")
    assert (labelled.class_names, labelled.read(3).label) == (("00000", "00001"), 1)


def test_captions_in_class_folders_leave_the_classes(tmp_path: Path) -> None:
    source = open_source(unpacked(tmp_path))
    assert source.class_names == ("ant", "bee", "cow")
    assert [dict(sample.columns) for sample in source.stream()] == [{"txt": "an ant"}, {"txt": None}, {"txt": None}]


def test_a_changed_caption_is_another_source_and_broken_json_a_failure(tmp_path: Path) -> None:
    root = img2dataset(tmp_path)
    identity = open_source(root).identity
    (root / "00001" / "000010001.txt").write_text("longer than it was")
    assert open_source(root).identity != identity
    (root / "00000" / "000000001.json").write_text("{'a'")
    (root / "00001" / "000010000.json").write_text('{"caption": "x", "extra": 1}')
    samples = list(open_source(root).stream())
    assert str(samples[1].problem).startswith("cannot be read: its JSON: not valid JSON")
    assert samples[2].left_out == ("JSON field 'extra', which the first sample lacks",)
    assert samples[2].columns["width"] is None


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_captions_and_json_in_an_archive_are_those_of_the_unpacked_folder(tmp_path: Path, suffix: str) -> None:
    root = img2dataset(tmp_path / "in")
    for name in ("a", "b"):
        shutil.copytree(root / "00000", tmp_path / "pictures" / name)
    kind = {".zip": "zip", ".tar": "tar", ".tar.gz": "gztar"}[suffix]
    shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "pictures")
    folder, archive = open_source(tmp_path / "pictures"), open_source(tmp_path / f"packed{suffix}")
    assert archive.columns == folder.columns == ("caption", "status", "txt", "width")
    assert [(s.name, s.label, dict(s.columns), s.data) for s in archive.stream()] == [
        (s.name, s.label, dict(s.columns), s.data) for s in folder.stream()
    ]
