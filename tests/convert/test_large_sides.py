"""Pictures whose packed latent would be larger than WebP allows are failures; all others of the source are encoded."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.convert.conftest import make_folder
from walloc_data import encode_dataset
from walloc_data.convert import verify_dataset


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
        "class_0/70000x16.png": "70000 x 16 pixels: its packed latent would have 17500 x 4, "
        "and WebP's sides end at 16383",
        "class_0/65536x200.png": "65536 x 200 pixels: its packed latent would have 16384 x 50, "
        "and WebP's sides end at 16383",
        "class_0/8x65529.png": "8 x 65529 pixels: its packed latent would have 2 x 16384, "
        "and WebP's sides end at 16383",
    }
    assert verify_dataset(out, progress=False).problems == ()
    assert encode_dataset(source, tmp_path / "squares", size_px=16, progress=False).num_failures == 0
