"""The decoded array: filled once by whoever comes, complete or not at all, free for the next run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import warm
from walloc_data import LatentDataset
from walloc_data.dataset.reader import ShardReader
from walloc_data.errors import LoaderError
from walloc_data.storage import default_cache_folder

Ids = Callable[[torch.Tensor], list[int]]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def array_folder() -> Path:
    """Return the path of the one array in this test's cache."""
    [latents] = default_cache_folder().rglob("latents.int8")
    return latents.parent


def test_later_epochs_and_runs_decode_nothing(hundred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [latents for latents, _ in LatentDataset(hundred, cache="array").loader(batch_size=10)]

    def refuse(*args: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(ShardReader, "read", refuse)
    again = [latents for latents, _ in LatentDataset(hundred, cache="array").loader(batch_size=10)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_reading_one_sample_decodes_one_shard(hundred: Path) -> None:
    dataset = LatentDataset(hundred, cache="array")
    assert dataset[50][1] == 0
    done = np.fromfile(array_folder() / "done", np.uint8)
    assert done.tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_several_workers_fill_it_together_each_sample_decoded_once(
    hundred: Path, tmp_path: Path, ids_of: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, read = tmp_path / "decoded", ShardReader.read

    def counting(reader: ShardReader, rows: np.ndarray, *arguments: object) -> object:
        with log.open("a") as file:
            file.write("".join(f"{row}\n" for row in rows))
        return read(reader, rows, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardReader, "read", counting)
    loader = LatentDataset(hundred, cache="array").loader(batch_size=10, num_workers=4)
    assert sorted(i for latents, _ in loader for i in ids_of(latents)) == list(range(100))
    assert sorted(map(int, log.read_text().split())) == list(range(100))


KILLED = """
import os, signal, sys
from walloc_data import LatentDataset
from walloc_data.dataset import array

dataset = LatentDataset(sys.argv[1], cache="array")
write, calls = array._write, []
def write_and_die(*args):
    write(*args)
    calls.append(1)
    if len(calls) == 7:  # in the middle of the fourth shard: its latents are written, its checksums and its mark not
        os.kill(os.getpid(), signal.SIGKILL)
array._write = write_and_die
list(dataset.loader(batch_size=100))
"""


@pytest.mark.slow
def test_a_killed_fill_goes_on_with_what_is_left(hundred: Path, tmp_path: Path, ids_of: Ids) -> None:
    code = warm.run(["-c", KILLED, hundred]).returncode
    assert code == -signal.SIGKILL
    dataset = LatentDataset(hundred, cache="array")
    folder = array_folder()
    assert np.fromfile(folder / "done", np.uint8).tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert [i for latents, _ in dataset.loader(batch_size=10) for i in ids_of(latents)] == list(range(100))
    assert np.fromfile(folder / "done", np.uint8).tolist() == [1] * 7


def test_a_holder_that_is_killed_blocks_nobody(hundred: Path, tmp_path: Path) -> None:
    dataset = LatentDataset(hundred, cache="array")
    assert dataset[0][1] == 0
    code = (
        "import sys, time; from pathlib import Path; from walloc_data.storage import file_lock\n"
        "with file_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"
    )
    lock = str(array_folder() / "00002.lock")
    holder = subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout:
        holder.stdout.readline()
        pid = os.fork()
        if pid == 0:
            time.sleep(0.3)
            os.kill(holder.pid, signal.SIGKILL)
            os._exit(0)
        assert dataset[40][1] == 0  # waits for the holder, then decodes
        os.waitpid(pid, 0)
        holder.wait()


def test_the_array_is_as_large_as_its_latents(hundred: Path, mirrored: Path) -> None:
    for root, num_latents, mirror in ((hundred, 100, False), (mirrored, 120, True)):
        shutil.rmtree(default_cache_folder(), ignore_errors=True)
        dataset = LatentDataset(root, cache="array", mirror=mirror)
        list(dataset.loader(batch_size=10))
        size = (array_folder() / "latents.int8").stat().st_size
        assert size == num_latents * 12 * 4 * 4


def test_several_shapes_do_not_fit_one_array(mixed_shapes: Path) -> None:
    with pytest.raises(LoaderError, match="several shapes, which do not fit one array: use cache='shards'"):
        LatentDataset(mixed_shapes, cache="array")
