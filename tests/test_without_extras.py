"""Whoever encodes a folder, reads latents and builds a model needs none of the optional packages."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

WITHOUT = """
from importlib.machinery import PathFinder

ABSENT = ("datasets", "webdataset", "pandas", "skimage", "matplotlib", "diffusers")
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *rest: None if name.partition(".")[0] in ABSENT else find(name, *rest))
"""
JOB = """
import sys
import walloc_data

pictures, latents = sys.argv[1:]
for name in walloc_data.__all__:
    getattr(walloc_data, name)
print(walloc_data.encode_dataset(pictures, latents, size_px=32, progress=False).num_samples)
print(walloc_data.verify_dataset(latents, split="train", source=pictures, progress=False).problems)
train = walloc_data.LatentDataset(latents)
model = walloc_data.create_latent_model("test_convnext", dataset=train)
for latent, label in train.loader(batch_size=4, num_workers=1):
    print(tuple(model(latent).shape))
"""
REFUSED = """
import sys
from walloc_data import LatentDataset, open_source
from walloc_data.errors import MissingExtraError
from walloc_data.sources import find_splits

pictures, latents = sys.argv[1:]
for act in (
    lambda: open_source("hf:somebody/something"),
    lambda: open_source(f"parquet:{latents}/index/*.parquet"),
    lambda: find_splits("hf:somebody/something"),
    lambda: LatentDataset(latents).to_pandas(),
):
    try:
        act()
    except MissingExtraError as error:
        print(error)
"""


@pytest.mark.slow
def test_encoding_a_folder_reading_it_and_models_need_no_optional_package(tmp_path: Path) -> None:
    for i in range(8):
        folder = tmp_path / "pictures" / f"class_{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i * 30, 99, 20)).save(folder / f"{i}.png")
    script = tmp_path / "script.py"
    script.write_text(WITHOUT + JOB + REFUSED)
    command = [sys.executable, script, tmp_path / "pictures", tmp_path / "latents"]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = found.stdout.splitlines()
    assert lines[:4] == ["8", "()", "(4, 2)", "(4, 2)"]
    assert lines[4:] == [
        "hf:somebody/something needs the package 'datasets': pip install 'walloc_data[datasets]'",
        f"parquet:{tmp_path}/latents/index/*.parquet needs the package 'datasets': pip install 'walloc_data[datasets]'",
        "hf:somebody/something needs the package 'datasets': pip install 'walloc_data[datasets]'",
        "to_pandas() needs the package 'pandas': pip install 'walloc_data[pandas]'",
    ]
