"""SIGKILL at random moments of a change: readers see the old or the new data set, and the next change cleans up."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.convert.conftest import Warm, make_folder
from tests.maintain.conftest import assert_whole
from walloc_data import LatentDataset, encode_dataset
from walloc_data.maintain import append_dataset, merge_datasets, remove_samples

KILLS = 5


def latents(out: Path) -> dict[str, bytes]:
    """Every sample's latent by its name in the source."""
    data = LatentDataset(out)
    names = pyarrow.parquet.read_table(out / data.record.index_name("train"))["source_name"].to_pylist()
    return {name: latent.numpy().tobytes() for name, (latent, _) in zip(names, data, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["remove_samples", "append_dataset", "merge_datasets"])
def test_killed_at_random_moments_a_change_has_happened_or_not(what: str, warm_maintain: Warm, tmp_path: Path) -> None:
    old = make_folder(tmp_path / "old", classes=3, per_class=20)
    new = make_folder(tmp_path / "new" / "x", classes=2, per_class=10)
    for label in range(2):  # names of their own
        for path in (new / f"class_{label}").iterdir():
            path.rename(path.with_name(f"new-{path.name}"))
    original, other = tmp_path / "original", tmp_path / "other"
    encode_dataset(old, original, samples_per_shard=4, progress=False)
    encode_dataset(new, other, samples_per_shard=4, progress=False)
    gone = [f"class_{number % 3}/{number:03d}.jpg" for number in range(20)]
    before = latents(original)
    after = before | latents(other)
    if what == "remove_samples":
        after = {name: latent for name, latent in before.items() if name not in gone}

    def line(out: Path) -> list[Any]:
        return {
            "remove_samples": [what, [str(out)], {"split": "train", "names": gone}],
            "append_dataset": [what, [str(new), str(out)], {"progress": False}],
            "merge_datasets": [what, [str(original), str(other), str(out)], {}],
        }[what]

    def begin(name: str) -> Path:
        return tmp_path / name if what == "merge_datasets" else shutil.copytree(original, tmp_path / name)

    again: dict[str, Callable[[Path], object]] = {
        "remove_samples": lambda out: remove_samples(out, split="train", names=gone),
        "append_dataset": lambda out: append_dataset(new, out, progress=False),
        "merge_datasets": lambda out: merge_datasets(original, other, out),
    }
    duration = 0.0
    for name in ("first", "second"):  # the second takes the time of those to come
        warm_maintain.start(line(begin(name)))
        code, duration = warm_maintain.end()
        assert code == 0
    assert latents(tmp_path / "second") == after
    moments, killed, unchanged = random.Random(0), 0, 0
    for number in range(KILLS):
        out = begin(f"killed-{number}")
        process = warm_maintain.start(line(out))
        time.sleep(duration * moments.uniform(0.1, 0.95))
        os.kill(process, signal.SIGKILL)
        code, _ = warm_maintain.end()
        killed += code == -signal.SIGKILL
        if not (out / "walloc.json").exists():
            assert what == "merge_datasets"
            state = before
        else:
            state = latents(out)
        assert state in (before, after)
        if state == before:
            unchanged += 1
            again[what](out)
        else:  # it was made: whatever changes the data set next cleans up
            remove_samples(out, split="train", names=[sorted(after)[-1]])
            after_more = latents(out)
            assert after_more.items() < after.items()
            assert len(after_more) == len(after) - 1
            assert_whole(out)
            continue
        assert latents(out) == after
        assert_whole(out)
    assert killed >= KILLS // 2
    assert unchanged >= 1
