"""Real processes: ranks under torch.distributed, a trainer that is killed, memory of workers."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import warm
from walloc_data import LatentDataset
from walloc_data.format import Manifest

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

RANK = """
import sys
import torch
import torch.distributed as dist
from walloc_data import LatentDataset

root, folder = sys.argv[1:]
dist.init_process_group("gloo")
train = LatentDataset(root, shuffle=True, seed=3).loader(global_batch_size=8, drop_last=True, num_workers=1)
steps = []
for epoch in range(2):
    for latents, labels in train:
        count = torch.tensor([len(labels)])
        dist.all_reduce(count)  # hangs if ranks disagree on the number of steps
        gathered = [torch.zeros_like(latents) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, latents)
        steps.append(torch.cat(gathered))
total = torch.zeros(2, dtype=torch.float64)
for latents, labels, valid in LatentDataset(root).loader(global_batch_size=24, pad=True):
    total += torch.tensor([latents[valid].double().sum(), valid.sum()])
dist.all_reduce(total)
if dist.get_rank() == 0:
    torch.save({"steps": steps, "total": total}, folder)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_every_batch_and_evaluate_exactly(hundred: Path, tmp_path: Path, world_size: int) -> None:
    script, result = tmp_path / "rank.py", tmp_path / "result.pt"
    script.write_text(RANK)
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29500 + os.getpid() % 1000),
        "WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [warm.Popen([script, hundred, result], env=environment | {"RANK": str(rank)}) for rank in range(world_size)]
    assert [rank.wait(timeout=100) for rank in ranks] == [0] * world_size
    got = torch.load(result)
    loader = LatentDataset(hundred, shuffle=True, seed=3).loader(batch_size=8, drop_last=True)
    expected = [latents for _ in range(2) for latents, _ in loader]
    assert len(got["steps"]) == len(expected) == 24
    assert all(torch.equal(a, b) for a, b in zip(got["steps"], expected, strict=True))
    exact = sum(float(latents.double().sum()) for latents, _ in LatentDataset(hundred).loader(batch_size=100))
    assert got["total"].tolist() == [exact, 100]


TRAINER = """
import json, os, sys
from pathlib import Path
from walloc_data import LatentDataset

root, log, state_file, num_workers, cache, pause = sys.argv[1:]
import time
loader = LatentDataset(root, shuffle=True, cache=cache).loader(batch_size=8, num_workers=int(num_workers))
state_file = Path(state_file)
if state_file.exists():
    loader.load_state_dict(json.loads(state_file.read_text()))
with open(log, "a") as out:
    for epoch in range(loader.epoch, 3):
        for latents, labels in loader:
            time.sleep(float(pause))
            ids = (latents[:, 0, 0, 0].int() & 255).tolist()
            # A step and its state become visible together, as a checkpoint would.
            partial = state_file.with_suffix(".partial")
            partial.write_text(json.dumps(loader.state_dict()))
            out.write(json.dumps([epoch, ids]) + "\\n")
            out.flush()
            partial.replace(state_file)
"""


@pytest.mark.slow
def test_a_killed_trainer_resumes_where_it_was(hundred: Path, tmp_path: Path) -> None:
    """Twice, and each time with another number of workers and another cache."""
    script, log, state = tmp_path / "trainer.py", tmp_path / "log", tmp_path / "state.json"
    script.write_text(TRAINER)
    kills = 0
    for num_workers, cache, steps in ((1, "shards", 5), (0, "array", 9), (1, "array", None)):
        pause = "0" if steps is None else "0.05"
        command = [str(script), str(hundred), str(log), str(state), str(num_workers), cache, pause]
        trainer = warm.Popen(command, start_new_session=True)
        done = len(log.read_text().splitlines()) if log.exists() else 0
        while steps is not None and trainer.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) >= done + steps:
                os.killpg(trainer.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        code = trainer.wait(timeout=60)
        assert code == (0 if steps is None else -signal.SIGKILL)
    assert kills == 2
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    # A kill between the log line and the state repeats that one step, as any trainer would repeat it.
    steps_seen = [step for i, step in enumerate(lines) if i == 0 or step != lines[i - 1]]
    loader = LatentDataset(hundred, shuffle=True).loader(batch_size=8)
    expected = [[epoch, (x[:, 0, 0, 0].int() & 255).tolist()] for epoch in range(3) for x, _ in loader]
    assert steps_seen == expected


def _private_bytes(pid: int) -> int:
    """Memory that a process has for itself alone: mapped files belong to the page cache, whoever reads them."""
    total, anonymous = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):  # the head of a mapping: addresses, rights, offset, device, inode, path
            anonymous = values[3] == "0"
        elif anonymous and name in ("Private_Clean:", "Private_Dirty:"):
            total += int(values[0]) * 1024
    return total


@pytest.mark.slow
def test_memory_of_a_worker_does_not_grow_with_the_data_set(write_index: Callable[..., Path], tmp_path: Path) -> None:
    """A million samples more in the index, hardly a byte more in each worker."""
    used = {}
    for num_samples in (1000, 1_000_000):
        root = write_index(tmp_path / str(num_samples), num_samples=num_samples)
        dataset = LatentDataset(root, shuffle=True)
        loader = dataset.loader(batch_size=100, num_workers=1)
        before = set(multiprocessing.active_children())
        iterator = iter(loader)
        for _ in range(8):
            next(iterator)
        [worker] = set(multiprocessing.active_children()) - before
        used[num_samples] = _private_bytes(worker.pid)
        del iterator, loader
    assert used[1_000_000] - used[1000] < 6_000_000  # the table itself is 48 MB


def test_a_state_is_small(make_dataset: Callable[..., Manifest], hundred: Path) -> None:
    state = LatentDataset(hundred, shuffle=True).loader(batch_size=8).state_dict()
    assert len(json.dumps(state)) < 300


@pytest.mark.slow
def test_a_million_samples_start_at_once(write_index: Callable[..., Path], tmp_path: Path) -> None:
    """ImageNet's index, resumed at the last batch of its 58th epoch; benchmarks/read_speed.py takes the times."""
    root = write_index(tmp_path, num_samples=1_281_167)
    dataset = LatentDataset(root, shuffle=True)
    loader = dataset.loader(batch_size=256, drop_last=True)
    loader.load_state_dict(loader.state_dict() | {"epoch": 57, "position": 5003})
    [(latents, labels)] = list(loader)
    assert latents.shape == (256, 12, 4, 4)
    assert sorted(set(labels.tolist())) != labels.tolist()
    assert len(loader) == 5004
