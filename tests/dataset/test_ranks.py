"""The rank is that of the moment a pass begins: a loader may be older than the process group."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import warm
from walloc_data import LatentDataset
from walloc_data.errors import LoaderError

Ids = Callable[[torch.Tensor], list[int]]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

RANK = """
import sys
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from walloc_data import LatentDataset

root, result, rank = sys.argv[1:]
dataset = LatentDataset(root, shuffle=True, seed=3)
loaders = [
    dataset.loader(global_batch_size=8, drop_last=True, num_workers=1),
    DataLoader(dataset, batch_sampler=dataset.batch_sampler(global_batch_size=8, drop_last=True), num_workers=1),
]
dist.init_process_group("gloo", rank=int(rank), world_size=2)  # the environment knows of no ranks
gathered = []
for loader in loaders:
    for latents, _ in loader:
        parts = [torch.zeros(4, 12, 4, 4, dtype=torch.int8) for _ in range(2)]
        dist.all_gather(parts, latents)
        gathered.append(torch.cat(parts))
if dist.get_rank() == 0:
    torch.save(gathered, result)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_loaders_made_before_the_process_group_share_every_batch(hundred: Path, tmp_path: Path) -> None:
    script, result = tmp_path / "rank.py", tmp_path / "result.pt"
    script.write_text(RANK)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [warm.Popen([script, hundred, result, str(rank)], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    own = LatentDataset(hundred, shuffle=True, seed=3).loader(batch_size=8, drop_last=True)
    expected = [latents for latents, _ in own] * 2
    got = torch.load(result)
    assert len(got) == len(expected) == 24
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_launcher_that_sets_the_environment_is_enough(
    hundred: Path, ids_of: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = LatentDataset(hundred)
    loader = dataset.loader(global_batch_size=10)  # before the launcher's variables are there
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [ids_of(latents) for latents, _ in loader][:2] == [[5, 6, 7, 8, 9], [15, 16, 17, 18, 19]]
    given = dataset.loader(batch_size=10, rank=0, world_size=1)
    assert ids_of(next(iter(given))[0]) == list(range(10))
    with pytest.raises(LoaderError, match=r"global_batch_size 5 does not divide evenly among 2 ranks"):
        dataset.loader(global_batch_size=5)


def test_what_does_not_fit_the_ranks_is_refused_when_the_pass_begins(
    hundred: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = LatentDataset(hundred)
    loader, sampler = dataset.loader(batch_size=4), dataset.batch_sampler(global_batch_size=8)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for batches in (loader, sampler):
        with pytest.raises(LoaderError, match=r"100 samples do not fill batches of 8 \(2 ranks x 4\).*drop_last=True"):
            next(iter(batches))


def test_a_rank_that_changes_after_the_first_batch_is_an_error(hundred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = LatentDataset(hundred)
    for make in (dataset.loader, dataset.batch_sampler):
        with monkeypatch.context() as patch:
            batches = make(batch_size=10)
            running = iter(batches)
            next(running)
            patch.setenv("RANK", "1")
            patch.setenv("WORLD_SIZE", "2")
            message = r"rank 1 of 2 now and was rank 0 of 1 when this loader drew its first batch: call .*init_process_"
            with pytest.raises(LoaderError, match=message):
                next(running)
            with pytest.raises(LoaderError, match=message):
                next(iter(batches))


@pytest.mark.parametrize(
    ("rank", "world_size", "message"),
    [
        (None, "2", "WORLD_SIZE is 2 but RANK is not set"),
        ("2", "2", r"RANK=2 and WORLD_SIZE=2 are invalid: rank 2 is not in \[0, 2\)"),
        ("x", "2", r"RANK=x and WORLD_SIZE=2 are invalid"),
    ],
)
def test_an_environment_that_says_no_place_is_an_error(
    hundred: Path, monkeypatch: pytest.MonkeyPatch, rank: str | None, world_size: str, message: str
) -> None:
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    loader = LatentDataset(hundred).loader(batch_size=10)  # a launcher may not be done yet
    with pytest.raises(LoaderError, match=message):
        next(iter(loader))
