"""Checksums of samples and of the index, as a conversion writes them and `verify` compares them."""

import hashlib
import json
import tarfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from walloc_data import LatentDataset, encode_dataset
from walloc_data.convert import finish_dataset, verify_dataset


@pytest.fixture
def latents(imagenette_folder: Path, tmp_path: Path) -> Path:
    encode_dataset(
        imagenette_folder, tmp_path / "latents", size_px=64, samples_per_shard=20, mirror=True, progress=False
    )
    return tmp_path / "latents"


def manifest_of(root: Path) -> dict:
    return json.loads((root / "walloc.json").read_text())


def test_the_index_holds_the_checksum_of_every_sample_and_the_manifest_that_of_the_index(latents: Path) -> None:
    index = latents / "index" / "train.parquet"
    assert manifest_of(latents)["splits"]["train"]["index_sha256"] == hashlib.sha256(index.read_bytes()).hexdigest()
    rows = pq.read_table(index).to_pylist()
    assert len(rows) == 40
    for number in range(2):
        with tarfile.open(latents / "data" / f"train-{number:05d}.tar") as tar:
            for row in (row for row in rows if row["shard"] == number):
                for prefix, suffix in (("", "webp"), ("mirror_", "mirror.webp")):
                    data = tar.extractfile(f"{row['key']}.{suffix}").read()  # type: ignore[union-attr]
                    assert row[f"{prefix}crc32"] == zlib.crc32(data)


def test_verify_names_an_index_that_was_changed(latents: Path) -> None:
    path = latents / "index" / "train.parquet"
    table = pq.read_table(path)
    for column in ("crc32", "mirror_crc32"):
        values = table[column].to_pylist()
        values[3] ^= 1
        changed = table.set_column(table.schema.get_field_index(column), column, pa.array(values, pa.uint32()))
        pq.write_table(changed, path)
        problems = verify_dataset(latents, progress=False).problems
        assert f"{column} is {values[3]}, expected {values[3] ^ 1}" in problems[0]
        assert f"{path}: its SHA-256 differs from the manifest" in problems


def test_a_conversion_begun_before_there_were_checksums_is_finished_and_read(latents: Path) -> None:
    rows = latents / ".walloc" / "train" / "00000.parquet"
    pq.write_table(pq.read_table(rows).drop_columns(["crc32", "mirror_crc32"]), rows)
    finish_dataset(str(latents))
    found = pq.read_table(latents / "index" / "train.parquet")["crc32"].to_pylist()
    assert found[:20] == [None] * 20
    assert None not in found[20:]
    assert verify_dataset(latents, progress=False).problems == ()
    assert len(list(LatentDataset(latents, mirror=True, shuffle=True))) == 40


def test_a_data_set_written_before_there_were_checksums_is_whole(latents: Path) -> None:
    path, manifest = latents / "index" / "train.parquet", manifest_of(latents)
    pq.write_table(pq.read_table(path).drop_columns(["crc32", "mirror_crc32"]), path)
    del manifest["splits"]["train"]["index_sha256"]
    (latents / "walloc.json").write_text(json.dumps(manifest))
    assert verify_dataset(latents, progress=False).problems == ()
    assert len(list(LatentDataset(latents))) == 40
