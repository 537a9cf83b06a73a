"""Tars as sources: grouped into samples as webdataset groups them, class folders as labels, nothing lost in silence."""

import gc
import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.convert.conftest import as_bytes, picture
from walloc_data import encode_dataset
from walloc_data.convert import verify_dataset
from walloc_data.errors import SourceError
from walloc_data.sources import open_source
from walloc_data.sources.remote_tars import RemoteTars
from walloc_data.sources.tar_members import TarScan, groups
from walloc_data.sources.wds import expand_urls

PNG = [as_bytes(picture(seed, width=16, height=16)) for seed in range(4)]

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def write_tar(path: Path, members: list[tuple[str, bytes | None]]) -> Path:
    """Members with None are folders."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type = tarfile.DIRTYPE
            member.size = len(data or b"")
            tar.addfile(member, io.BytesIO(data or b""))
    return path


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["a.png", "a.cls", "b.png", "b.cls"], id="plain"),
        pytest.param(["a.PNG", "a.Cls", "b.Seg.png", "b.png"], id="upper case, two dots"),
        pytest.param(["d/a.png", "d/a.cls", "e/a.png", "e/a.cls"], id="one name in two folders"),
        pytest.param(["./d.v1/a.png", "./d.v1/a.cls", "./d.v1/b.png"], id="dots in folders"),
        pytest.param(["/x/a.png", "/x/a.cls"], id="absolute"),
        pytest.param(["a.png", "b.png", "a.cls", "b.cls"], id="not adjacent"),
        pytest.param(["a.png", "b.png", "a.png"], id="a key comes again later"),
        pytest.param(["noext", "a.png", "d/noext", "a.cls", "b."], id="no extension"),
        pytest.param(["__meta__", "__info__/x.json", "a.png", "__x__y.png", "d/__y__.png"], id="metadata"),
        pytest.param(["a.png", ".hidden", "b.png"], id="hidden in the root"),
        pytest.param(["ä é.png", "ä é.cls", "日本.png"], id="Unicode"),
        pytest.param(["x" * 120 + "/" + "y" * 120 + ".png", "x" * 120 + "/" + "y" * 120 + ".cls"], id="long names"),
    ],
)
def test_members_are_grouped_as_webdataset_groups_them(names: list[str], tmp_path: Path) -> None:
    import webdataset

    path = write_tar(tmp_path / "a.tar", [(name, str(number).encode()) for number, name in enumerate(names)])
    theirs = [
        (sample["__key__"].lstrip("/"), {key: value for key, value in sample.items() if not key.startswith("__")})
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    data = path.read_bytes()
    ours = [
        (group.key.lstrip("/"), {name: data[start : start + size] for name, (start, size) in group.members.items()})
        for group in groups(path, context="a.tar")
    ]
    assert ours == theirs
    assert ours


def test_names_that_come_again_are_failures_each_where_webdataset_gives_up(tmp_path: Path) -> None:
    import webdataset

    members: list[tuple[str, bytes | None]] = [("c/0.png", PNG[0]), ("c/0.cls", b"0")]
    for number in range(4):
        members += [("d/1.png", PNG[number]), ("d/1.cls", str(number).encode())]
    members += [("d/2.png", PNG[1]), ("d/2.cls", b"1")]
    path = write_tar(tmp_path / "a.tar", members)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the file open
        with pytest.raises(ValueError, match="duplicate file name in tar file"):
            list(webdataset.WebDataset(str(path), shardshuffle=False))
        gc.collect()
    out = tmp_path / "out"
    summary = encode_dataset(f"wds:{path}", out, progress=False)
    assert (summary.num_samples, summary.num_failures) == (2, 4)
    lines = [json.loads(line) for line in (out / "failures" / "train.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["a.tar/d/1"] * 4
    assert {line["reason"] for line in lines} == {
        "4 consecutive samples of this tar have the same name 'd/1', so their labels are ambiguous: "
        "give each its own name"
    }
    assert verify_dataset(out, progress=False).problems == ()


def test_pictures_before_labels_of_one_name_are_as_many_failures_as_pictures(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [("0.png", PNG[0]), ("0.cls", b"0"), ("1.png", PNG[1]), ("1.png", PNG[2]), ("1.cls", b"1"), ("1.cls", b"0")],
    )
    source = open_source(f"wds:{path}")
    problems = [sample.problem for sample in source.stream()]
    assert len(problems) == 3
    assert problems[0] is None
    assert all("2 consecutive samples of this tar have" in str(problem) for problem in problems[1:])


def folder_tar(path: Path, *, prefix: str = "set/", classes: tuple[str, ...] = ("cat", "ant", "bee")) -> Path:
    members: list[tuple[str, bytes | None]] = [(f"{prefix}{name}", None) for name in (*classes, "dog")]
    members += [(f"{prefix}{name}/{number}.png", PNG[number]) for name in classes for number in range(2)]
    return write_tar(path, members)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "./", "set/", "a/b/"])
def test_an_archive_of_class_folders_has_the_labels_of_the_unpacked_folder(prefix: str, tmp_path: Path) -> None:
    path = folder_tar(tmp_path / "a.tar", prefix=prefix)
    source = open_source(f"wds:{path}")
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    unpacked = open_source(tmp_path / "unpacked" / prefix)
    assert source.labelled
    assert source.class_names == unpacked.class_names == ("ant", "bee", "cat", "dog")
    in_tar = {(sample.label, sample.name.rpartition("/")[2], sample.data) for sample in source.stream()}
    in_folder = {(s.label, s.name.rpartition("/")[2].removesuffix(".png"), s.data) for s in unpacked.stream()}
    assert in_tar == in_folder
    assert len(in_tar) == 6
    assert source.notes == unpacked.notes == ()
    summaries = [
        encode_dataset(given, tmp_path / given.kind, size_px=16, progress=False) for given in (source, unpacked)
    ]
    assert [summary.notes for summary in summaries] == [("1 of 4 classes without samples: dog",)] * 2
    plain = open_source(f"wds:{path}", label_column="none")
    assert (plain.labelled, plain.class_names) == (False, None)


def test_class_names_beside_the_tars_number_the_folders_if_they_are_their_names(tmp_path: Path) -> None:
    path = folder_tar(tmp_path / "a.tar")
    (tmp_path / "classnames.txt").write_text("dog\ncat\nbee\nant\n")
    source = open_source(f"wds:{path}")
    assert source.class_names == ("dog", "cat", "bee", "ant")
    assert [sample.label for sample in source.stream()] == [1, 1, 3, 3, 2, 2]
    (tmp_path / "classnames.txt").write_text("one\ntwo\n")
    source = open_source(f"wds:{path}")
    assert source.class_names == ("ant", "bee", "cat", "dog")
    assert "the file of class names does not hold all the folders' names, so it was not used" in source.notes


def test_folders_are_no_labels_where_samples_have_json_unless_asked(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | None]] = []
    for number in range(4):
        members += [(f"{number % 2:03d}/{number}.png", PNG[number]), (f"{number % 2:03d}/{number}.json", b'{"a": 1}')]
    path = write_tar(tmp_path / "a.tar", members)
    source = open_source(f"wds:{path}")
    assert not source.labelled
    assert "(--label-column folder) takes them" in source.notes[0]
    asked = open_source(f"wds:{path}", label_column="folder")
    assert asked.class_names == ("000", "001")
    assert [asked.read(index).label for index in range(4)] == [0, 1, 0, 1]
    assert asked.read(0).columns == {"a": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "cat/b.png", "dog/c.png"], "some pictures lie beside the folders cat, dog: is each a class"),
        (["x/train/b.png", "x/val/c.png"], "its folders train, val are named like splits"),
        (["x/0/b.png", "x/1/c.png", "x/2/d.png"], "each of its 3 pictures is in its own folder"),
    ],
)
def test_folders_that_may_be_no_classes_are_asked_about(names: list[str], message: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(name, PNG[0]) for name in names])
    with pytest.raises(SourceError, match=f"{message}.*--label-column none"):
        open_source(f"wds:{path}")
    assert not open_source(f"wds:{path}", label_column="none").labelled


def test_one_folder_is_no_class(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"images/{number}.png", PNG[number]) for number in range(3)])
    assert not open_source(f"wds:{path}").labelled
    with pytest.raises(SourceError, match="all its pictures are in one folder, so folders cannot be labels"):
        open_source(f"wds:{path}", label_column="folder")


def test_labels_that_do_not_follow_their_pictures_are_refused_not_dropped(tmp_path: Path) -> None:
    members = [("a.png", PNG[0]), ("b.png", PNG[1]), ("a.cls", b"0"), ("b.cls", b"1")]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(SourceError, match=r"2 samples have a label \(.cls\), but the first .* has none.*--sort=name"):
        open_source(f"wds:{path}")


def test_labels_that_are_text_take_their_numbers_from_the_class_names(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | None]] = []
    for number, name in enumerate(("dog", "cat", "cow")):
        members += [(f"{number}.png", PNG[number]), (f"{number}.json", json.dumps({"label": name}).encode())]
    path = write_tar(tmp_path / "json.tar", members)
    with pytest.raises(SourceError, match=r"labels are text, 'dog' for the first sample: put a file classnames.txt"):
        open_source(f"wds:{path}")
    plain = open_source(f"wds:{path}", label_column="none")
    assert [sample.columns for sample in plain.stream()] == [{"label": "dog"}, {"label": "cat"}, {"label": "cow"}]
    cls = [(name.replace("json", "cls"), data if "png" in name else b"cat\n") for name, data in members]
    other = write_tar(tmp_path / "cls.tar", cls)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    source = open_source(f"wds:{path}")
    assert [source.read(index).label for index in range(2)] == [1, 0]
    assert source.read(2).problem == "cannot be read: its label 'cow' is neither a number nor a class name"
    assert [sample.label for sample in open_source(f"wds:{other}").stream()] == [0, 0, 0]


def test_captions_go_along_and_other_members_are_counted(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | None]] = []
    for number in range(3):
        members += [(f"{number}.png", PNG[number]), (f"{number}.cls", b"1"), (f"{number}.txt", b"a caption \xc3\xa9")]
        members += [(f"{number}.seg.png", PNG[0]), (f"{number}.json", b'{"a": 1, "b": %d}' % number)]
    members += [("3.png", PNG[3]), ("3.cls", b"0"), ("3.json", b'{"a": 2, "new": 1}'), ("3.txt", b"x" * 70_000)]
    path = write_tar(tmp_path / "a.tar", members)
    source = open_source(f"wds:{path}")
    assert source.columns == ("a", "b", "txt")
    assert source.read(1).columns == {"a": 1, "b": 1, "txt": "a caption é"}
    assert source.notes == ("left out: other members of samples: 3 .seg.png",)
    summary = encode_dataset(source, tmp_path / "out", size_px=16, progress=False)
    assert summary.kept == ("label", "column a", "column b", "column txt")
    assert summary.notes == (
        "left out: other members of samples: 3 .seg.png",
        "left out of 1 picture: JSON field 'new', which the first sample lacks",
        "left out of 1 picture: value of column 'txt', over 64 KiB (--sample-json keeps it)",
    )
    again = encode_dataset(source, tmp_path / "out", size_px=16, progress=False)
    assert (again.new_samples, again.kept, again.notes) == (0, summary.kept, summary.notes)


STRAYS: list[tuple[str, bytes | None]] = [
    ("__MACOSX/cat/._0.png", b"junk"),
    ("cat/._0.png", b"junk"),
    ("cat/.DS_Store", b"junk"),
    ("@eaDir/x/thumb.png", PNG[0]),
    ("$RECYCLE.BIN/a.png", PNG[0]),
    ("lost+found", None),
]


def test_system_files_in_tars_are_left_out_by_name(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | None]] = [(f"{name}/0.png", PNG[0]) for name in ("cat", "dog")]
    members.append(("cat/1.png", PNG[1]))
    path = write_tar(tmp_path / "a.tar", [*STRAYS[:3], *members, *STRAYS[3:]])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("cat/2.png")
        link.type, link.linkname = tarfile.LNKTYPE, "cat/1.png"
        tar.addfile(link)
    source = open_source(f"wds:{path}")
    assert source.class_names == ("cat", "dog")
    assert sorted(sample.name for sample in source.stream()) == ["a.tar/cat/0", "a.tar/cat/1", "a.tar/dog/0"]
    assert source.notes == (
        "left out: hidden and system files and folders: "
        "1 $RECYCLE.BIN, 1 .DS_Store, 1 ._*, 1 @eaDir, 1 __MACOSX, 1 lost+found",
        "left out: members that are no plain files: 1 links",
    )


def test_remote_tars_take_class_folders_by_the_names_beside_them(tmp_path: Path) -> None:
    for number in range(2):
        folder_tar(tmp_path / f"{number}.tar")
    write_tar(tmp_path / "2.tar", [("set/cow/0.png", PNG[0]), ("set/ant/0.png", PNG[0]), *STRAYS])
    urls = [f"file://{tmp_path}/{number}.tar" for number in range(3)]
    with pytest.raises(
        SourceError, match=r"are in folders, e.g. 'set/cat/0', and the folders of remote tars .* classnames.txt"
    ):
        RemoteTars(urls, location="wds:x")
    assert not RemoteTars(urls, location="wds:x", label_column="none").labelled
    (tmp_path / "classnames.txt").write_text("ant\nbee\ncat\n")
    stream = RemoteTars(urls, location="wds:x")
    samples = list(stream.stream())
    assert stream.class_names == ("ant", "bee", "cat")
    assert [sample.label for sample in samples] == [2, 2, 0, 0, 1, 1] * 2 + [None, 0]
    assert samples[12].problem == "it has no label"
    assert sorted(samples[13].left_out) == sorted(
        f"member {name}, not a sample's"
        for name in ("__MACOSX", "._0.png", ".DS_Store", "@eaDir", "$RECYCLE.BIN", "lost+found")
    )


def test_braces_inside_braces_are_refused_not_read_twice() -> None:
    with pytest.raises(SourceError, match="braces inside braces"):
        expand_urls("a-{{0..1},5}.tar")


def test_our_shards_have_the_keys_and_members_in_webdataset_that_we_wrote(tmp_path: Path) -> None:
    import webdataset

    path = folder_tar(tmp_path / "a.tar")
    out = tmp_path / "out"
    encode_dataset(f"wds:{path}", out, size_px=16, samples_per_shard=4, mirror=True, progress=False)
    shards = sorted(str(shard) for shard in out.glob("data/*.tar"))
    scan = TarScan()
    ours = [group for shard in shards for group in groups(Path(shard), context=shard, scan=scan)]
    theirs: list[dict[str, Any]] = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in theirs] == [group.key for group in ours]
    assert sorted(group.key for group in ours) == [f"{number:09d}" for number in range(6)]
    for sample, group in zip(theirs, ours, strict=True):
        names = [name for name in sample if not name.startswith("__")]
        assert names == list(group.members) == ["webp", "mirror.webp", "cls"]
        assert Image.open(io.BytesIO(sample["webp"])).size == (4, 4)
    assert scan.notes() == ()
