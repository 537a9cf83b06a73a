"""Damage in the cache is mended from the object store; what the store itself has wrong is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.errors import CorruptShardError, FormatError
from walloc_data.format import Manifest
from walloc_data.storage import ShardCache

pytestmark = [
    pytest.mark.object_store,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.usefixtures("credentials"),
]

Ids = Callable[[torch.Tensor], list[int]]
Change = Callable[[str, str, bytes | None], None]


def flip(path: Path, places: list[int]) -> None:
    """Flip one bit at each place of a file that is mapped by readers: in place."""
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            [value] = file.read(1)
            file.seek(place)
            file.write(bytes([value ^ 8]))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_cached_shard_that_is_damaged_is_fetched_again(
    url: str,
    source: Path,
    faults: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ids_of: Ids,
    expected_latent: Callable[..., Any],
    num_workers: int,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
    dataset = LatentDataset(url, cache_folder=tmp_path)
    loader = dataset.loader(batch_size=16, num_workers=num_workers)
    assert [i for latents, _ in loader for i in ids_of(latents)] == list(range(320))
    assert faults.count("data/train") == 20
    rows = pq.read_table(source / "index" / "train.parquet").to_pylist()
    for number in (3, 11):
        path = ShardCache(tmp_path).path(dataset.record.shards[number])
        flip(path, [row["offset"] + row["length"] // 2 for row in rows if row["shard"] == number])
    for reader in (loader, LatentDataset(url, cache_folder=tmp_path).loader(batch_size=16)):
        read = [latent for latents, _ in reader for latent in latents]
        assert all(torch.equal(read[i], torch.from_numpy(expected_latent(i, (4, 4)))) for i in range(320))
        assert faults.count("data/train") == 22  # these two, once


def test_damage_that_only_the_decoder_sees_is_mended_without_checksums_too(
    upload: Callable[[Path], str], make_dataset: Callable[..., Manifest], tmp_path: Path, ids_of: Ids
) -> None:
    make_dataset(tmp_path / "old", num_samples=16, checksums=False)
    url = upload(tmp_path / "old")
    dataset = LatentDataset(url, cache_folder=tmp_path)
    assert ids_of(dataset[3][0][None]) == [3]
    path = ShardCache(tmp_path).path(dataset.record.shards[0])
    [row] = pq.read_table(tmp_path / "old" / "index" / "train.parquet").to_pylist()[5:6]
    flip(path, [row["offset"] + 8])  # of "WEBP"
    assert ids_of(dataset[5][0][None]) == [5]


def test_an_index_of_other_shards_is_named(
    upload: Callable[[Path], str], make_dataset: Callable[..., Manifest], tmp_path: Path, change: Change
) -> None:
    make_dataset(tmp_path / "set", num_samples=16)
    url = upload(tmp_path / "set")
    index = tmp_path / "set" / "index" / "train.parquet"
    table = pq.read_table(index)
    values = [value ^ 1 for value in table["crc32"].to_pylist()]
    changed = table.set_column(table.schema.get_field_index("crc32"), "crc32", pa.array(values, pa.uint32()))
    pq.write_table(changed, index)
    change(url, "index/train.parquet", index.read_bytes())
    with pytest.raises(FormatError, match=r"index/train.parquet: its sha256 is"):
        LatentDataset(url, cache_folder=tmp_path)
    manifest = json.loads((tmp_path / "set" / "walloc.json").read_text())
    del manifest["splits"]["train"]["index_sha256"]
    change(url, "walloc.json", json.dumps(manifest).encode())
    with pytest.raises(CorruptShardError, match=r"sample 000000002: .* The index does not match this shard"):
        LatentDataset(url, cache_folder=tmp_path)[2]


def test_labels_changed_at_the_source_are_not_those_of_the_cache(
    upload: Callable[[Path], str], make_dataset: Callable[..., Manifest], tmp_path: Path, change: Change
) -> None:
    make_dataset(tmp_path / "old", num_samples=16, checksums=False)
    url = upload(tmp_path / "old")
    assert LatentDataset(url, cache_folder=tmp_path)[2][1] == 2
    index = tmp_path / "old" / "index" / "train.parquet"
    table = pq.read_table(index)
    pq.write_table(table.set_column(4, "label", pa.array([4] * 16, pa.int64())), index)
    change(url, "index/train.parquet", index.read_bytes())
    assert LatentDataset(url, cache_folder=tmp_path)[2][1] == 4
