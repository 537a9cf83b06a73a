"""A picture in another's place, of the same name and length, is named: on resuming, after the end, and by verify."""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.convert.conftest import as_bytes, hashes, make_folder, picture
from tests.test_sources import write_tar
from walloc_data import encode_dataset
from walloc_data.cli import main
from walloc_data.convert import verify_dataset
from walloc_data.errors import FormatError, SettingsMismatchError
from walloc_data.sources import open_source

OPTIONS: dict[str, Any] = {"samples_per_shard": 4, "shuffle_seed": None, "progress": False}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve pictures of one length each, two shards' worth of them encoded below `part`."""
    folder = make_folder(tmp_path / "pictures", classes=2, per_class=6)
    longest = max(path.stat().st_size for path in folder.rglob("*.jpg"))
    for path in folder.rglob("*.jpg"):
        path.write_bytes(path.read_bytes().ljust(longest, b"\0"))  # what follows a JPEG's end is not looked at
    return folder


def replace(path: Path, other: Path, *, keep_date: bool = False) -> None:
    """Put another picture of the same length in a picture's place."""
    status = path.stat()
    assert other.stat().st_size == status.st_size
    path.write_bytes(other.read_bytes())
    times = (status.st_atime_ns, status.st_mtime_ns if keep_date else status.st_mtime_ns + 10**9)
    os.utime(path, ns=times)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["1/2", None], ids=["unfinished", "finished"])
def test_a_picture_that_was_replaced_after_it_was_encoded_is_named(
    source: Path, tmp_path: Path, part: str | None
) -> None:
    out = tmp_path / "out"
    encode_dataset(source, out, part=part, **OPTIONS)
    before = hashes(out)
    replace(source / "class_0" / "002.jpg", source / "class_1" / "001.jpg")
    with pytest.raises(
        SettingsMismatchError,
        match=r"a picture of its source has changed since it was encoded:\n  "
        r"class_0/002\.jpg: (\d+ bytes of \S+ \S+ UTC)"
        r" -> (?!\1)\d+ bytes of .*\nRestore the pictures that were encoded, or overwrite the split \(--overwrite\)",
    ):
        encode_dataset(source, out, **OPTIONS)
    assert hashes(out) == before
    assert encode_dataset(source, out, overwrite=True, **OPTIONS).num_samples == 12
    assert verify_dataset(out, split="train", source=open_source(source), progress=False).problems == ()


def test_a_picture_of_another_length_is_named_too(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(source, out, **OPTIONS)
    path = source / "class_0" / "002.jpg"
    path.write_bytes(path.read_bytes() + b"longer")
    for options in ({}, {"retry_failures": True}, {"repair": True}):
        with pytest.raises(
            SettingsMismatchError, match=r"since it was encoded:\n  class_0/002\.jpg: \d+ bytes of .* -> "
        ):
            encode_dataset(source, out, **OPTIONS, **options)
    path.write_bytes(path.read_bytes()[: -len(b"longer")])
    (source / "class_0" / "003.jpg").rename(source / "class_0" / "003x.jpg")
    with pytest.raises(
        SettingsMismatchError, match=r"source\.identity: .*\n  \(a hash of the names and lengths of all pic"
    ):
        encode_dataset(source, out, **OPTIONS)
    (source / "class_1" / "005.jpg").unlink()  # then positions say nothing, and the number is what has changed
    with pytest.raises(SettingsMismatchError, match=r"\n  source\.num_items: 12 -> 11\n"):
        encode_dataset(source, out, **OPTIONS)


def test_a_picture_that_is_not_encoded_yet_may_change(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(source, out, part="1/3", **OPTIONS)
    replace(source / "class_0" / "005.jpg", source / "class_1" / "001.jpg")
    encode_dataset(source, out, **OPTIONS)
    encode_dataset(source, tmp_path / "fresh", **OPTIONS)
    assert hashes(out) == hashes(tmp_path / "fresh")


def test_a_copy_with_other_dates_is_the_same_source_and_gives_the_same_shards(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy" / "pictures", copy_function=shutil.copyfile))
    out = tmp_path / "out"
    encode_dataset(source, out, part="1/2", **OPTIONS)
    assert encode_dataset(copy, out, **OPTIONS).num_samples == 12
    encode_dataset(copy, tmp_path / "fresh", **OPTIONS)
    published = [{path: digest for path, digest in hashes(end).items() if not path.startswith(".walloc")}
                 for end in (out, tmp_path / "fresh")]  # fmt: skip
    assert published[0] == published[1]


def test_a_tar_that_was_written_anew_with_another_picture_is_named(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        members = [(f"{number:03d}.bmp", as_bytes(picture(number), "BMP")) for number in range(6)]
        members[1] = ("001.bmp", as_bytes(picture(seed), "BMP"))
        write_tar(tmp_path / "a.tar", members)
        os.utime(tmp_path / "a.tar", ns=(seed * 10**9, seed * 10**9))

    write(1)
    out = tmp_path / "out"
    encode_dataset(f"wds:{tmp_path}/a.tar", out, **OPTIONS)
    os.utime(tmp_path / "a.tar", ns=(7, 7))  # touched: the same bytes
    assert encode_dataset(f"wds:{tmp_path}/a.tar", out, **OPTIONS).new_samples == 0
    write(9)
    with pytest.raises(SettingsMismatchError, match=r"a picture .* encoded:\n  a\.tar/001: \d+ bytes of 1970"):
        encode_dataset(f"wds:{tmp_path}/a.tar", out, **OPTIONS)


def test_verify_compares_every_byte_of_the_source(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    encode_dataset(source, out, **OPTIONS)
    command = ["verify", str(out), "--split", "train", "--source", str(source)]
    assert main(command) == 0
    replace(source / "class_1" / "003.jpg", source / "class_0" / "000.jpg", keep_date=True)
    assert main(command) == 1
    said = capsys.readouterr().out
    assert f"{source}: class_1/003.jpg: its bytes differ from those encoded\n" in said
    assert "restore them, or encode the split again with --overwrite" in said
    assert "--repair" not in said  # which would be refused
    assert main(["verify", str(out), "--source", str(source)]) == 1
    assert "name the split that was encoded from it with --split" in capsys.readouterr().err
    (source / "class_1" / "005.jpg").unlink()
    found = verify_dataset(out, split="train", source=open_source(source), progress=False)
    assert found.problems == (f"{source}: 11 pictures, and 12 when it was encoded",)


def test_verify_reads_the_split_of_the_source_that_it_verifies(source: Path, tmp_path: Path) -> None:
    (tmp_path / "folders" / "train").mkdir(parents=True)
    (tmp_path / "folders" / "val").symlink_to(source)
    encode_dataset(source, tmp_path / "of-folder", split="val", **OPTIONS)
    found = verify_dataset(tmp_path / "of-folder", split="val", source=tmp_path / "folders", progress=False)
    assert found.problems == ()
    command = ["verify", str(tmp_path / "of-folder"), "--split", "val", "--source", str(tmp_path / "folders")]
    assert main(command) == 0
    pictures = [(as_bytes(picture(i)), i % 2) for i in range(4)]
    splits = {"train": pictures[:1], "val": pictures[1:]}
    encode_dataset(splits, tmp_path / "out", split="val", **OPTIONS)
    assert verify_dataset(tmp_path / "out", split="val", source=splits, progress=False).problems == ()
    found = verify_dataset(tmp_path / "out", split="val", source={"val": pictures[:3]}, progress=False)
    assert "its bytes differ from those encoded" in found.problems[0]


def test_rows_without_a_record_of_the_source_are_not_compared(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(source, out, part="1/2", **OPTIONS)
    for path in (out / ".walloc" / "train").glob("*.parquet"):  # as versions before wrote them
        pq.write_table(pq.read_table(path).drop_columns(["source_version", "source_crc32"]), path)
    replace(source / "class_0" / "002.jpg", source / "class_1" / "001.jpg")
    assert encode_dataset(source, out, **OPTIONS).num_samples == 12
    for path in (out / ".walloc" / "train").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.select([name for name in table.column_names if not name.startswith("source_v")]), path)
    with pytest.raises(FormatError, match="was made by a version that recorded nothing of its source"):
        verify_dataset(out, split="train", source=open_source(source), progress=False)
