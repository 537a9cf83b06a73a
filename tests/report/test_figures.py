"""The pictures of the README can be drawn again by anybody."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import warm
from walloc_data.codec import load_codec
from walloc_data.report import latent_strip

ROOT = Path(__file__).resolve().parents[2]


def test_a_strip_shows_the_picture_and_what_becomes_of_it() -> None:
    codec, info = load_codec()
    ramp = np.linspace(0, 255, 45 * 61 * 3).reshape(45, 61, 3).astype(np.uint8)
    strip = latent_strip(ramp, codec=codec, info=info, height_px=90)
    assert strip.height == 90 + 36 + 48
    drawn = np.asarray(strip)[18 : 18 + 90, 18 : 18 + 122]
    expected = np.asarray(Image.fromarray(ramp).resize((122, 90), Image.Resampling.LANCZOS))
    assert np.array_equal(drawn, expected)


@pytest.mark.slow
def test_the_figures_of_the_readme_are_made_by_one_command(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    warm.run([ROOT / "examples" / "figures.py", "--out", tmp_path], check=True, cwd=ROOT)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["astronaut.webp", "chelsea.webp"]
    assert all((tmp_path / name).stat().st_size < 200_000 for name in names)
