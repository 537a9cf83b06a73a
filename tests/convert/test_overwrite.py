"""Overwriting: the old split stays whole until the new one is, whatever is refused, killed or interrupted."""

import itertools
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.convert.conftest import StopError, Warm, hashes, make_folder, store_steps
from walloc_data import LatentDataset, encode_dataset
from walloc_data.convert import dataset_info, finish_dataset, verify_dataset
from walloc_data.convert import overwrite as module
from walloc_data.errors import ConversionError, SettingsMismatchError
from walloc_data.storage import Store, read_manifest


def shards_of(out: Path) -> dict[str, str]:
    """SHA-256 of the shards that the manifest names, by the last part of their names, as their bytes are now."""
    assert verify_dataset(out, progress=False).problems == ()
    names = {path.rpartition("/")[2]: digest for path, digest in hashes(out).items() if path.endswith(".tar")}
    record = read_manifest(Store(out)).splits["train"]
    return {shard.name.rpartition("/")[2]: shard.sha256 for shard in record.shards if names}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 pictures that are not those of `pictures`."""
    return make_folder(tmp_path_factory.mktemp("other") / "pictures", classes=3, per_class=5, width=56)


def test_a_refused_overwrite_changes_nothing(pictures: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode_dataset(pictures, out, split="train", size_px=16, samples_per_shard=5, progress=False)
    encode_dataset(other, out, split="val", size_px=16, samples_per_shard=5, progress=False)
    before = hashes(out)
    with pytest.raises(SettingsMismatchError, match=r"settings\.size_px: 16 -> 24"):
        encode_dataset(other, out, split="val", size_px=24, samples_per_shard=5, overwrite=True, progress=False)
    assert hashes(out) == before
    broken = tmp_path / "broken" / "class_0"
    broken.mkdir(parents=True)
    (broken / "a.jpg").write_text("no picture")
    with pytest.raises((ConversionError, SettingsMismatchError)):
        encode_dataset(broken.parent, out, split="val", size_px=16, samples_per_shard=5, overwrite=True, progress=False)
    assert verify_dataset(out, progress=False).problems == ()
    assert {path: digest for path, digest in hashes(out).items() if ".walloc/val.new" not in path} == before


@pytest.mark.slow
def test_killed_while_it_overwrites_the_old_split_or_the_new_is_whole(
    warm: Warm, pictures: Path, other: Path, tmp_path: Path
) -> None:
    fresh = tmp_path / "fresh"
    old = shards_of(_encoded(pictures, tmp_path / "old"))
    new = shards_of(_encoded(other, fresh))
    out = _encoded(pictures, tmp_path / "out")
    started = time.perf_counter()
    warm.begin(other, _encoded(pictures, tmp_path / "timed"), samples_per_shard=2, overwrite=True)
    assert warm.end()[0] == 0
    duration = time.perf_counter() - started
    moments = random.Random(0)
    killed = 0
    for number in range(8):
        process = warm.begin(other, out, samples_per_shard=2, overwrite=True)
        # The later tries aim at the end, where the one takes the place of the other.
        time.sleep(moments.uniform(0, duration / 2) if number < 4 else moments.uniform(0, duration / 8))
        os.kill(process, signal.SIGKILL)
        killed += warm.end()[0] == -signal.SIGKILL
        found = shards_of(out)
        assert found in (old, new)
        assert len(LatentDataset(out, cache_folder=tmp_path / "cache")) == (24 if found == old else 15)
    assert killed >= 4
    warm.begin(other, out, samples_per_shard=2, overwrite=True)
    assert warm.end()[0] == 0
    assert hashes(out) == hashes(fresh)


def _encoded(source: Path, out: Path) -> Path:
    encode_dataset(source, out, samples_per_shard=2, progress=False)
    return out


@pytest.mark.slow
def test_interrupted_between_any_two_writes_of_the_change_a_split_is_whole_and_the_next_run_completes_it(
    pictures: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = tmp_path / "prepared"
    encode_dataset(pictures, prepared, samples_per_shard=8, progress=False)
    old = shards_of(prepared)
    encode_dataset(other, tmp_path / "fresh", samples_per_shard=8, progress=False)
    new = shards_of(tmp_path / "fresh")
    # Everything up to the change, as a run makes it; then the change, interrupted.
    with monkeypatch.context() as patch:
        patch.setattr("walloc_data.convert.encode.publish_replacement", lambda store, split, kind: None)
        encode_dataset(other, prepared, samples_per_shard=8, overwrite=True, progress=False)
    assert shards_of(prepared) == old
    for stop_at in itertools.chain(range(3), itertools.count(3, 4)):
        out = Path(shutil.copytree(prepared, tmp_path / f"out-{stop_at}"))
        with monkeypatch.context() as patch:
            done = store_steps(patch, stop_at)
            try:
                module.publish_replacement(Store(out), "train", kind="new")
                interrupted = False
            except StopError:
                interrupted = True
        assert shards_of(out) == (new if done else old)  # the first write is the change
        if done:
            finish_dataset(out)
            assert hashes(out) == hashes(tmp_path / "fresh")
            assert not list((out / ".walloc").glob("*.new"))
        if not interrupted:
            break
    assert stop_at >= 15


@pytest.mark.slow
def test_an_interrupted_overwrite_goes_on_where_it_was(pictures: Path, other: Path, tmp_path: Path) -> None:
    out = _encoded(pictures, tmp_path / "out")

    def interrupt(progress: Any) -> None:
        if progress.num_done >= 6:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            encode_dataset(other, out, samples_per_shard=2, overwrite=True, progress=interrupt)
    done = int(re.search(r"train: being overwritten, (\d) of 8 units of work are done", str(dataset_info(out)))[1])  # type: ignore[index]
    assert done >= 2
    summary = encode_dataset(other, out, samples_per_shard=2, overwrite=True, progress=False)
    assert (summary.url, summary.num_samples, summary.new_samples) == (str(out), 15, 15 - 2 * done)
    assert hashes(out) == hashes(_encoded(other, tmp_path / "fresh"))


@pytest.mark.slow
def test_an_overwrite_begun_with_other_settings_is_begun_again(pictures: Path, tmp_path: Path) -> None:
    out = _encoded(pictures, tmp_path / "out")

    def interrupt(progress: Any) -> None:
        if progress.num_done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_dataset(pictures, out, samples_per_shard=3, overwrite=True, progress=interrupt)
    summary = encode_dataset(pictures, out, samples_per_shard=4, overwrite=True, progress=False)
    assert (summary.new_samples, summary.num_shards) == (24, 6)
    encode_dataset(pictures, tmp_path / "fresh", samples_per_shard=4, progress=False)
    assert hashes(out) == hashes(tmp_path / "fresh")


@pytest.mark.slow
def test_an_interrupted_overwrite_of_a_source_that_shrank_is_begun_again(pictures: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    out = _encoded(source, tmp_path / "out")

    def interrupt(progress: Any) -> None:
        if progress.num_done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_dataset(source, out, samples_per_shard=2, overwrite=True, progress=interrupt)
    for path in sorted(source.rglob("*.jpg"))[4:]:  # so that positions that are encoded already are no more
        path.unlink()
    summary = encode_dataset(source, out, samples_per_shard=2, overwrite=True, progress=False)
    assert (summary.num_samples, summary.new_samples) == (4, 4)
    assert verify_dataset(out, progress=False).problems == ()
