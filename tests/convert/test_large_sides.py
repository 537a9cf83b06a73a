"""Pictures whose packed latent would be larger than WebP allows are failures; all others of the source are encoded."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.convert.conftest import make_folder
from walloc_data import encode_dataset
from walloc_data.convert import verify_dataset
from walloc_data.errors import FormatError
from walloc_data.report import add_preview, report, save_picture


@pytest.mark.slow
def test_sides_beyond_webps_are_one_failure_each_and_the_rest_is_encoded(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", classes=1, per_class=1)
    # 65,528 pixels are 8,191 cells: a packed side of 16,382, the largest even number within WebP's 16,383.
    for width, height in ((70_000, 16), (65_536, 200), (65_528, 8), (8, 65_529)):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(source / "class_0" / f"{width}x{height}.png")
    out = tmp_path / "out"
    summary = encode_dataset(source, out, progress=False)
    assert (summary.num_samples, summary.num_failures) == (2, 3)
    lines = [json.loads(line) for line in (out / "failures" / "train.jsonl").read_text().splitlines()]
    assert {line["name"]: line["reason"].split(";")[0] for line in lines} == {
        "class_0/70000x16.png": "70000 x 16 pixels: its packed latent would have 17500 x 4 pixels, "
        "and WebP allows 16383 a side",
        "class_0/65536x200.png": "65536 x 200 pixels: its packed latent would have 16384 x 50 pixels, "
        "and WebP allows 16383 a side",
        "class_0/8x65529.png": "8 x 65529 pixels: its packed latent would have 2 x 16384 pixels, "
        "and WebP allows 16383 a side",
    }
    assert verify_dataset(out, progress=False).problems == ()
    assert encode_dataset(source, tmp_path / "squares", size_px=16, progress=False).num_failures == 0


def test_a_sheet_too_large_for_webp_says_what_to_do(tmp_path: Path) -> None:
    sheet = Image.new("L", (20, 16_384))
    with pytest.raises(FormatError, match=r"20 x 16384 pixels, and WebP's sides end at 16383: .* name it .png"):
        save_picture(sheet, tmp_path / "sheet.webp")
    assert save_picture(sheet, tmp_path / "sheet.png").is_file()


@pytest.mark.slow
def test_very_wide_and_very_high_pictures_are_shown(tmp_path: Path) -> None:
    """The pictures of a report are WebP, too."""
    (tmp_path / "in").mkdir()
    for width, height in ((65_528, 8), (8, 40_000)):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / "in" / f"{width}.png")
    encode_dataset(tmp_path / "in", tmp_path / "out", progress=False)
    assert "data:image/webp" in report(tmp_path / "out", tmp_path / "report.html").read_text()
    add_preview(tmp_path / "out")
    with Image.open(tmp_path / "out" / "preview.webp") as preview:
        assert max(preview.size) <= 16_383
