"""Damage that `verify` finds is made anew by the command that it names, and by no other; the rest stays."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.convert.conftest import hashes, make_folder
from walloc_data import encode_dataset
from walloc_data.cli import main
from walloc_data.convert import ConversionSummary, verify_dataset
from walloc_data.errors import FormatError, SettingsMismatchError


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures, and one that is none."""
    folder = make_folder(tmp_path_factory.mktemp("repair") / "in", classes=3, per_class=3)
    (folder / "class_1" / "000.jpg").write_text("broken")
    return folder


def encode(source: Path, out: Path, **options: Any) -> ConversionSummary:
    return encode_dataset(source, out, samples_per_shard=3, shuffle_seed=None, progress=False, **options)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, encoded in three shards. Copied by every test."""
    out = tmp_path_factory.mktemp("whole") / "out"
    encode(source, out)
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


DAMAGE: dict[str, tuple[Callable[[Path], object], int]] = {
    "a bit of a latent": (lambda out: flip(out / "data" / "train-00001.tar", 700), 2),
    "a bit of the padding at a shard's end": (lambda out: flip(out / "data" / "train-00002.tar", -1), 3),
    "a lost shard": (lambda out: (out / "data" / "train-00000.tar").unlink(), 3),
    "a shard's rows": (lambda out: (out / ".walloc" / "train" / "00002.parquet").write_bytes(b"PAR1"), 3),
    "a shard's record": (lambda out: (out / ".walloc" / "train" / "00001.json").write_text("{"), 2),
    "the codec": (lambda out: edit(out / "codec" / "codec.json", lambda v: v.update(encoder_sha256="0" * 64)), 0),
    "the codec's weights": (lambda out: flip(out / "codec" / "model.safetensors", 5000), 0),
    "the index": (lambda out: (out / "index" / "train.parquet").write_bytes(b"nothing"), 0),
    "the failures": (lambda out: (out / "failures" / "train.jsonl").unlink(), 0),
    "the manifest": (lambda out: edit(out / "walloc.json", lambda v: v["splits"]["train"].update(num_failures=2)), 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_is_made_anew_and_nothing_else(source: Path, out: Path, what: str) -> None:
    before = hashes(out)
    damage, num_remade = DAMAGE[what]
    damage(out)
    assert hashes(out) != before
    summary = encode(source, out, repair=True)
    assert summary.new_samples == num_remade
    assert hashes(out) == before
    assert verify_dataset(out, progress=False).problems == ()


def test_a_cut_short_or_lost_shard_is_made_anew_without_being_asked(source: Path, out: Path) -> None:
    before = hashes(out)
    path = out / "data" / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    assert encode(source, out).new_samples == 2
    path.write_bytes(b"")
    assert encode(source, out).new_samples == 2
    assert hashes(out) == before


def test_verify_names_the_command_that_mends_and_it_does(
    source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(out / "data" / "train-00001.tar", 700)
    assert main(["verify", str(out)]) == 1
    assert "1 problems" not in (said := capsys.readouterr().out)
    assert said.rstrip().endswith(
        "Run the encode command again with --repair (repair=True) to make damaged and missing files again"
    )
    command = ["encode", str(source), str(out), "--samples-per-shard", "3", "--no-shuffle", "--no-preview"]
    assert main([*command, "--repair"]) == 0
    assert f"{out}/data/train-00001.tar: its SHA-256 differs from its record" in capsys.readouterr().err
    assert main(["verify", str(out)]) == 0
    shutil.rmtree(out / ".walloc")  # as it is after a download
    flip(out / "data" / "train-00001.tar", 700)
    found = verify_dataset(out, progress=False)
    assert (
        found.remedy
        == "This copy cannot be repaired, because it has no .walloc/: download it again, or repair the original"
    )


def test_a_broken_manifest_is_made_anew_with_every_split_in_it(source: Path, out: Path) -> None:
    encode(source, out, split="val")
    before = hashes(out)
    (out / "walloc.json").write_text("{")
    assert encode(source, out, repair=True).new_samples == 0
    assert hashes(out) == before


def test_a_damaged_record_says_what_to_do(source: Path, out: Path) -> None:
    (out / ".walloc" / "train" / "00001.json").write_text("{")
    with pytest.raises(FormatError, match=r"00001\.json: not valid JSON .* Encode with repair=True \(--repair\)"):
        encode(source, out)


def test_a_shard_of_another_writers_split_is_not_made_by_this_one(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("walloc_data.webp.WRITER_VERSION", "of another time")
    assert encode(source, out, repair=True).new_samples == 0
    flip(out / "data" / "train-00001.tar", 700)
    before = hashes(out)
    with pytest.raises(SettingsMismatchError, match=r"by other versions:\n  written_by\.webp_writer: \w+ -> of an"):
        encode(source, out, repair=True)
    assert hashes(out) == before


def test_a_damaged_plan_says_what_to_do_which_helps(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, samples_per_shard=8, progress=False)
    (out / ".walloc" / "train" / "plan.json").write_text("{")
    for options in ({}, {"repair": True}):
        with pytest.raises(FormatError, match=r"plan\.json: not valid JSON .*: overwrite it \(--overwrite\)"):
            encode_dataset(pictures, out, samples_per_shard=8, progress=False, **options)
    assert encode_dataset(pictures, out, samples_per_shard=8, progress=False, overwrite=True).num_samples == 24
    assert verify_dataset(out, progress=False).problems == ()
