"""Workers that die, or have too little shared memory: an error within seconds that says what to do."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.errors import WorkerError
from walloc_data.format import Manifest

SMALL = """
import sys
from walloc_data import LatentDataset
from walloc_data.errors import WorkerError
dataset = LatentDataset(sys.argv[1], cache_folder=sys.argv[2])
seen = [len(labels) for _, labels in dataset.loader(batch_size=16, num_workers=1)]
assert seen == [16] * 16, seen
try:
    list(dataset.loader(batch_size=256, num_workers=2))
except WorkerError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs to mount a small /dev/shm")
def test_too_little_shared_memory_is_an_error_and_not_a_wait(
    make_dataset: Callable[..., Manifest], tmp_path: Path
) -> None:
    """256 latents of 12 x 16 x 16 are 768 KiB; a container's 64 MB are as few for batches of real ones."""
    make_dataset(tmp_path / "data set", num_samples=256, shapes=((16, 16),))
    script = tmp_path / "script.py"
    script.write_text(SMALL)
    read = (
        f"mount -t tmpfs -o size=600k tmpfs /dev/shm && exec {sys.executable} {script} '{tmp_path}/data set' {tmp_path}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", read], check=False, capture_output=True, text=True, timeout=100
    )
    if "mount: " in done.stderr or "unshare: " in done.stderr:
        pytest.skip("may not mount here")
    assert done.returncode == 0, done.stderr
    assert "no shared memory for a batch of 788480 bytes in /dev/shm" in done.stdout
    assert "docker run --shm-size=8g" in done.stdout
    assert "lower batch_size, prefetch_batches or num_workers" in done.stdout


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, r"a worker process of the loader died \(Killed\): .*ran out of memory.*: lower num_workers"),
        (signal.SIGBUS, r"a worker process of the loader died \(Bus error\): the shared memory \(/dev/shm.*\) is full"),
    ],
    ids=["SIGKILL", "SIGBUS"],
)
def test_a_worker_that_is_killed_is_an_error_within_seconds(
    hundred: Path, tmp_path: Path, number: signal.Signals, message: str
) -> None:
    once = tmp_path / "once"
    once.touch()

    def die_once(latent: torch.Tensor) -> torch.Tensor:
        if once.exists():
            once.unlink()
            os.kill(os.getpid(), number)
        return latent

    loader = LatentDataset(hundred, transform=die_once).loader(batch_size=10, num_workers=2)
    began = time.monotonic()
    with pytest.raises(WorkerError, match=message):
        list(loader)
    assert time.monotonic() - began < 20
    loader.set_epoch(1)
    assert sum(len(labels) for _, labels in loader) == 100  # with new workers
