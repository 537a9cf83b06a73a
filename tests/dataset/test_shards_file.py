"""Splits of very many shards list them in a file beside the index, and the manifest stays small."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from walloc_data import LatentDataset, encode_dataset
from walloc_data.convert import verify_dataset
from walloc_data.errors import FormatError, StorageError
from walloc_data.format import ChannelStatistics, EncodeSettings, Manifest, ShardRecord, SplitRecord
from walloc_data.storage import Store, manifest, read_manifest, write_manifest


@pytest.fixture
def root(make_dataset: Callable[..., Manifest], tmp_path: Path) -> Path:
    make_dataset(tmp_path / "data", num_samples=50, samples_per_shard=8)
    write_manifest(Store(tmp_path / "data"), read_manifest(Store(tmp_path / "data")), max_listed_shards=3)
    return tmp_path / "data"


def test_a_data_set_whose_shards_are_listed_apart_reads_as_ever(
    root: Path, make_dataset: Callable[..., Manifest], tmp_path: Path
) -> None:
    value = json.loads((root / "walloc.json").read_text())["splits"]["train"]
    assert "shards" not in value
    assert value["shards_file"]["num_shards"] == 7
    make_dataset(tmp_path / "plain", num_samples=50, samples_per_shard=8)
    assert read_manifest(Store(root)) == read_manifest(Store(tmp_path / "plain"))
    ours, theirs = (LatentDataset(path, shuffle=True, window_shards=2) for path in (root, tmp_path / "plain"))
    assert ours.identity == theirs.identity
    for (mine, label), (other, expected) in zip(ours.loader(batch_size=7), theirs.loader(batch_size=7), strict=True):
        assert torch.equal(mine, other)
        assert torch.equal(label, expected)


def test_conversion_verification_and_overwriting_keep_the_list(
    imagenette_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "MAX_LISTED_SHARDS", 3)
    out = tmp_path / "out"
    for overwrite in (False, True):
        encode_dataset(imagenette_folder, out, size_px=16, samples_per_shard=8, overwrite=overwrite, progress=False)
        assert (out / "index" / "train.shards.parquet").is_file()
        assert verify_dataset(out, progress=False).problems == ()
        assert [shard.name for shard in LatentDataset(out).record.shards] == [
            f"data/train-0000{i}.tar" for i in range(5)
        ]


def change(root: Path, **columns: list[object]) -> None:
    """Write another list, and its checksum into the manifest."""
    path = root / "index" / "train.shards.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, path)
    value = json.loads((root / "walloc.json").read_text())
    value["splits"]["train"]["shards_file"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (root / "walloc.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["../../etc/passwd"] * 7}, r"shards\.parquet: shard 0: .*not a relative path"),
        ({"name": ["data/train-00000.tar"] * 7}, "a shard is listed twice"),
        ({"num_bytes": [-1] * 7}, "shard 0: num_bytes must be an integer"),
        ({"num_samples": [9] * 7}, "num_samples is 50 but the shards have 63"),
        ({"sha256": ["f" * 2**21] * 7}, "column 'sha256' has a text of 2097152 bytes; at most 1048576 are read"),
        ({"num_bytes": ["many"] * 7}, "num_bytes must be an integer"),
    ],
)
def test_a_list_that_lies_is_refused(root: Path, columns: dict[str, list[object]], message: str) -> None:
    change(root, **columns)
    with pytest.raises(FormatError, match=message):
        LatentDataset(root)


def test_a_list_that_is_damaged_or_missing_is_named(root: Path) -> None:
    path = root / "index" / "train.shards.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match=r"train\.shards\.parquet: its sha256 is .*, but the manifest says"):
        LatentDataset(root)
    path.unlink()
    with pytest.raises(StorageError, match=r"train\.shards\.parquet"):
        LatentDataset(root)


@pytest.mark.slow
def test_the_manifest_of_a_billion_pictures_is_small(tmp_path: Path, make_dataset: Callable[..., Manifest]) -> None:
    small = make_dataset(tmp_path / "small", num_samples=8)
    shards = tuple(
        ShardRecord(f"data/train-{i:05d}.tar", 2048, 10**7, hashlib.sha256(b"%d" % i).hexdigest())
        for i in range(20_000)
    )
    record = SplitRecord({}, 20_000 * 2048, 0, shards, (12, 32, 32), True, ChannelStatistics.zero(small.codec))
    began = time.process_time()
    write_manifest(Store(tmp_path), Manifest(small.codec, EncodeSettings(), None, {"train": record}, {}))
    assert time.process_time() - began < 5  # not so much for each shard as there are shards
    assert (tmp_path / "walloc.json").stat().st_size < 12_000
    assert (tmp_path / "index" / "train.shards.parquet").stat().st_size < 60 * 20_000  # 32 bytes of it are the sha256
    assert read_manifest(Store(tmp_path)).splits["train"] == record
