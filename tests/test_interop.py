"""webdataset, wids, datasets and timm, the real ones, read our shards to the same integers as we do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from walloc_data import LatentDataset, encode_dataset
from walloc_data.errors import CorruptShardError
from walloc_data.interop import unpack_picture, unpack_rows, unpack_sample

# What these libraries do with files and sockets is theirs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def encoded(imagenette_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "latents"
    encode_dataset(imagenette_folder, out, size_px=64, samples_per_shard=16, progress=False)
    return out


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def ours(encoded: Path) -> list[tuple[torch.Tensor, int]]:
    """In stored order, which is the order of every other reader that does not shuffle."""
    samples = list(LatentDataset(encoded))
    assert len(samples) == 40
    assert len({label for _, label in samples}) == 10
    return samples


def assert_same(samples: list[tuple[torch.Tensor, int]], ours: list[tuple[torch.Tensor, int]]) -> None:
    assert len(samples) == len(ours)
    for (latent, label), (expected, expected_label) in zip(samples, ours, strict=True):
        assert latent.dtype == torch.int8
        assert torch.equal(latent, expected)
        assert label == expected_label


def shards(encoded: Path) -> list[str]:
    return [str(path) for path in sorted((encoded / "data").glob("train-*.tar"))]


def test_webdataset_reads_the_same_integers(encoded: Path, ours: list[tuple[torch.Tensor, int]]) -> None:
    import webdataset

    assert_same(list(webdataset.WebDataset(shards(encoded), shardshuffle=False).map(unpack_sample)), ours)
    decoded = webdataset.WebDataset(shards(encoded), shardshuffle=False).decode("pil").map(unpack_sample)
    assert_same(list(decoded), ours)


def test_wids_reads_the_same_integers(encoded: Path, ours: list[tuple[torch.Tensor, int]], tmp_path: Path) -> None:
    wids = pytest.importorskip("wids")
    dataset = wids.ShardListDataset(
        str(encoded / "index" / "train.wids.json"), cache_dir=str(tmp_path), transformations=unpack_sample
    )
    assert len(dataset) == 40
    assert_same([dataset[i] for i in range(40)], ours)
    assert_same([dataset[17]], [ours[17]])


def test_the_wids_index_describes_every_shard(encoded: Path) -> None:
    """Its schema, for whoever reads it without the package."""
    import hashlib

    index = json.loads((encoded / "index" / "train.wids.json").read_text())
    assert (index["wids_version"], index["name"]) == (1, "train")
    for shard in index["shardlist"]:
        path = encoded / "index" / shard["url"]
        assert shard["filesize"] == path.stat().st_size
        assert shard["md5sum"] == hashlib.md5(path.read_bytes()).hexdigest()
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == 40


@pytest.mark.parametrize("how", ["webdataset", "the readme"])
def test_datasets_reads_the_same_integers(
    encoded: Path, ours: list[tuple[torch.Tensor, int]], tmp_path: Path, how: str
) -> None:
    from datasets import load_dataset

    if how == "webdataset":
        files = {"train": str(encoded / "data" / "train-*.tar")}
        dataset = load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path))
    else:  # the Hub's detection: the folder's README.md says where the splits are
        dataset = load_dataset(str(encoded), split="train", cache_dir=str(tmp_path))
    assert int(dataset[0]["__key__"]) == LatentDataset(encoded).index["source_index"][0]
    rows = dataset.with_transform(unpack_rows)
    assert_same([(row["latent"], row["label"]) for row in rows], ours)
    batch = rows[3:6]
    assert torch.equal(torch.stack(batch["latent"]), torch.stack([latent for latent, _ in ours[3:6]]))


def test_datasets_streams_the_same_integers(
    encoded: Path, ours: list[tuple[torch.Tensor, int]], tmp_path: Path
) -> None:
    from datasets import load_dataset

    stream = load_dataset(str(encoded), split="train", streaming=True, cache_dir=str(tmp_path))
    samples = [unpack_rows({"webp": [row["webp"]], "cls": [row["cls"]]}) for row in stream]
    assert_same([(sample["latent"][0], sample["label"][0]) for sample in samples], ours)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_datasets_streams_every_sample_once_with_more_workers_than_shards(
    encoded: Path, ours: list[tuple[torch.Tensor, int]]
) -> None:
    from datasets import load_dataset

    files = {"train": shards(encoded)}
    stream = load_dataset("webdataset", data_files=files, split="train", streaming=True)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=4)
    samples = {}
    for row in loader:
        unpacked = unpack_rows({"webp": [row["webp"]], "cls": [row["cls"]]})
        assert row["__key__"] not in samples
        samples[row["__key__"]] = (unpacked["latent"][0], unpacked["label"][0])
    order = [f"{index:09d}" for index in LatentDataset(encoded).index["source_index"]]
    assert_same([samples[key] for key in order], ours)


def test_timm_reads_the_same_integers(encoded: Path, ours: list[tuple[torch.Tensor, int]]) -> None:
    from timm.data import create_dataset

    dataset = create_dataset("wds/latents", root=str(encoded), split="train", transform=unpack_picture)
    assert len(dataset) == 40
    assert_same(list(dataset), ours)


def test_pictures_that_are_not_packed_latents_are_refused() -> None:
    with pytest.raises(CorruptShardError, match=r"RGB picture of 8 bits, not float32 \(3, 8, 8\): unpack it before"):
        unpack_picture(np.zeros((3, 8, 8), np.float32))
    with pytest.raises(CorruptShardError, match=r"sample '7' has no .webp: it holds \['__key__', 'jpg'\]"):
        unpack_sample({"__key__": "7", "jpg": b""})
    with pytest.raises(CorruptShardError, match="not a readable WebP picture"):
        unpack_picture(b"nothing")


def test_undecoded_pictures_of_datasets_are_read_too(encoded: Path, ours: list[tuple[torch.Tensor, int]]) -> None:
    import tarfile

    with tarfile.open(shards(encoded)[0]) as tar:
        data = tar.extractfile(tar.getmembers()[0]).read()  # type: ignore[union-attr]
    for picture in (data, {"bytes": data, "path": None}):
        assert torch.equal(unpack_picture(picture), ours[0][0])
