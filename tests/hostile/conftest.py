"""A small data set to damage, and limits on the time and the memory that anything may take over it."""

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from walloc_data import encode_dataset

SECONDS = 60  # on a machine that does much else
BYTES = 3 * 2**29  # of address space beyond what the process has; resident memory is well below


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


class TooLongError(BaseException):
    """It took too long; no handler of errors takes it for one of the system's."""


@contextmanager
def limits(*, seconds: float = SECONDS, num_bytes: int = BYTES) -> Iterator[None]:
    """Raise TooLongError or MemoryError from what takes longer, or more memory."""

    def late(*_: object) -> None:
        raise TooLongError(f"more than {seconds} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven latents of 48 x 48 pictures in three shards, two classes, and one failure."""
    return make_whole(tmp_path_factory.mktemp("hostile"))


def make_whole(folder: Path) -> Path:
    """Make the pictures and their data set in a folder."""
    rng = np.random.default_rng(0)
    for i in range(8):
        path = folder / "pictures" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC).save(path)
    path.write_bytes(path.read_bytes()[:100])
    # The codec with the fastest decoder: pictures are decoded hundreds of times here.
    encode_dataset(
        folder / "pictures", folder / "set", size_px=48, samples_per_shard=3, codec="klt-16x", progress=False
    )
    return folder / "set"


@pytest.fixture
def root(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data set, and nothing else here: the working folder and the cache are new."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    shutil.copytree(whole, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture(scope="session")
def within() -> Callable[..., object]:
    return limits
