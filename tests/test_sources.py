"""Sources: real folders, real `datasets` objects, real tars; one contract for all, and errors that help."""

import io
import json
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from walloc_data.errors import SourceError
from walloc_data.sources import Source, open_source
from walloc_data.sources.base import PackedStrings, json_value
from walloc_data.sources.reading import read_file
from walloc_data.sources.wds import expand_urls

NUM = 7
CLASSES = ("ant", "bee", "cow")


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [png(seed) for seed in range(NUM)]
LABELS = [0, 0, 0, 1, 1, 2, 2]
CAPTIONS = [f"caption {number}" for number in range(NUM)]


def rows() -> dict[str, list[Any]]:
    return {
        "image": [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(PICTURES)],
        "label": LABELS,
        "caption": CAPTIONS,
        "blob": [b"bytes"] * NUM,
    }


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(CLASSES)),
        "caption": datasets.Value("string"),
        "blob": datasets.Value("binary"),
    }
)


def dataset() -> datasets.Dataset:
    return datasets.Dataset.from_dict(rows(), features=FEATURES)


def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    for number, (data, label) in enumerate(zip(PICTURES, LABELS, strict=True)):
        (root / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        (root / CLASSES[label] / f"{number}.png").write_bytes(data)
    return root


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def tars(tmp_path: Path) -> Path:
    root = tmp_path / "tars"
    for shard, numbers in enumerate((range(4), range(4, NUM))):
        members = []
        for number in numbers:
            meta = json.dumps({"caption": CAPTIONS[number]}).encode()
            members += [
                (f"{number:03d}.png", PICTURES[number]),
                (f"{number:03d}.cls", str(LABELS[number]).encode()),
                (f"{number:03d}.json", meta),
            ]
        write_tar(root / f"x-{shard}.tar", members)
    (root / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def saved(tmp_path: Path) -> Path:
    dataset().save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def parquet(tmp_path: Path) -> Path:
    (tmp_path / "parquet").mkdir(parents=True)
    dataset().to_parquet(str(tmp_path / "parquet" / "train-00000-of-00001.parquet"))
    return tmp_path / "parquet"


MAKERS: dict[str, Callable[[Path], Source]] = {
    "folder": lambda path: open_source(folder(path)),
    "folder:": lambda path: open_source(f"folder:{folder(path)}"),
    "saved": lambda path: open_source(saved(path)),
    "parquet folder": lambda path: open_source(parquet(path)),
    "parquet glob": lambda path: open_source(f"parquet:{parquet(path)}/*.parquet"),
    "dataset": lambda path: open_source(dataset()),
    "stream of parquet": lambda path: open_source(f"parquet:{parquet(path)}/*.parquet", streaming=True),
    "iterable dataset": lambda path: open_source(dataset().to_iterable_dataset()),
    "saved, streamed": lambda path: open_source(saved(path), streaming=True),
    "tars": lambda path: open_source(f"wds:{tars(path)}/x-{{0..1}}.tar"),
    "tars by glob": lambda path: open_source(f"wds:{tars(path)}/x-*.tar"),
    "tars in a folder": lambda path: open_source(f"wds:{tars(path)}"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.parametrize("kind", MAKERS)
def test_every_source_gives_the_same_pictures_labels_and_names(kind: str, tmp_path: Path) -> None:
    source = MAKERS[kind](tmp_path)
    samples = list(source.stream())
    assert [sample.data for sample in samples] == PICTURES
    assert [sample.label for sample in samples] == LABELS
    assert source.class_names == CLASSES
    assert source.labelled
    assert all(sample.problem is None for sample in samples)
    if "folder" in kind and "parquet" not in kind and "tars" not in kind:
        assert source.columns == ()
        assert samples[5].name == "cow/5.png"
    else:
        assert source.columns == ("caption",)
        assert [dict(sample.columns) for sample in samples] == [{"caption": text} for text in CAPTIONS]


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if "stream" not in kind and "iterable" not in kind])
def test_positions_are_read_in_any_order_also_after_a_pickle(kind: str, tmp_path: Path) -> None:
    source = MAKERS[kind](tmp_path)
    assert source.num_items == NUM
    assert source.read(6).data == PICTURES[6]
    travelled = pickle.loads(pickle.dumps(source))
    for index in (3, 0, 6):
        assert travelled.read(index) == source.read(index)
        assert travelled.read(index).data == PICTURES[index]


@pytest.mark.parametrize("kind", ["stream of parquet", "iterable dataset"])
def test_streams_say_that_they_are(kind: str, tmp_path: Path) -> None:
    source = MAKERS[kind](tmp_path)
    assert source.num_items is None
    assert source.kind == "hf-stream"
    with pytest.raises(TypeError, match="read in fragments, so that it has no positions"):
        source.read(0)


@pytest.mark.parametrize("kind", MAKERS)
def test_identity_is_the_contents_not_the_place(kind: str, tmp_path: Path) -> None:
    first = MAKERS[kind](tmp_path / "a").identity
    assert MAKERS[kind](tmp_path / "b").identity == first


def test_identity_changes_with_a_name_a_size_or_a_row(tmp_path: Path) -> None:
    root = folder(tmp_path)
    identities = {open_source(root).identity}
    (root / "ant" / "new.png").write_bytes(png(99))
    identities.add(open_source(root).identity)
    (root / "ant" / "new.png").write_bytes(png(99) + b"\0")
    identities.add(open_source(root).identity)
    (root / "ant" / "new.png").rename(root / "ant" / "other.png")
    identities.add(open_source(root).identity)
    assert len(identities) == 4
    whole, shorter = open_source(dataset()), open_source(dataset().select(range(6)))
    assert whole.identity != shorter.identity


def test_left_out_columns_are_noted(tmp_path: Path) -> None:
    source = open_source(dataset())
    assert source.notes == ("left out: columns that hold bytes, media or arrays: blob",)
    assert source.describe()["columns"] == ["caption"]


def test_pictures_reach_us_undecoded(tmp_path: Path) -> None:
    broken = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"not a picture", "path": None}]}, features=datasets.Features({"image": datasets.Image()})
    )
    sample = open_source(broken).read(0)
    assert sample.data == b"not a picture"
    assert sample.name == "0"
    assert not open_source(broken).labelled


def test_rows_without_picture_or_label_are_problems(tmp_path: Path) -> None:
    values = rows()
    values["image"][1] = None
    values["image"][2] = {"bytes": None, "path": str(tmp_path / "x.png")}
    values["label"] = [0, 0, 0, -1, 1, 2, None]
    source = open_source(datasets.Dataset.from_dict(values, features=FEATURES))
    problems = [source.read(index).problem for index in range(NUM)]
    assert problems[1] == "the row has no picture"
    assert problems[2] == "the row names a file that is not in its folder"
    assert (
        problems[3]
        == "label -1 is not in [0, 3), the numbers of the classes; label_column='none' encodes without labels"
    )
    assert problems[6] == "it has no label; label_column='none' encodes without labels"
    assert [problems[index] for index in (0, 4, 5)] == [None] * 3
    without = open_source(datasets.Dataset.from_dict(values, features=FEATURES), label_column="none")
    assert not without.labelled
    assert without.class_names is None
    assert without.read(3).problem is None


def test_text_labels_become_sorted_classes() -> None:
    values = datasets.Dataset.from_dict(
        {"image": rows()["image"], "label": ["cow", "ant", "cow", "bee", "ant", "bee", "cow"]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    )
    source = open_source(values)
    assert source.class_names == CLASSES
    assert [source.read(index).label for index in range(NUM)] == [2, 0, 2, 1, 0, 1, 2]
    with pytest.raises(SourceError, match="a stream does not tell all of them"):
        open_source(values.to_iterable_dataset())


def test_several_candidates_ask_for_a_choice() -> None:
    two = dataset().add_column("other", LABELS).cast_column("other", datasets.ClassLabel(names=list(CLASSES)))
    assert open_source(two).class_names == CLASSES  # "label" is plain enough
    renamed = two.rename_column("label", "fine")
    with pytest.raises(SourceError, match=r"several columns of labels, \['fine', 'other'\]: name one"):
        open_source(renamed)
    assert [open_source(renamed, label_column="fine").read(index).label for index in range(NUM)] == LABELS
    pair = dataset().add_column("mask", rows()["image"]).cast_column("mask", datasets.Image())
    with pytest.raises(SourceError, match=r"several columns of pictures.*--image-column"):
        open_source(pair)
    assert open_source(pair, image_column="image").notes[0].endswith("blob, mask")
    assert open_source(dataset(), image_column="blob").read(0).data == b"bytes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "picture"}, r"no column 'picture'; it has \['blob', 'caption', 'image', 'label'\]"),
        ({"image_column": "caption"}, "column 'caption' holds .*, not pictures"),
        ({"label_column": "klass"}, "no column 'klass'"),
        ({"label_column": "blob"}, "column 'blob' holds .*, not labels"),
    ],
)
def test_wrong_columns_are_named_beside_the_right_ones(options: dict[str, str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(dataset(), **options)  # type: ignore[arg-type]


def test_splits_of_a_saved_dictionary_are_chosen_by_name(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": dataset(), "test": dataset().select(range(3))})
    both.save_to_disk(str(tmp_path / "both"))
    assert open_source(tmp_path / "both", split="test").num_items == 3
    with pytest.raises(SourceError, match=r"no split 'val'; it has \['test', 'train'\].*--source-split"):
        open_source(tmp_path / "both", split="val")
    assert open_source(both, split="test").num_items == 3
    with pytest.raises(SourceError, match=r"a DatasetDict without a split 'val'; it has \['test', 'train'\]"):
        open_source(both, split="val")


def test_no_network_is_an_error_that_says_what_works_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        SourceError, match=r"hf:owner/absent: the Hub does not answer|hf:owner/absent: cannot be loaded"
    ):
        open_source("hf:owner/absent")
    with pytest.raises(SourceError, match="expected hf:NAME"):
        open_source("hf:a/b/c/d")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "absent", "no such folder. Sources are a folder, an archive, hf:NAME"),
        (lambda path: "parquet:/nowhere/*.parquet", "no such file"),
        (lambda path: "wds:/nowhere/x.tar", "no such file: /nowhere/x.tar"),
        (lambda path: "wds:/nowhere/x-{5..2}.tar", r"\{5..2\} is not a range of numbers"),
        (lambda path: tars(path), r"holds tars; for WebDataset tars write 'wds:"),
        (lambda path: path, "no pictures below it"),
        (lambda path: 5, "a source is a path, a URL, a datasets.Dataset or a sequence of pictures, not int"),
    ],
)
def test_a_source_that_is_none_says_what_one_is(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(make(tmp_path))


def test_folders_named_like_splits_are_not_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "ant").mkdir(parents=True)
        (tmp_path / split / "ant" / "1.png").write_bytes(PICTURES[0])
    with pytest.raises(SourceError, match=r"\['train', 'val'\] are named like splits, not classes: name one of them"):
        open_source(tmp_path)
    assert open_source(tmp_path / "train").class_names == ("ant",)


def test_a_flat_folder_is_unlabelled_and_a_mixed_one_asks(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in (10, 2):
        (flat / f"{number}.PNG").write_bytes(PICTURES[0])
    (flat / "notes.txt").write_text("x")
    (flat / ".hidden.png").write_bytes(b"")
    source = open_source(flat)
    assert not source.labelled
    assert [source.read(index).name for index in range(2)] == ["10.PNG", "2.PNG"]
    assert source.notes == (
        "left out: hidden and system files and folders: 1 .hidden.png",
        "left out: files that are not named like pictures: 1 .txt",
    )
    (flat / "ant").mkdir()
    (flat / "ant" / "1.png").write_bytes(PICTURES[1])
    with pytest.raises(SourceError, match=r"2 pictures lie beside 1 folders.*label_column='none'"):
        open_source(flat)
    assert open_source(flat, label_column="none").num_items == 3


def test_folders_are_sorted_by_class_then_path_and_empty_classes_count(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "bat").mkdir()
    (root / "ant" / "deep").mkdir()
    (root / "ant" / "deep" / "a.png").write_bytes(PICTURES[0])
    (root / "ant-eater").mkdir()
    (root / "ant-eater" / "a.png").write_bytes(PICTURES[0])
    source = open_source(root)
    assert source.class_names == ("ant", "ant-eater", "bat", "bee", "cow")
    names = [sample.name for sample in source.stream()]
    assert names == [
        *("ant/0.png", "ant/1.png", "ant/2.png", "ant/deep/a.png", "ant-eater/a.png"),
        *("bee/3.png", "bee/4.png", "cow/5.png", "cow/6.png"),
    ]
    assert [sample.label for sample in source.stream()] == [0, 0, 0, 0, 1, 3, 3, 4, 4]


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    root = folder(tmp_path / "x")
    (root / "dog").symlink_to(root / "ant")
    (root / "ant" / "loop").symlink_to(root)
    assert open_source(root).num_items == NUM + 3


def test_names_that_are_not_unicode_are_read(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(PICTURES[0])
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    sample = open_source(tmp_path).read(0)
    assert (sample.name, sample.data) == ("caf�.png", PICTURES[0])


def test_tars_take_labels_from_json_or_none(tmp_path: Path) -> None:
    members = []
    for number in range(3):
        meta = json.dumps({"label": number, "extra": {"a": [1, 2.5, None]}, "odd": float("nan")}).encode()
        members += [(f"dir.v1/{number}.jpg", PICTURES[number]), (f"dir.v1/{number}.json", meta)]
    write_tar(tmp_path / "a.tar", members)
    source = open_source(f"wds:{tmp_path}/a.tar")
    assert [source.read(index).label for index in range(3)] == [0, 1, 2]
    assert source.class_names is None
    assert source.read(1).columns["extra"] == {"a": [1, 2.5, None]}
    assert np.isnan(source.read(1).columns["odd"])
    assert source.read(1).name == "a.tar/dir.v1/1"
    plain = open_source(f"wds:{tmp_path}/a.tar", label_column="none")
    assert not plain.labelled
    assert set(plain.columns) == {"extra", "label", "odd"}
    with pytest.raises(SourceError, match=r"has no label 'class'; its members are \['jpg', 'json'\]"):
        open_source(f"wds:{tmp_path}/a.tar", label_column="class")
    with pytest.raises(SourceError, match=r"has no tiff among its members"):
        open_source(f"wds:{tmp_path}/a.tar", image_column="tiff")


def test_damaged_samples_of_tars_are_problems_not_the_end(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            ("0.png", PICTURES[0]),
            ("0.cls", b"0"),
            ("0.json", b"{}"),
            ("1.cls", b"1"),
            ("2.png", PICTURES[2]),
            ("2.cls", b"two"),
            ("3.png", PICTURES[3]),
            ("3.cls", b"-1"),
            ("4.seg.png", PICTURES[4]),
            ("4.cls", b"1"),
            ("5.png", PICTURES[5]),
        ],
    )
    source = open_source(f"wds:{tmp_path}/a.tar")
    problems = [source.read(index).problem for index in range(6)]
    assert problems[0] is None
    assert problems[1] == "no picture among its members ['cls']"
    assert str(problems[2]).startswith("cannot be read: its label 'two' is neither a number nor a class name")
    assert problems[3] == "label -1 is not the number of a class, an integer of at least 0"
    assert str(problems[4]).startswith("no picture among its members")
    assert problems[5] == "it has no label"


def test_a_damaged_or_compressed_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"x" * 1000)
    with pytest.raises(SourceError, match=r"bad.tar: not a readable tar"):
        open_source(f"wds:{tmp_path}/bad.tar")
    write_tar(tmp_path / "good.tar.gz", [("0.png", PICTURES[0])], mode="w:gz")
    with pytest.raises(SourceError, match="compressed tars cannot be read by position: decompress them"):
        open_source(f"wds:{tmp_path}/good.tar.gz")
    write_tar(tmp_path / "text.tar", [("0.txt", b"hello")])
    with pytest.raises(SourceError, match="has no picture among its members"):
        open_source(f"wds:{tmp_path}/text.tar")


def test_ranges_and_lists_expand_in_order() -> None:
    assert expand_urls("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_urls("{x,y}-{0..1}.tar::z.tar") == ["x-0.tar", "x-1.tar", "y-0.tar", "y-1.tar", "z.tar"]


def test_columns_become_json_or_null() -> None:
    assert json_value({"a": (1, 2.0, float("inf")), "b": b"bytes", "c": "x"}) == {
        "a": [1, 2.0, float("inf")],
        "b": None,
        "c": "x",
    }
    assert json_value(np.float32(0.5)) == 0.5
    assert json_value("x" * 2**20) is None
    assert json_value([0.1] * 300_000) is None


def test_a_million_names_cost_their_bytes() -> None:
    names = PackedStrings(f"class/{number:07d}.jpg" for number in range(1000))
    assert len(names) == 1000
    assert (names[0], names[999]) == ("class/0000000.jpg", "class/0000999.jpg")
    assert len(pickle.dumps(names)) < 1000 * (17 + 8) + 1000
    with pytest.raises(IndexError):
        names[1000]


def test_a_split_whose_labels_are_withheld_says_how_to_go_on() -> None:
    values = rows() | {"label": [-1] * NUM}
    withheld = datasets.Dataset.from_dict(values, features=FEATURES)
    with pytest.raises(SourceError, match="the first label is -1, as in test splits without labels"):
        open_source(withheld)
    assert open_source(withheld, label_column="none").num_items == NUM


def test_a_small_picture_takes_little_memory_to_read(tmp_path: Path) -> None:
    """And not the two gigabytes that a picture may have at most."""
    path = tmp_path / "a.png"
    path.write_bytes(bytes(1000))
    tracemalloc.start()
    try:
        data, _ = read_file(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert data == bytes(1000)


def test_an_open_source_takes_no_options_of_opening() -> None:
    opened = open_source([png(0), png(1)])
    assert open_source(opened, split="val") is opened
    for options in ({"image_column": "a"}, {"label_column": "none"}, {"keep_pictures": ["mask"]}, {"streaming": True}):
        with pytest.raises(SourceError, match=rf"already open: pass {next(iter(options))} to the call that opens it"):
            open_source(opened, **options)  # type: ignore[arg-type]
