"""A small class folder, and what "the same data set" means."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from walloc_data.codec import load_codec, save_codec
from walloc_data.storage import Store


class Warm:
    """The process of warm.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("warm.py")
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._running: int | None = None

    def begin(self, source: str | Path, out: Path, **options: Any) -> int:
        """Start a conversion; its process id."""
        return self.start(["encode_dataset", [str(source), str(out)], {"progress": False, **options}])

    def start(self, line: list[Any]) -> int:
        """Start what a line says; its process id."""
        self._kill()
        self._stdin.write(json.dumps(line) + "\n")
        self._stdin.flush()
        self._running = int(self._stdout.readline())
        return self._running

    def end(self) -> tuple[int, float]:
        """(exit code, seconds), once it has ended. Until this is called its process id stays its own."""
        self._stdin.write("\n")
        self._stdin.flush()
        code, seconds = json.loads(self._stdout.readline())
        self._running = None
        return code, seconds

    def _kill(self) -> None:
        """Kill what a test left running that failed before it called `end`."""
        if self._running is not None:
            os.kill(self._running, signal.SIGKILL)  # its process id is its own until `end`
            self.end()

    def close(self) -> None:
        self._kill()
        self._stdin.close()
        self._process.wait()
        self._stdout.close()


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """One process for the module."""
    process = Warm()
    yield process
    process.close()


@pytest.fixture(scope="session")
def codec() -> object:
    """The bundled codec."""
    return load_codec()[0]


@pytest.fixture(scope="session")
def small_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec folder of a few kilobytes: it only encodes."""
    folder = tmp_path_factory.mktemp("codec") / "small"
    save_codec(load_codec(decoder=False)[0], folder, name="small")
    return folder


def picture(seed: int, *, width: int = 48, height: int = 40) -> Image.Image:
    """A smooth coloured picture with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(3, 20) + y / rng.uniform(3, 20) + rng.uniform(0, 6)) for _ in range(3)]
    pixels = 127 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def as_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """A picture file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_folder(root: Path, *, classes: int = 3, per_class: int = 8, width: int = 48, height: int = 40) -> Path:
    """A class folder of JPEG pictures."""
    for label in range(classes):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            image = picture(100 * label + number, width=width, height=height)
            (folder / f"{number:03d}.jpg").write_bytes(as_bytes(image, "JPEG", quality=90))
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of 48 x 40 pixels in three classes. Read-only by agreement."""
    return make_folder(tmp_path_factory.mktemp("source") / "pictures")


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every file of a data set, but for locks and the log of speeds."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "log.jsonl" and not path.name.startswith("lock")
    }


@pytest.fixture(scope="session")
def reference(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of `pictures` encoded by one undisturbed process, five samples a shard."""
    from walloc_data import encode_dataset

    out = tmp_path_factory.mktemp("reference") / "out"
    encode_dataset(pictures, out, samples_per_shard=5, progress=False)
    return hashes(out)


@pytest.fixture
def same_as_reference(reference: dict[str, str]) -> Callable[[Path], None]:
    """Assert that a data set has the reference's files, byte for byte."""

    def check(out: Path) -> None:
        assert hashes(out) == reference

    return check


class StopError(Exception):
    """Error that `store_steps` raises."""


def store_steps(monkeypatch: pytest.MonkeyPatch, stop_at: int) -> list[str]:
    """Raise at the `stop_at`-th write, copy or deletion in a store from now on; returns what was done before."""
    done: list[str] = []

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Store, *args: Any) -> Any:
            if len(done) >= stop_at:
                raise StopError
            done.append(f"{name} {args[-1] if name != 'write_bytes' else args[0]}")
            return real(self, *args)

        return method

    for name in ("write_bytes", "copy", "delete", "publish"):
        monkeypatch.setattr(Store, name, counting(name, getattr(Store, name)))
    return done
