"""Data sets of version 1 of the format stay readable, verifiable, and can be added to and overwritten."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from walloc_data import LatentDataset, encode_dataset
from walloc_data.codec import codec_folder
from walloc_data.convert import verify_dataset
from walloc_data.errors import LoaderError

# Written by the last release of version 1 from `gradients()`, without codec/.
STORED = Path(__file__).with_name("version-1.tar.xz")


def gradients() -> datasets.Dataset:
    """The five pictures that were encoded, with the columns that they had."""
    rows: dict[str, list[object]] = {name: [] for name in ("image", "label", "caption", "age", "box")}
    for i in range(5):
        y, x = np.mgrid[0:24, 0 : 32 + i]
        pixels = np.stack([(x * 7 + i * 40) % 256, (y * 9) % 256, ((x + y) * 5) % 256], -1).astype(np.uint8)
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        values = ({"bytes": png.getvalue(), "path": None}, i % 2, f"gradient {i}", i * 1.5, [i, 0, 10, 12])
        for column, value in zip(rows.values(), values, strict=True):
            column.append(value)
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["even", "odd"]),
        caption=datasets.Value("string"),
        age=datasets.Value("float32"),
        box=datasets.Sequence(datasets.Value("int32"), length=4),
    )
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    root = tmp_path / "version-1"
    with tarfile.open(STORED) as tar:
        tar.extractall(root, filter="data")
    bundled = codec_folder(None)
    assert bundled is not None
    shutil.copytree(bundled, root / "codec")
    return root


def latents_of(root: Path) -> dict[int, tuple[list[int], int]]:
    data = LatentDataset(root)
    pairs = zip(data.index["source_index"].tolist(), data, strict=True)
    return {index: (latent.flatten().tolist(), label) for index, (latent, label) in pairs}


def test_a_data_set_of_version_1_gives_the_latents_that_its_pictures_have_today(stored: Path, tmp_path: Path) -> None:
    assert json.loads((stored / "walloc.json").read_text())["format_version"] == 1
    encode_dataset(gradients(), tmp_path / "today", size_px=16, samples_per_shard=3, progress=False)
    assert latents_of(stored) == latents_of(tmp_path / "today")
    assert sorted(latents_of(stored)) == [0, 1, 2, 3, 4]


def test_a_data_set_of_version_1_has_keys_and_says_where_its_columns_are(stored: Path) -> None:
    data = LatentDataset(stored, columns=["key", "height"])
    assert [sample[2] for sample in data] == data.keys == [f"{i:09d}" for i in data.index["source_index"]]
    with pytest.raises(LoaderError, match="no column 'caption' in its index: version 1"):
        LatentDataset(stored, columns=["caption"])


def test_a_data_set_of_version_1_is_verified_and_finished(stored: Path) -> None:
    verification = verify_dataset(stored, progress=False)
    assert (verification.problems, verification.num_samples) == ((), 5)
    summary = encode_dataset(gradients(), stored, size_px=16, samples_per_shard=3, progress=False)
    assert (summary.new_samples, summary.num_samples) == (0, 5)
    assert verify_dataset(stored, progress=False).problems == ()


def test_a_split_that_joins_a_data_set_of_version_1_is_written_like_its_others_and_with_columns(stored: Path) -> None:
    encode_dataset(gradients(), stored, split="val", progress=False)
    assert verify_dataset(stored, progress=False).problems == ()
    train, val = LatentDataset(stored), LatentDataset(stored, split="val")
    assert train.record.columns is None
    assert val.record.columns == {"age": "float32", "box": {"list": "int32", "length": 4}, "caption": "string"}
    assert val.manifest.settings.sample_json  # as version 1 wrote, so that readers of the JSON find it in every split
    assert val.latent_shape == train.latent_shape == (12, 2, 2)


def test_a_split_of_version_1_can_be_overwritten(stored: Path) -> None:
    encode_dataset(gradients(), stored, size_px=16, samples_per_shard=3, overwrite=True, progress=False)
    assert verify_dataset(stored, progress=False).problems == ()
    data = LatentDataset(stored)
    assert not data.manifest.settings.sample_json
    with tarfile.open(stored / data.record.shards[0].name) as tar:
        assert {name.partition(".")[2] for name in tar.getnames()} == {"webp", "cls"}
