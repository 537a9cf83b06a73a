"""Sources that are damaged, hostile or odd: every fault is named, and nothing is read that should not be."""

import io
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from tests.test_sources import PICTURES, write_tar
from walloc_data import encode_dataset
from walloc_data.convert import verify_dataset
from walloc_data.errors import SourceError
from walloc_data.sources import open_source
from walloc_data.sources.wds import expand_urls

NUM = 6


def six(path: Path) -> Path:
    """A tar of six pictures with labels."""
    members: list[tuple[str, bytes]] = []
    for number in range(NUM):
        members += [(f"{number}.png", PICTURES[number]), (f"{number}.cls", str(number % 2).encode())]
    write_tar(path, members)
    return path


def offset_of(path: Path, name: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def put(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def base_256(number: int) -> bytes:
    """A size as GNU tar writes those beyond eight octal digits."""
    return b"\x80" + number.to_bytes(11, "big")


def with_size(path: Path, name: str, size: bytes) -> None:
    """Give a member another size in its header, and the header a checksum that fits."""
    place = offset_of(path, name)
    put(path, place + 124, size)
    block = bytearray(path.read_bytes()[place : place + 512])
    block[148:156] = b" " * 8
    put(path, place + 148, b"%06o\0 " % sum(block))


DAMAGE: dict[str, Any] = {
    "a header's checksum": lambda path: put(path, offset_of(path, "3.png") + 10, b"\xff"),
    "a header of zeros": lambda path: put(path, offset_of(path, "3.png"), bytes(512)),
    "a cut inside a header": lambda path: os.truncate(path, offset_of(path, "3.png") + 100),
    "a cut inside a picture": lambda path: os.truncate(path, offset_of(path, "3.png") + 700),
    "a cut between samples": lambda path: os.truncate(path, offset_of(path, "3.png")),
    "a cut between members": lambda path: os.truncate(path, offset_of(path, "3.cls")),
    "a size of 2^70": lambda path: with_size(path, "3.png", base_256(2**70)),
    "a negative size": lambda path: with_size(path, "3.png", b"\xff" * 12),
    "a size beyond the end": lambda path: with_size(path, "3.png", b"77777777777\0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_tar_keeps_what_is_whole_and_says_what_is_not(kind: str, tmp_path: Path) -> None:
    path = six(tmp_path / "a.tar")
    DAMAGE[kind](path)
    summary = encode_dataset(f"wds:{path}", tmp_path / "out", progress=False)
    assert (summary.num_samples, summary.num_failures) == (3, 1)
    line = (tmp_path / "out" / "failures" / "train.jsonl").read_text()
    assert '"name": "a.tar"' in line
    assert "not a readable tar, or damaged: " in line
    assert verify_dataset(tmp_path / "out", progress=False).problems == ()


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind != "a cut between members"])
def test_a_damaged_archive_of_pictures_is_refused_and_not_read_in_part(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photos.tar"
    write_tar(path, [(f"{number}.png", PICTURES[number]) for number in range(6)])
    DAMAGE[kind](path)
    with pytest.raises(SourceError, match="not a readable tar, or damaged"):
        open_source(path)


def test_tars_put_together_with_cat_are_not_read_as_one(tmp_path: Path) -> None:
    path = six(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes() * 2)
    problems = [sample.problem for sample in open_source(f"wds:{path}").stream()]
    assert problems[:NUM] == [None] * NUM
    assert "more follows (tars that were put together with cat?)" in str(problems[NUM])


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_members_are_failures_not_other_pixels(form: str, tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("needs GNU tar")
    # A bitmap with a hole in it, which tar stores without the hole.
    (tmp_path / "0.png").write_bytes(PICTURES[0])
    with (tmp_path / "1.bmp").open("wb") as file:
        file.write(b"BM" + bytes(10))
        file.seek(2**20)
        file.write(b"end")
    options = ["--format=gnu"] if form == "gnu" else ["--format=pax", f"--sparse-version={form}"]
    made = subprocess.run(
        ["tar", "-S", *options, "-cf", "a.tar", "0.png", "1.bmp"], cwd=tmp_path, check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("needs GNU tar")
    source = open_source(f"wds:{tmp_path}/a.tar")
    assert source.read(0).problem is None
    assert source.read(1).problem == "its member .bmp is stored as a sparse file (tar --sparse), which is not read"
    assert source.num_items == 2
    assert [(sample.name, sample.problem) for sample in open_source(tmp_path / "a.tar").stream()] == [
        ("0.png", None),
        ("1.bmp", "cannot be read: it is stored as a sparse file (tar --sparse), which is not read"),
    ]


@pytest.mark.parametrize("text", ["1_0", "+1", "\u0663", "1.0", "0x1", "9" * 200])
def test_labels_are_plain_numbers(text: str, tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", [("0.png", PICTURES[0]), ("0.cls", b"1"), ("1.png", PICTURES[1]), ("1.cls", text.encode())]
    )
    source = open_source(f"wds:{tmp_path}/a.tar")
    assert source.read(0).label == 1
    assert "is neither a number nor a class name" in str(source.read(1).problem)


def test_a_first_sample_without_a_label_drops_no_labels(tmp_path: Path) -> None:
    members = [("0.png", PICTURES[0]), ("0.json", b'{"label": 1}'), ("1.png", PICTURES[1]), ("1.cls", b"1")]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(SourceError, match=r"1 samples have a label \(\.cls\), but the first with a picture has none"):
        open_source(f"wds:{tmp_path}/a.tar")
    asked = open_source(f"wds:{tmp_path}/a.tar", label_column="label")
    assert asked.notes == ("left out: other members of samples: 1 .cls",)


@pytest.mark.slow
def test_ranges_are_counted_before_they_are_written_out() -> None:
    started = time.process_time()
    for text in ("{0..999999}{0..999999}", "{0..999}" * 50, "{a,b}" * 64):
        with pytest.raises(SourceError, match="more than a million tars"):
            expand_urls(text)
    assert time.process_time() - started < 5
    assert expand_urls("{0..1}{a,b}") == ["0a", "0b", "1a", "1b"]


def rows_naming(paths: list[Path], file: Path) -> Path:
    values = {"image": [{"bytes": None, "path": str(path)} for path in paths]}
    features = datasets.Features({"image": datasets.Image()})
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not with to_parquet, which puts the files' bytes into the rows.
    pq.write_table(datasets.Dataset.from_dict(values, features=features).data.table, file)
    return file


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_name_no_files_outside_of_their_data_set(streaming: bool, tmp_path: Path) -> None:
    private, own = tmp_path / "private.png", tmp_path / "set" / "pictures" / "0.png"
    own.parent.mkdir(parents=True)
    for path in (private, own):
        path.write_bytes(PICTURES[0])
    (own.parent / "link.png").symlink_to(private)
    os.mkfifo(own.parent / "pipe.png")
    named = [own, private, own.parent / ".." / ".." / "private.png", own.parent / "link.png", Path("/dev/zero")]
    rows_naming([*named, own.parent / "pipe.png", own.parent / "gone.png"], tmp_path / "set" / "x.parquet")
    source = open_source(f"{tmp_path}/set/x.parquet", streaming=streaming)
    samples = list(source.stream())
    assert (samples[0].data, samples[0].problem) == (PICTURES[0], None)
    assert samples[0].name == "pictures/0.png"
    assert [sample.data for sample in samples[1:]] == [b""] * 6
    outside = "the row names a file outside of its data set, which is not read"
    assert [sample.problem for sample in samples[1:]] == [
        *[outside] * 4,
        "a named pipe, not a file",
        "the row names a file that is not in its folder",
    ]
    assert not any(sample.name.startswith("/") for sample in samples)


def test_rows_that_the_users_program_made_name_what_they_like(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(PICTURES[0])
    made = datasets.Dataset.from_dict({"image": [str(tmp_path / "0.png")]}).cast_column("image", datasets.Image())
    sample = open_source(made).read(0)
    assert (sample.data, sample.name) == (PICTURES[0], "0.png")
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(rows_naming([tmp_path / "0.png"], tmp_path / "set" / "x.parquet")),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert "outside of its data set" in str(open_source(loaded).read(0).problem)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_picture_that_became_a_pipe_is_a_failure(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "in" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "a" / f"{number}.png").write_bytes(PICTURES[number])
    source = open_source(tmp_path / "in")
    (tmp_path / "in" / "a" / "1.png").unlink()
    os.mkfifo(tmp_path / "in" / "a" / "1.png")
    summary = encode_dataset(source, tmp_path / "out", progress=False)
    assert (summary.num_samples, summary.num_failures) == (1, 1)
    assert "a named pipe, not a file" in (tmp_path / "out" / "failures" / "train.jsonl").read_text()


def test_a_number_of_pictures_that_no_files_can_hold_is_named_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = six(tmp_path / "a.tar")
    out = tmp_path / "out"
    encode_dataset(f"wds:{path}", out, progress=False)
    manifest = out / "walloc.json"
    manifest.write_text(manifest.read_text().replace('"num_items": 6', f'"num_items": {2**33}'))
    started = time.perf_counter()
    problems = verify_dataset(out, progress=False).problems
    assert time.perf_counter() - started < 10
    assert any(f"source.num_items is {2**33}, but its files can hold at most" in problem for problem in problems)


def test_a_header_that_asks_for_much_memory_gets_none(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(PICTURES[number])
            if number == 2:
                member.pax_headers = {"comment": "x"}
            tar.addfile(member, io.BytesIO(PICTURES[number]))
    place = path.read_bytes().index(b"././@PaxHeader")
    os.truncate(path, 2**33)  # sparse
    block = bytearray(512)
    with path.open("r+b") as file:
        file.seek(place)
        block[:] = file.read(512)
    block[124:136] = base_256(2**32)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    put(path, place, bytes(block))
    samples = list(open_source(f"wds:{path}").stream())
    assert [sample.problem for sample in samples[:2]] == [None, None]
    assert "a header of 4294967296 bytes" in str(samples[2].problem)
