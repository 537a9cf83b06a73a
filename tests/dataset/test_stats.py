"""Timing of a loader, and contents of the cache folder."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.cli import main
from walloc_data.errors import StorageError
from walloc_data.storage import cache_contents, clear_cache


def slowly(latent: torch.Tensor) -> torch.Tensor:
    time.sleep(0.01)
    return latent


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_slow_transform_shows_as_decoding_for_which_the_trainer_waits(hundred: Path, num_workers: int) -> None:
    loader = LatentDataset(hundred, transform=slowly).loader(batch_size=20, num_workers=num_workers)
    assert loader.stats().num_batches == 0
    begun = time.perf_counter()
    for latents, labels in loader:
        assert (latents.shape, labels.shape) == ((20, 12, 4, 4), (20,))
    took = time.perf_counter() - begun
    stats = loader.stats()
    assert (stats.num_batches, stats.num_workers) == (5, num_workers)
    assert stats.decoding_s >= 1.0  # 100 samples
    assert stats.waiting_for_batches_s >= 1.0 / max(1, num_workers)
    assert stats.waiting_for_trainer_s < 0.5 * stats.waiting_for_batches_s
    assert stats.waiting_for_batches_s + stats.waiting_for_trainer_s <= took
    assert 0 < stats.waiting_for_shards_s < took


@pytest.mark.slow
def test_a_slow_trainer_shows_as_such_and_passes_add_up(hundred: Path) -> None:
    loader = LatentDataset(hundred).loader(batch_size=50)
    for _ in range(2):
        for _ in loader:
            time.sleep(0.25)
    stats = loader.stats()
    assert stats.num_batches == 4
    assert 1.0 <= stats.waiting_for_trainer_s < 2.0
    assert stats.to_dict()["num_batches"] == 4
    assert str(stats).startswith("4 batches: the trainer waited ")


def test_a_slow_store_shows_as_waiting_for_shards(hundred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from walloc_data.storage import ShardFile

    read = ShardFile.read

    def slow_read(self: ShardFile, offset: int, length: int) -> Any:
        time.sleep(0.005)
        return read(self, offset, length)

    monkeypatch.setattr(ShardFile, "read", slow_read)
    loader = LatentDataset(hundred).loader(batch_size=50)
    for _ in loader:
        pass
    stats = loader.stats()
    assert 0.5 <= stats.waiting_for_shards_s <= stats.waiting_for_batches_s
    assert stats.decoding_s < stats.waiting_for_shards_s


def test_the_cache_is_listed_and_cleared_and_nothing_else_is(
    hundred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "its-cache"
    data = LatentDataset(hundred, cache="array", cache_folder=folder, columns=["key"])
    assert len(list(data)) == 100
    for kind in ("arrays", "index", "shards"):
        (folder / kind).mkdir(exist_ok=True)
        (folder / kind / "mine.txt").write_text("not the cache's")
    (folder / "shards" / ("0" * 64 + ".tar")).write_bytes(b"12345")
    sizes = {found.kind: (found.num_items, found.num_bytes) for found in cache_contents(folder)}
    assert sizes["shards"] == (1, 5)
    assert sizes["arrays"][0] == 1
    assert sizes["arrays"][1] >= 100 * 12 * 4 * 4
    assert sizes["index"][0] == 2  # the places of samples, and the keys
    assert main(["cache", "list", "--folder", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arrays"] == {"num_items": 1, "num_bytes": sizes["arrays"][1]}
    assert main(["cache", "clear", "--folder", str(folder), "--only", "arrays"]) == 0
    assert capsys.readouterr().out.startswith("arrays: 1 of ")
    assert [found.num_items for found in cache_contents(folder)] == [1, 0, 2]
    assert [(found.kind, found.num_items) for found in clear_cache(folder)] == [
        ("shards", 1),
        ("arrays", 0),
        ("index", 2),
    ]
    assert [(folder / kind / "mine.txt").exists() for kind in ("arrays", "index", "shards")] == [True] * 3
    assert len(LatentDataset(hundred, cache="array", cache_folder=folder)[:3]) == 3  # made anew
    assert [found.num_bytes for found in cache_contents(tmp_path / "nowhere")] == [0, 0, 0]
    with pytest.raises(StorageError, match=r"^a cache has no shard: its kinds are shards, arrays, index$"):
        clear_cache(folder, kinds=["shard"])
