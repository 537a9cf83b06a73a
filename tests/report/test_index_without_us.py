"""A data set's index is an ordinary table: it opens where neither torch nor a codec is installed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXPECTED_COLUMNS = [
    *("key", "shard", "offset", "length", "label", "height", "width", "source_index", "crc32"),
    *("source_name", "source_height", "source_width", "crop_left", "crop_top", "crop_right", "crop_bottom"),
]


def test_pandas_reads_the_index(imagenette_latents: Any) -> None:
    pandas = pytest.importorskip("pandas")
    index = pandas.read_parquet(imagenette_latents.out / "index" / "train.parquet")
    assert list(index.columns) == EXPECTED_COLUMNS
    assert len(index) == 43
    assert sorted(index.groupby("label").size()) == [3] + [4] * 10


def test_duckdb_joins_the_index_with_the_manifest(imagenette_latents: Any) -> None:
    duckdb = pytest.importorskip("duckdb")
    rows = duckdb.sql(
        f"select label, count(*), avg(8.0 * length / (height * width)) from "
        f"'{imagenette_latents.out}/index/train.parquet' group by label order by label"
    ).fetchall()
    assert [count for _, count, _ in rows] == [3] + [4] * 10
    assert all(0.1 < bits < 4 for _, _, bits in rows)


def test_datasets_reads_the_index(imagenette_latents: Any, tmp_path: Path) -> None:
    import datasets

    path = str(imagenette_latents.out / "index" / "train.parquet")
    index = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path))
    assert index.column_names == EXPECTED_COLUMNS
    assert len(index) == 43


def test_a_latent_is_read_with_pillow_and_numpy_alone(imagenette_latents: Any) -> None:
    """The offsets lead to the picture; channels 4c + 2a + b lie in colour c, tile row a, tile column b."""
    code = """
import io, json, sys
import numpy, pyarrow.parquet
from PIL import Image

out = sys.argv[1]
manifest = json.load(open(f"{out}/walloc.json"))
row = pyarrow.parquet.read_table(f"{out}/index/train.parquet").to_pylist()[7]
with open(f"{out}/{manifest['splits']['train']['shards'][row['shard']]['name']}", "rb") as shard:
    shard.seek(row["offset"])
    picture = numpy.asarray(Image.open(io.BytesIO(shard.read(row["length"]))))
h, w = picture.shape[0] // 2, picture.shape[1] // 2
latent = picture.reshape(2, h, 2, w, 3).transpose(4, 0, 2, 1, 3).reshape(12, h, w).astype(int) - 128
print(json.dumps([latent.tolist(), sorted(set(sys.modules) & {"torch", "walloc_data"})]))
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(imagenette_latents.out)]
    latent, loaded = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert loaded == []
    from walloc_data import LatentDataset

    assert LatentDataset(imagenette_latents.out)[7][0].tolist() == latent
