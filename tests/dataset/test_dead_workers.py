"""Workers that die, or have too little shared memory: an error within seconds that says what to do."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import warm
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


HELD = """
import os, signal, sys, time
from pathlib import Path
from torch.utils.data import get_worker_info
from walloc_data import LatentDataset

folder, begun, held = map(Path, sys.argv[1:])
main = os.getpid()


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def stop(latent):
    if get_worker_info().id == 0:
        begun.touch()
        wait_for(held)
        os.kill(main, signal.SIGINT)
    time.sleep(600)


loader = LatentDataset(folder, transform=stop).loader(batch_size=10, num_workers=2)
start = loader._batches._get_iterator


def holding():
    iterator = start()
    wait_for(begun)
    iterator._workers_done_event._cond.acquire()  # as a worker does that looks whether to end
    held.touch()
    return iterator


loader._batches._get_iterator = holding
next(iter(loader))
"""


def test_ctrl_c_does_not_wait_for_a_lock_that_a_worker_held(hundred: Path, tmp_path: Path) -> None:
    done = warm.run(["-c", HELD, hundred, tmp_path / "begun", tmp_path / "held"], timeout=60)
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize("interrupted", ["one", "all"])
def test_a_loader_goes_on_after_ctrl_c_in_the_loop(hundred: Path, interrupted: str) -> None:
    """Ctrl-C on a terminal, which interrupts the workers as well."""
    loader = LatentDataset(hundred).loader(batch_size=10, num_workers=2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script runs in the background
    try:
        for _ in loader:
            workers = loader._batches._iterator._workers  # type: ignore[union-attr]
            for worker in workers[: 1 if interrupted == "one" else None]:
                os.kill(worker.pid, signal.SIGINT)
                worker.join(timeout=60)
                assert not worker.is_alive()
            break
        assert sum(len(labels) for _, labels in loader) == 100
    finally:
        signal.signal(signal.SIGINT, before)


LONG = """
import sys
import time
from torch.utils.data import DataLoader
from walloc_data import LatentDataset
from walloc_data.errors import WorkerError
dataset = LatentDataset(sys.argv[1])
loaders = {
    "own": lambda: dataset.loader(batch_size=16, num_workers=1),
    "plain": lambda: DataLoader(dataset, batch_size=16, num_workers=1),
    "ahead": lambda: dataset.loader(batch_size=1, num_workers=1, prefetch_batches=40),
}
try:
    num_samples = 0
    for _, labels in loaders[sys.argv[2]]():
        num_samples += len(labels)
        if sys.argv[2] == "ahead" and num_samples == 1:
            time.sleep(2)  # the worker fills its queue
    print(num_samples)
except WorkerError as error:
    print("WorkerError:", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such sockets")
@pytest.mark.parametrize("loader", ["own", "plain"])
def test_a_temporary_folder_with_too_long_a_path_for_sockets_is_an_error_and_not_a_wait(
    loader: str, make_dataset: Callable[..., Manifest], tmp_path: Path
) -> None:
    make_dataset(tmp_path / "data set", num_samples=40)
    longest = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # of TMPDIR, on Linux
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        for length, said in ((longest, "40"), (longest + 1, "shorter by 1 bytes or more")):
            folder = Path(short) / ("x" * (length - len(short) - 1))
            folder.mkdir()
            done = subprocess.run(
                [sys.executable, "-c", LONG, f"{tmp_path}/data set", loader],
                check=False,
                capture_output=True,
                text=True,
                timeout=100,
                env=os.environ | {"TMPDIR": str(folder), "PYTHONWARNINGS": "ignore"},
            )
            # Or all 40: later versions of Python choose another folder themselves.
            assert said in done.stdout or done.stdout == "40\n", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize(("loader", "limit"), [("own", 24), ("ahead", 64)])
def test_too_many_open_files_in_a_worker_are_an_error_and_not_a_wait(
    loader: str, limit: int, make_dataset: Callable[..., Manifest], tmp_path: Path
) -> None:
    make_dataset(tmp_path / "data set", num_samples=40)
    done = subprocess.run(
        [
            "sh",
            "-c",
            f'ulimit -n {limit} && exec "$0" "$@"',
            sys.executable,
            "-c",
            LONG,
            f"{tmp_path}/data set",
            loader,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert "WorkerError" in done.stdout, done.stderr
    assert "raise the limit (`ulimit -n`), or lower prefetch_batches" in done.stdout + done.stderr
