"""Conversions from end to end: what is written, and that nothing but the inputs decides its bytes."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests import warm
from tests.convert.conftest import as_bytes, hashes, make_folder, picture
from walloc_data import encode_dataset
from walloc_data.convert import Progress, decode_dataset, finish_dataset, verify_dataset
from walloc_data.convert.lock import conversion_lock
from walloc_data.errors import (
    BusyError,
    ConversionError,
    CorruptShardError,
    FormatError,
    SettingsMismatchError,
    SourceError,
    StorageError,
)
from walloc_data.format import EncodeSettings, Manifest
from walloc_data.latents import decode_webp, unpack
from walloc_data.sources import open_source
from walloc_data.storage import Store

Check = Callable[[Path], None]


def manifest_of(out: Path) -> Manifest:
    return Manifest.from_json((out / "walloc.json").read_bytes(), context="walloc.json")


def whole(out: Path) -> None:
    assert verify_dataset(out, progress=False).problems == ()


@pytest.mark.slow
def test_two_workers_make_the_same_bytes_as_one_even_in_a_script_without_a_main_guard(
    pictures: Path, tmp_path: Path, same_as_reference: Check
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from walloc_data import encode_dataset\n"
        f"print(encode_dataset({str(pictures)!r}, {str(tmp_path / 'out')!r}, workers=2, samples_per_shard=5))\n"
    )
    result = warm.run([script], check=True)
    assert result.stdout.count("24 samples and 0 failures in 5 shards") == 1
    same_as_reference(tmp_path / "out")
    whole(tmp_path / "out")


def test_what_one_writer_began_another_does_not_finish(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=5, part="1/2", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr("walloc_data.webp.WRITER_VERSION", "of another time")
        with pytest.raises(SettingsMismatchError, match=r"written_by\.webp_writer: \w+ -> of another time"):
            encode_dataset(pictures, out, samples_per_shard=5, part="2/2", progress=False)
    encode_dataset(pictures, out, samples_per_shard=5, part="2/2", progress=False)
    finish_dataset(out)
    monkeypatch.setattr("walloc_data.webp.WRITER_VERSION", "of another time")
    assert encode_dataset(pictures, out, samples_per_shard=5, progress=False).new_samples == 0  # it stays as it is


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_gpu_makes_the_same_bytes(pictures: Path, tmp_path: Path, same_as_reference: Check, workers: int) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=5, device="cuda", workers=workers, progress=False)
    same_as_reference(out)


def test_parts_in_any_order_make_the_same_bytes(pictures: Path, tmp_path: Path, same_as_reference: Check) -> None:
    out = tmp_path / "out"
    for part in ("3/3", "1/3"):
        summary = encode_dataset(pictures, out, samples_per_shard=5, part=part, progress=False)
        assert summary.part == part
    assert not (out / "walloc.json").exists()
    with pytest.raises(
        ConversionError, match=r"2 of 5 shards of split 'train' are missing: 1, 4\. Encode the missing parts"
    ):
        finish_dataset(out)
    encode_dataset(pictures, out, samples_per_shard=5, part="2/3", progress=False)
    summaries = finish_dataset(out)
    assert summaries["train"].num_samples == 24
    same_as_reference(out)


def test_running_again_does_nothing_and_changes_nothing(
    pictures: Path, tmp_path: Path, same_as_reference: Check
) -> None:
    for expected in (24, 0):
        summary = encode_dataset(pictures, tmp_path / "out", samples_per_shard=5, progress=False)
        assert summary.new_samples == expected
        assert summary.num_samples == 24
    assert "nothing to do" in str(summary)
    same_as_reference(tmp_path / "out")


def test_a_lost_shard_or_mark_is_made_again(pictures: Path, tmp_path: Path, same_as_reference: Check) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=5, progress=False)
    (out / "data" / "train-00001.tar").unlink()
    (out / ".walloc" / "train" / "00003.json").unlink()
    (out / "walloc.json").unlink()
    summary = encode_dataset(pictures, out, samples_per_shard=5, progress=False)
    assert summary.new_samples == 10
    same_as_reference(out)


def test_leftovers_of_killed_runs_are_cleaned(pictures: Path, tmp_path: Path, same_as_reference: Check) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=5, part="1/2", progress=False)
    (out / "data" / ".train-00001.tar.x.partial").write_bytes(b"half")
    (out / ".walloc" / "staging" / "train-1-of-9" / "worker-0").mkdir(parents=True)
    (out / ".walloc" / "staging" / "train-1-of-1" / "worker-0").mkdir(parents=True)
    encode_dataset(pictures, out, samples_per_shard=5, progress=False)
    same_as_reference(out)
    assert not (out / ".walloc" / "staging").exists()


@pytest.mark.parametrize("sample_json", [False, True])
def test_latents_are_the_codecs_and_members_are_in_order(
    pictures: Path, tmp_path: Path, codec: object, *, sample_json: bool
) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=7, sample_json=sample_json, progress=False)
    ends = ("webp", "cls", "json") if sample_json else ("webp", "cls")
    source = open_source(pictures)
    seen = set()
    rows = {row["key"]: row for row in pq.read_table(out / "index" / "train.parquet").to_pylist()}
    for number in range(4):
        with tarfile.open(out / "data" / f"train-{number:05d}.tar") as tar:
            members = tar.getmembers()
            contents = {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
        keys = list(dict.fromkeys(member.name.partition(".")[0] for member in members))
        assert [member.name for member in members] == [f"{k}.{end}" for k in keys for end in ends]
        for member in members:
            if member.name.endswith(".webp"):
                row = rows[member.name.removesuffix(".webp")]
                assert (row["offset"], row["length"], row["shard"]) == (member.offset_data, member.size, number)
        for key in keys:
            sample = source.read(int(key))
            seen.add(int(key))
            with Image.open(pictures / sample.name) as image:
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
            latent = unpack(decode_webp(contents[f"{key}.webp"]))
            assert np.array_equal(latent, codec.encode(pixels)[0].numpy())  # type: ignore[attr-defined]
            assert contents[f"{key}.cls"] == str(sample.label).encode()
            if sample_json:
                assert json.loads(contents[f"{key}.json"]) == {
                    "height": 40,
                    "width": 48,
                    "padding": [0, 0, 0, 0],
                    "source_index": int(key),
                    "name": sample.name,
                }
            assert rows[key]["label"] == sample.label
            assert rows[key]["source_name"] == sample.name
    assert seen == set(range(24))


def test_the_manifest_says_what_happened(pictures: Path, tmp_path: Path, codec: object) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=10, progress=False)
    manifest = manifest_of(out)
    record = manifest.splits["train"]
    assert manifest.codec == codec.spec  # type: ignore[attr-defined]
    assert manifest.settings == EncodeSettings(samples_per_shard=10)
    assert manifest.class_names == ("class_0", "class_1", "class_2")
    assert [shard.name for shard in record.shards] == [f"data/train-0000{i}.tar" for i in range(3)]
    assert (record.num_samples, record.num_failures, record.latent_shape) == (24, 0, (12, 5, 6))
    assert record.labelled
    assert record.source["num_items"] == 24
    assert record.source["shuffled"] is True
    assert set(manifest.written_by) == {"walloc_data", "shards", "webp_writer", "pillow", "libwebp", "libjpeg"}
    assert sum(map(sum, record.statistics.counts)) == 24 * 12 * 5 * 6


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Ten pictures of four shapes, and three files that are none."""
    folder = make_folder(tmp_path / "mixed", classes=2, per_class=3, width=48, height=40)
    (folder / "class_0" / "small.png").write_bytes(as_bytes(picture(50, width=5, height=3)))
    (folder / "class_0" / "line.png").write_bytes(as_bytes(picture(51, width=1, height=33)))
    (folder / "class_1" / "odd.png").write_bytes(as_bytes(picture(52, width=61, height=45)))
    (folder / "class_1" / "tall.png").write_bytes(as_bytes(picture(53, width=16, height=400)))
    (folder / "class_0" / "text.jpg").write_text("not a picture")
    (folder / "class_1" / "empty.png").write_bytes(b"")
    (folder / "class_1" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    return folder


def test_every_picture_is_a_sample_or_a_failure(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = encode_dataset(mixed, out, samples_per_shard=4, progress=False)
    assert (summary.num_samples, summary.num_failures) == (10, 3)
    assert "Failures are listed in failures/train.jsonl" in str(summary)
    lines = [json.loads(line) for line in (out / "failures" / "train.jsonl").read_text().splitlines()]
    assert {line["name"]: line["reason"] for line in lines} == {
        "class_0/text.jpg": "not a picture in a supported format",
        "class_1/empty.png": "0 bytes",
        "class_1/gone.jpg": "a link to a file that is not there",
    }
    assert manifest_of(out).splits["train"].latent_shape is None
    whole(out)


@pytest.mark.slow
def test_broken_pictures_do_not_change_with_the_workers(mixed: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        encode_dataset(mixed, tmp_path / str(workers), samples_per_shard=2, workers=workers, progress=False)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


def test_pictures_come_back_at_their_own_size(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(mixed, out, samples_per_shard=4, progress=False)
    written = decode_dataset(out, tmp_path / "decoded")
    assert len(written) == 10
    source = open_source(mixed)
    for path in written:
        with Image.open(path) as decoded, Image.open(mixed / source.read(int(path.stem)).name) as original:
            assert decoded.size == original.size
            error = np.asarray(decoded).astype(float) - np.asarray(original.convert("RGB"))
            assert np.sqrt((error**2).mean()) < 45, path.name


def test_named_samples_alone_are_decoded(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, progress=False)
    written = decode_dataset(out, tmp_path / "decoded", keys=["000000003", "000000020"])
    assert sorted(path.name for path in written) == ["000000003.png", "000000020.png"]
    with pytest.raises(FormatError, match="split 'train' \\(24 samples\\): no sample '000000099'; keys look like '0"):
        decode_dataset(out, tmp_path / "decoded", keys=["000000099"])


def test_a_sample_that_is_damaged_is_named_and_not_decoded(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, shuffle_seed=None, progress=False)
    shard = out / "data" / "train-00000.tar"
    data = bytearray(shard.read_bytes())
    data[512 + 100] ^= 1  # in the first sample's picture
    shard.write_bytes(data)
    with pytest.raises(
        CorruptShardError, match=r"tar: sample 000000000: its bytes differ from those that were encoded"
    ):
        decode_dataset(out, tmp_path / "decoded")
    assert len(decode_dataset(out, tmp_path / "decoded", keys=["000000003"])) == 1


def test_a_shard_of_broken_pictures_alone_leaves_no_file(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", classes=1, per_class=4)
    for number in (0, 1):
        (folder / "class_0" / f"{number:03d}.jpg").write_text("broken")
    out = tmp_path / "out"
    summary = encode_dataset(folder, out, samples_per_shard=2, shuffle_seed=None, progress=False)
    assert (summary.num_samples, summary.num_failures, summary.num_shards) == (2, 2, 1)
    assert [path.name for path in (out / "data").iterdir()] == ["train-00001.tar"]
    assert pq.read_table(out / "index" / "train.parquet")["shard"].to_pylist() == [0, 0]
    whole(out)
    assert encode_dataset(folder, out, samples_per_shard=2, shuffle_seed=None, progress=False).new_samples == 0


@pytest.mark.slow
def test_on_error_stop_names_the_first_broken_picture(mixed: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        with pytest.raises(ConversionError, match=r"class_\d/\S+ \(source index \d+\): .*Stopped because of"):
            encode_dataset(mixed, tmp_path / str(workers), on_error="stop", workers=workers, progress=False)
        assert not list(tmp_path.glob(f"{workers}/data/*"))


def test_max_failures_stops_a_hopeless_run_and_can_be_raised(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        ConversionError, match=r"3 pictures could not be encoded, more than max_failures=2\.(.|\n)*empty"
    ):
        encode_dataset(mixed, out, samples_per_shard=2, max_failures=2, progress=False)
    with pytest.raises(ConversionError, match="more than max_failures=2"):
        encode_dataset(mixed, out, samples_per_shard=2, max_failures=2, progress=False)
    summary = encode_dataset(mixed, out, samples_per_shard=2, max_failures=3, progress=False)
    assert summary.num_failures == 3


def test_size_makes_squares_of_one_shape(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(mixed, out, size_px=32, progress=False)
    assert manifest_of(out).splits["train"].latent_shape == (12, 4, 4)
    whole(out)


def test_mirrored_latents_are_those_of_the_mirrored_picture(mixed: Path, tmp_path: Path, codec: object) -> None:
    out = tmp_path / "out"
    encode_dataset(mixed, out, mirror=True, progress=False)
    whole(out)
    source = open_source(mixed)
    for row in pq.read_table(out / "index" / "train.parquet").to_pylist():
        data = (out / "data" / "train-00000.tar").read_bytes()
        found = unpack(decode_webp(data[row["mirror_offset"] : row["mirror_offset"] + row["mirror_length"]]))
        with Image.open(mixed / source.read(row["source_index"]).name) as image:
            pixels = np.asarray(image)[:, ::-1]
        height, width = pixels.shape[:2]
        if height % 8 or width % 8:
            continue
        expected = codec.encode(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0]  # type: ignore[attr-defined]
        assert np.array_equal(found, expected.numpy())


def test_odd_sizes_are_padded_as_the_reference_does(tmp_path: Path, codec: object) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = picture(3, width=61, height=45)
    (folder / "a.png").write_bytes(as_bytes(image))
    encode_dataset(folder, tmp_path / "out", sample_json=True, progress=False)
    padded = np.pad(np.asarray(image), ((1, 2), (1, 2), (0, 0)), mode="reflect")
    expected = codec.encode(torch.from_numpy(padded).permute(2, 0, 1)[None])[0]  # type: ignore[attr-defined]
    [row] = pq.read_table(tmp_path / "out" / "index" / "train.parquet").to_pylist()
    data = (tmp_path / "out" / "data" / "train-00000.tar").read_bytes()
    assert np.array_equal(unpack(decode_webp(data[row["offset"] : row["offset"] + row["length"]])), expected.numpy())
    with tarfile.open(tmp_path / "out" / "data" / "train-00000.tar") as tar:
        assert tar.getnames() == ["000000000.webp", "000000000.json"]  # a flat folder has no labels
        meta = json.loads(tar.extractfile("000000000.json").read())  # type: ignore[union-attr]
    assert meta["padding"] == [1, 1, 2, 2]
    assert manifest_of(tmp_path / "out").class_names is None


def test_resuming_with_other_settings_is_refused_by_name(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=5, part="1/2", progress=False)
    before = hashes(out)
    with pytest.raises(
        SettingsMismatchError,
        match=r"settings\.mirror: False -> True\n  settings\.samples_per_shard: 5 -> 6\nUse the earlier settings",
    ):
        encode_dataset(pictures, out, samples_per_shard=6, mirror=True, progress=False)
    assert hashes(out) == before


def test_resuming_with_another_source_is_refused_by_name(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, progress=False)
    other = make_folder(tmp_path / "other", per_class=7)
    with pytest.raises(SettingsMismatchError, match=r"source\.identity: .*\n  source\.num_items: 24 -> 21"):
        encode_dataset(other, out, progress=False)
    shutil.copytree(pictures, tmp_path / "moved")
    assert encode_dataset(tmp_path / "moved", out, progress=False).new_samples == 0


def test_resuming_with_another_codec_is_refused_by_name(pictures: Path, tmp_path: Path, codec: object) -> None:
    from walloc_data.codec import load_codec

    out = tmp_path / "out"
    encode_dataset(pictures, out, part="1/2", progress=False)
    other = load_codec()[0]
    with torch.no_grad():
        other.encoder[0].weight.mul_(1.5)
    with pytest.raises(SettingsMismatchError, match=r"codec\.encoder_sha256: '[0-9a-f]{64}' -> '[0-9a-f]{64}'"):
        encode_dataset(pictures, out, codec=other, progress=False)


def test_another_split_joins_the_data_set(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=5, progress=False)
    before = (out / "data" / "train-00002.tar").read_bytes()
    few = make_folder(tmp_path / "few", per_class=1)
    encode_dataset(few, out, split="validation", samples_per_shard=5, progress=False)
    manifest = manifest_of(out)
    assert {name: record.num_samples for name, record in manifest.splits.items()} == {"train": 24, "validation": 3}
    assert (out / "data" / "train-00002.tar").read_bytes() == before
    assert set(json.loads((out / "_info.json").read_text())["splits"]) == {"train", "validation"}
    whole(out)
    with pytest.raises(SettingsMismatchError, match=r"settings\.size_px: None -> 32"):
        encode_dataset(few, out, split="test", size_px=32, samples_per_shard=5, progress=False)
    dogs = make_folder(tmp_path / "dogs", classes=4, per_class=1)
    with pytest.raises(SettingsMismatchError, match=r"dogs has classes that the data set does not have: 'class_3'\."):
        encode_dataset(dogs, out, split="test", samples_per_shard=5, progress=False)


def test_two_splits_that_differ_never_meet_in_a_manifest(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, split="train", size_px=32, part="1/1", progress=False)
    with pytest.raises(
        SettingsMismatchError, match=r"split 'train' and split 'val' differ:\n  settings\.size_px: 32 -> 16"
    ):
        encode_dataset(pictures, out, split="val", size_px=16, progress=False)


def test_overwrite_replaces_one_split_and_only_that(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, split="train", samples_per_shard=5, progress=False)
    encode_dataset(pictures, out, split="val", samples_per_shard=5, progress=False)
    few = make_folder(tmp_path / "few", per_class=2)
    encode_dataset(few, out, split="train", samples_per_shard=5, overwrite=True, progress=False)
    assert {name: record.num_samples for name, record in manifest_of(out).splits.items()} == {"train": 6, "val": 24}
    assert len(list((out / "data").glob("train-*.tar"))) == 2
    whole(out)


def test_overwriting_the_only_split_may_change_everything(pictures: Path, tmp_path: Path) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    encode_dataset(pictures, out, samples_per_shard=5, progress=False)
    for target in (out, fresh):
        encode_dataset(pictures, target, samples_per_shard=9, size_px=16, overwrite=True, progress=False)
    assert hashes(out) == hashes(fresh)


def test_a_second_conversion_says_so_and_stops(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("walloc_data.convert.lock.PATIENCE_S", 0.1)
    out = tmp_path / "out"
    with conversion_lock(Store(out)):
        for part in (None, "1/2"):
            with pytest.raises(BusyError, match="another conversion is writing there"):
                encode_dataset(pictures, out, part=part, progress=False)
        with pytest.raises(BusyError):
            finish_dataset(out)
    with conversion_lock(Store(out), part="train-1-of-2"):
        with pytest.raises(BusyError):
            encode_dataset(pictures, out, progress=False)
        with pytest.raises(BusyError):
            encode_dataset(pictures, out, part="1/2", progress=False)
        encode_dataset(pictures, out, part="2/2", progress=False)
    encode_dataset(pictures, out, progress=False)


def test_a_folder_of_somebody_elses_files_is_left_alone(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(StorageError, match=r"not empty, and not a data set of latents \(it holds 'thesis.tex'\)"):
        encode_dataset(pictures, tmp_path, progress=False)
    for out in (pictures, pictures / "latents"):
        with pytest.raises(StorageError, match="inside the source"):
            encode_dataset(pictures, out, progress=False)


def test_a_source_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        encode_dataset(tmp_path / "nowhere", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "Train"}, "split 'Train' must be lower-case"),
        ({"workers": 0}, "workers must be 1 or more, not 0"),
        ({"part": "2/1"}, "part '2/1' must be I/N"),
        ({"part": "²/3"}, "part '²/3' must be I/N"),
        ({"on_error": "raise"}, r"on_error must be one of \['record', 'record-unreadable', 'stop'\], not 'raise'"),
        ({"engine": "Ray"}, "engine must be 'local' or 'ray', not 'Ray'"),
        ({"part": "1/2", "overwrite": True}, "overwrite and part cannot be combined"),
        ({"size_px": 0}, "size_px must be an integer in"),
    ],
)
def test_impossible_options_are_refused(
    pictures: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        encode_dataset(pictures, tmp_path / "out", progress=False, **options)  # type: ignore[arg-type]


def test_an_unknown_setting_is_named_beside_the_known(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"unknown settings \['sizepx'\]; its settings are .*'size_px'"):
        encode_dataset(pictures, tmp_path / "out", sizepx=3, progress=False)


def test_progress_counts_every_picture_and_summary_adds_up(mixed: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    summary = encode_dataset(mixed, tmp_path / "out", samples_per_shard=4, progress=seen.append)
    assert seen[0].num_done == 0
    assert (seen[-1].num_done, seen[-1].num_items, seen[-1].num_failures) == (13, 13, 3)
    assert [step.num_done for step in seen] == sorted(step.num_done for step in seen)
    assert "train: 100 %, 13/13 pictures" in str(seen[-1])
    shards = list((tmp_path / "out" / "data").iterdir())
    assert summary.shard_bytes == sum(path.stat().st_size for path in shards)
    rows = pq.read_table(tmp_path / "out" / "index" / "train.parquet").to_pylist()
    pixels = sum(row["height"] * row["width"] for row in rows)
    assert summary.bits_per_pixel == pytest.approx(8 * sum(row["length"] for row in rows) / pixels)
    assert summary.to_dict()["num_failures"] == 3


def test_a_source_of_broken_pictures_alone_is_an_error_that_shows_some(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "ant"
    folder.mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.jpg").write_text("broken")
    with pytest.raises(ConversionError, match=r"none of 5 pictures could be encoded, the first:\n  ant/\d\.jpg \("):
        encode_dataset(tmp_path / "in", tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "walloc.json").exists()


def test_a_done_mark_of_another_shard_is_refused(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=8, progress=False)
    marks = out / ".walloc" / "train"
    shutil.copyfile(marks / "00001.json", marks / "00002.json")
    with pytest.raises(FormatError, match=r"00002\.json: is for data/train-00001\.tar, not for data/train-00002\.tar"):
        finish_dataset(out)
