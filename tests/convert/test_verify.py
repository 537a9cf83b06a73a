"""`verify_dataset` finds every kind of damage and says where it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.convert.conftest import make_folder
from walloc_data import encode_dataset
from walloc_data.convert import dataset_info, verify_dataset
from walloc_data.errors import FormatError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight samples in two shards, and one failure. Copied by every test."""
    root = tmp_path_factory.mktemp("verify")
    source = make_folder(root / "in", classes=3, per_class=3)
    (source / "class_1" / "000.jpg").write_text("broken")
    encode_dataset(source, root / "out", samples_per_shard=5, shuffle_seed=None, mirror=True, progress=False)
    return root / "out"


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def problems(out: Path) -> tuple[str, ...]:
    return verify_dataset(out, progress=False).problems


def test_a_whole_data_set_has_no_problems(out: Path) -> None:
    report = verify_dataset(out, progress=False)
    assert report.problems == ()
    assert (report.num_samples, report.num_failures, report.num_shards) == (8, 1, 2)
    assert "8 samples and 1 failure account for every picture of 1 split; 2 shards" in str(report)
    assert report.to_dict()["problems"] == []


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def member_offset(out: Path, key: str) -> int:
    rows = pq.read_table(out / "index" / "train.parquet").to_pylist()
    return next(row["offset"] for row in rows if row["key"] == key)


def test_a_flipped_bit_of_a_latent_is_found_in_its_sample(out: Path) -> None:
    flip(out / "data" / "train-00001.tar", member_offset(out, "000000006") + 40)
    found = problems(out)
    assert found[0] == f"{out}/data/train-00001.tar: its SHA-256 differs from the manifest"
    assert "sample 000000006: crc32 is " in found[1]


def test_a_flipped_bit_of_a_header_is_found_at_its_byte(out: Path) -> None:
    offset = member_offset(out, "000000001") - 512
    flip(out / "data" / "train-00000.tar", offset + 3)
    assert f"sample 000000001: no header of 000000001.webp at byte {offset}" in problems(out)[1]


def test_every_byte_of_a_shard_is_covered_by_its_checksum(out: Path) -> None:
    path = out / "data" / "train-00000.tar"
    before = path.read_bytes()
    for offset in range(0, len(before), 1999):
        flip(path, offset)
        assert problems(out), offset
        path.write_bytes(before)


def test_a_truncated_or_lost_shard_is_named(out: Path) -> None:
    path = out / "data" / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:-10240])
    assert any("train-00001.tar: " in line and "but the manifest says" in line for line in problems(out))
    path.unlink()
    found = problems(out)
    assert "train-00001.tar: No such file" in found[0]
    assert not any("neither samples nor failures" in line or "can hold at most" in line for line in found)


@pytest.mark.parametrize("damage", ["byte", "truncated", "lost", "index"])
def test_pictures_that_damage_hides_are_not_called_missing(out: Path, damage: str) -> None:
    path = out / "data" / "train-00000.tar"
    if damage == "byte":
        flip(path, member_offset(out, "000000001") + 40)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif damage == "lost":
        path.unlink()
    else:
        (out / "index" / "train.parquet").unlink()
    found = problems(out)
    assert found
    assert all("train-00000.tar: " in line or "train.parquet: No such file" in line for line in found)
    edit_json(out / "walloc.json", lambda value: value["splits"]["train"]["source"].update(num_items=11))
    assert any(": 2 pictures of the source are neither samples nor failures" in line for line in problems(out))


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_index(out: Path, column: str, row: int, value: object) -> None:
    path = out / "index" / "train.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    index = table.schema.get_field_index(column)
    pq.write_table(
        table.set_column(index, table.schema.field(column), pa.array(values, table.schema.field(column).type)), path
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("key", "000000007", "sample 000000007: key is '000000007', expected '000000002'"),
        ("shard", 1, "sample 000000002: shard is 1, expected 0"),
        ("offset", 0, "sample 000000002: offset is 0, expected"),
        ("length", 5, "sample 000000002: length is 5, expected"),
        ("mirror_offset", 1, "sample 000000002: mirror_offset is 1, expected"),
        ("label", 1, "sample 000000002: label is '0', expected '1'"),
        ("height", 41, "sample 000000002: latent shape is (12, 5, 6), expected (12, 6, 6)"),
        ("width", 47, "sample 000000002: size in pixels is (47, 40), expected (48, 40)"),
        ("crop_left", 1, "sample 000000002: crop is (1, 0, 48, 40), expected (0, 0, 48, 40)"),
        ("crop_right", 49, "sample 000000002: its crop from left 0 to right 49 is not inside width 48"),
        ("source_height", None, "sample 000000002: its crop from top 0 to bottom 40 is not inside height None"),
        ("source_index", 1, "sample 000000002: key is '000000002', expected '000000001'"),
    ],
)
def test_an_index_that_lies_is_caught(out: Path, column: str, value: object, message: str) -> None:
    edit_index(out, column, 2, value)
    assert message in problems(out)[0]


def test_an_index_of_another_length_or_form_is_caught(out: Path) -> None:
    path = out / "index" / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 7), path)
    assert any("train.parquet: ends inside data/train-00001.tar, after 7 rows" in line for line in problems(out))
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)
    assert any("has more rows than the manifest's 8 samples" in line for line in problems(out))
    pq.write_table(table.drop_columns(["label"]), path)
    assert any("its columns are" in line for line in problems(out))
    path.write_bytes(b"not parquet")
    assert any("not a readable index" in line for line in problems(out))


def test_failures_must_add_up(out: Path) -> None:
    path = out / "failures" / "train.jsonl"
    line = path.read_text()
    path.write_text("")
    found = problems(out)
    assert any("0 lines, but the manifest counts 1 failures" in line for line in found)
    assert any("1 pictures of the source are neither samples nor failures, the first at 3" in line for line in found)
    path.write_text(line.replace('"source_index": 3', '"source_index": 4'))
    assert any("line 1: source index 4 occurs twice" in line for line in problems(out))
    path.write_text("{}\n")
    assert any("line 1 is not a failure" in line for line in problems(out))


def test_statistics_and_shapes_must_be_those_of_the_latents(out: Path) -> None:
    def change(value: Any) -> None:
        row = value["splits"]["train"]["statistics"]["counts"][3]
        row[128], row[129] = row[128] + 1, row[129] - 1

    edit_json(out / "walloc.json", change)
    assert problems(out) == (
        f"{out}: split 'train': the statistics differ from those of the latents, first in channel 3",
    )


def test_files_for_other_readers_must_agree(out: Path) -> None:
    edit_json(out / "_info.json", lambda value: value["splits"]["train"]["shard_lengths"].append(1))
    edit_json(out / "index" / "train.wids.json", lambda value: value["shardlist"].pop())
    assert [line.rpartition("/")[2] for line in problems(out)] == [
        "_info.json: does not agree with the manifest",
        "train.wids.json: does not agree with the manifest",
    ]


def test_another_codec_in_the_folder_is_caught(out: Path) -> None:
    edit_json(out / "codec" / "codec.json", lambda value: value.update(encoder_sha256="0" * 64))
    assert f"{out}/codec: " in problems(out)[0]


def test_what_is_no_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no walloc\.json: not a data set of latents"):
        verify_dataset(tmp_path, progress=False)
    with pytest.raises(FormatError, match=r"no walloc\.json"):
        dataset_info(tmp_path)


def test_a_split_that_is_not_there_is_named_beside_those_that_are(out: Path) -> None:
    with pytest.raises(FormatError, match=r"no split 'val'; it has \['train'\]"):
        verify_dataset(out, split="val", progress=False)


def test_info_says_what_is_there(out: Path) -> None:
    info = dataset_info(out)
    text = str(info)
    assert "train: 8 samples, 1 failure, 2 shards" in text
    assert "latents 12x5x6" in text
    assert "3 classes" in text
    assert info.to_dict()["splits"]["train"]["num_samples"] == 8
    assert json.loads(json.dumps(info.to_dict()))["unfinished"] == {}
