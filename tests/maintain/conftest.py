"""Data sets to change, and what two of them have in common."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from tests.convert.conftest import Warm, picture
from walloc_data import LatentDataset, encode_dataset
from walloc_data.convert import verify_dataset
from walloc_data.latents import decode_webp, unpack

Sample = dict[str, Any]


def items(numbers: range, classes: tuple[str, ...]) -> list[Sample]:
    """Small pictures with a label, a name of their own and two columns."""
    return [
        {
            "image": np.asarray(picture(number, width=40, height=32)),
            "label": classes[number % len(classes)],
            "caption": f"picture {number}",
            "size": number,
        }
        for number in numbers
    ]


@pytest.fixture(scope="session")
def encode_items() -> Callable[..., Path]:
    """Encode `items` as one split."""

    def encode(out: Path, numbers: range, classes: tuple[str, ...] = ("ant", "bee", "cow"), **options: Any) -> Path:
        encode_dataset(items(numbers, classes), out, **({"samples_per_shard": 5, "progress": False} | options))
        return out

    return encode


def contents(out: Path, split: str = "train") -> dict[str, Any]:
    """Return a split's pictures by caption: latent, class name and size; that it is whole is asserted."""
    data = LatentDataset(out, split=split)
    table = pyarrow.parquet.read_table(out / data.record.index_name(split))
    found: dict[str, Any] = {}
    for row, (latent, label) in zip(table.to_pylist(), data, strict=True):
        name = None if data.manifest.class_names is None or label < 0 else data.manifest.class_names[label]
        assert row["caption"] not in found
        found[row["caption"]] = (latent.numpy().tobytes(), latent.shape, name, row["size"])
        shard = data.record.shards[row["shard"]]
        stored = (out / shard.name).read_bytes()[row["offset"] : row["offset"] + row["length"]]
        assert np.array_equal(unpack(decode_webp(stored)), latent.numpy())
    return found


def assert_whole(out: Path) -> None:
    """Nothing is wrong with a data set, and nothing of a change is left."""
    assert verify_dataset(out, progress=False).problems == ()
    left = [path.name for path in (out / ".walloc").iterdir() if "." in path.name]
    assert left == []
    assert not list(out.rglob("*.partial"))
    assert {path.name for path in (out / "data").iterdir()} == {
        Path(shard.name).name for record in LatentDataset(out).manifest.splits.values() for shard in record.shards
    }


@pytest.fixture(scope="module")
def warm_maintain() -> Iterator[Warm]:
    """One process for the module."""
    process = Warm()
    yield process
    process.close()
