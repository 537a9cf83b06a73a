"""Decoders that are neither ours nor libwebp's see the same pixels in a packed latent: ffmpeg's, and a browser's."""

import base64
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from walloc_data.codec import load_codec
from walloc_data.latents import encode_webp, pack

Pixels = npt.NDArray[np.uint8]


def packed_photograph(*, height: int, width: int) -> Pixels:
    from skimage import data

    codec, _ = load_codec(decoder=False)
    pictures = torch.from_numpy(data.astronaut()[:height, :width].copy()).permute(2, 0, 1)[None]
    return pack(codec.encode(pictures))[0]


def pictures() -> dict[str, Pixels]:
    generator = np.random.default_rng(0)
    return {
        "a photograph": packed_photograph(height=512, width=384),
        "a small photograph": packed_photograph(height=64, width=64),
        "one cell": packed_photograph(height=8, width=8),
        "noise": generator.integers(0, 256, (50, 70, 3), dtype=np.uint8),
        "one colour": np.full((24, 24, 3), 128, dtype=np.uint8),
        "a row": generator.integers(120, 136, (1, 33, 3), dtype=np.uint8),
    }


@pytest.fixture(params=["default", "fast"])
def files(request: pytest.FixtureRequest) -> dict[str, tuple[Pixels, bytes]]:
    return {name: (picture, encode_webp(picture, effort=request.param)) for name, picture in pictures().items()}


@pytest.mark.slow
def test_ffmpeg_reads_the_same_pixels(files: dict[str, tuple[Pixels, bytes]], tmp_path: Path) -> None:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("needs ffmpeg")
    for name, (picture, data) in files.items():
        (tmp_path / "latent.webp").write_bytes(data)
        command = [ffmpeg, "-v", "error", "-i", tmp_path / "latent.webp", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        decoded = subprocess.run(command, capture_output=True, check=True).stdout
        assert np.array_equal(np.frombuffer(decoded, np.uint8).reshape(picture.shape), picture), name


DRAW = """async data => {
    const image = new Image();
    image.src = 'data:image/webp;base64,' + data;
    await image.decode();
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext('2d', {willReadFrequently: true});
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    return [pixels.height, pixels.width, Array.from(pixels.data)];
}"""


@pytest.mark.slow
def test_a_browser_shows_the_same_pixels(browser: Any, files: dict[str, tuple[Pixels, bytes]]) -> None:
    page = browser.new_page()
    for name, (picture, data) in files.items():
        height, width, values = page.evaluate(DRAW, base64.b64encode(data).decode())
        shown = np.array(values, dtype=np.uint8).reshape(height, width, 4)
        assert np.array_equal(shown[..., :3], picture), name
        assert (shown[..., 3] == 255).all(), name
    page.close()
