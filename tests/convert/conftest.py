"""A small class folder, and what "the same data set" means."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from walloc_data.codec import load_codec, save_codec


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
