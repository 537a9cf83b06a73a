"""Manifests, indices and shards come from strangers: what they claim is checked before it is believed."""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.dataset import decode
from walloc_data.dataset.decode import webp_size
from walloc_data.errors import CorruptShardError, FormatError, LoaderError, StorageError
from walloc_data.format import Manifest, shard_name
from walloc_data.latents import encode_webp

Make = Callable[..., Manifest]


@pytest.fixture
def root(tmp_path: Path, make_dataset: Make) -> Path:
    make_dataset(tmp_path / "set", num_samples=40)
    return tmp_path / "set"


def tell_manifest(root: Path) -> None:
    """Make the manifest agree with the index's file as it is now: whoever writes a lying index would."""
    manifest = json.loads((root / "walloc.json").read_text())
    digest = hashlib.sha256((root / "index" / "train.parquet").read_bytes()).hexdigest()
    manifest["splits"]["train"]["index_sha256"] = digest
    (root / "walloc.json").write_text(json.dumps(manifest))


def change_index(root: Path, row: int, **values: object) -> None:
    path = root / "index" / "train.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[row] |= values
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    tell_manifest(root)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": -1}, "row 3: its offset and length point outside its shard"),
        ({"offset": 10**9}, "row 3: its offset and length point outside its shard"),
        ({"offset": 2**63 - 1}, "row 3: its offset and length point outside its shard"),
        ({"length": 0}, "row 3: its offset and length point outside its shard"),
        ({"length": 2**31 - 1}, "row 3: its offset and length point outside its shard"),
        ({"shard": 1}, "rows are not in the order of the manifest's shards"),
        ({"shard": -1}, "rows are not in the order of the manifest's shards"),
        ({"height": 0}, r"a value of height is not in \[1, 8388608\]"),
        ({"width": 2**31 - 1}, r"a value of width is not in \[1, 8388608\]"),
        ({"height": 64}, r"a sample does not have the manifest's latent_shape \(12, 4, 4\)"),
        ({"label": -7}, "a label is negative or missing"),
        ({"label": None}, "a label is negative or missing"),
        ({"offset": None}, "column 'offset' has missing values"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_index_that_lies_is_refused(root: Path, change: dict[str, object], message: str) -> None:
    change_index(root, 3, **change)
    with pytest.raises(FormatError, match=rf"index/train.parquet: {message}"):
        LatentDataset(root)


def test_an_index_without_a_column_is_refused(root: Path) -> None:
    path = root / "index" / "train.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["length"]), path)
    tell_manifest(root)
    with pytest.raises(FormatError, match="no column 'length'"):
        LatentDataset(root)


def test_an_index_that_would_unpack_to_a_hundredfold_is_refused(root: Path) -> None:
    count = 300_000
    zeros = pa.array([0]).take(pa.array([0] * count))
    names = ("shard", "offset", "length", "label", "height", "width", "source_index")
    pq.write_table(pa.table(dict.fromkeys(names, zeros)), root / "index" / "train.parquet")
    manifest = json.loads((root / "walloc.json").read_text())
    split = manifest["splits"]["train"]
    split["num_samples"] = count
    split["shards"] = split["shards"][:1]
    split["shards"][0]["num_samples"] = count
    (root / "walloc.json").write_text(json.dumps(manifest))
    tell_manifest(root)
    with pytest.raises(FormatError, match=r"300000 rows in \d+ bytes are not plausible"):
        LatentDataset(root)


def test_an_index_that_is_missing_is_named(root: Path) -> None:
    (root / "index" / "train.parquet").unlink()
    with pytest.raises(StorageError, match=r"index/train.parquet: no such file"):
        LatentDataset(root)


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nothing: no walloc.json: not a data set of latents"):
        LatentDataset(tmp_path / "nothing")


def test_a_split_that_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(FormatError, match=r"no split 'val'; it has \['train'\]"):
        LatentDataset(root, split="val")


def test_arguments_are_checked(root: Path) -> None:
    with pytest.raises(LoaderError, match="cache must be 'shards' or 'array', not 'ram'"):
        LatentDataset(root, cache="ram")  # type: ignore[arg-type]
    with pytest.raises(LoaderError, match="window_shards must be at least 1, not 0"):
        LatentDataset(root, window_shards=0)
    with pytest.raises(LoaderError, match="num_threads must be at least 1, not 0"):
        LatentDataset(root, num_threads=0)


def test_a_manifest_cannot_name_files_outside(root: Path) -> None:
    text = (root / "walloc.json").read_text()
    for name in ("../data/train-00000.tar", "/etc/passwd"):
        (root / "walloc.json").write_text(text.replace("data/train-00000.tar", name))
        with pytest.raises(FormatError, match="is not a relative path inside the data set"):
            LatentDataset(root)


def test_a_local_shard_that_is_missing_or_cut_is_named(root: Path) -> None:
    dataset = LatentDataset(root)
    shard = root / shard_name("train", 1)
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(CorruptShardError, match=r"train-00001.tar: \d+ bytes, but its record says \d+"):
        dataset[20]
    shard.unlink()
    with pytest.raises(
        StorageError, match=r"train-00001.tar: No such file or directory. The manifest lists this shard"
    ):
        dataset[20]
    assert dataset[3][1] == 3  # the others are as they were


def rewrite_payload(root: Path, row: int, data: bytes) -> None:
    """Replace one sample's bytes in place, and tell manifest and index: an attacker would."""
    rows = pq.read_table(root / "index" / "train.parquet").to_pylist()
    path = root / shard_name("train", rows[row]["shard"])
    shard = bytearray(path.read_bytes())
    offset = rows[row]["offset"]
    assert len(data) <= rows[row]["length"]
    shard[offset : offset + len(data)] = data
    path.write_bytes(shard)
    change_index(root, row, length=len(data), crc32=zlib.crc32(data))
    manifest = json.loads((root / "walloc.json").read_text())
    manifest["splits"]["train"]["shards"][rows[row]["shard"]]["sha256"] = hashlib.sha256(shard).hexdigest()
    (root / "walloc.json").write_text(json.dumps(manifest))


def lying_webp(width: int, height: int) -> bytes:
    """A few bytes that claim a picture of any size."""
    bits = (width - 1) | (height - 1) << 14
    chunk = b"\x2f" + struct.pack("<I", bits) + b"\x00" * 8
    return b"RIFF" + struct.pack("<I", len(chunk) + 13) + b"WEBPVP8L" + struct.pack("<I", len(chunk)) + chunk + b"\0"


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["pillow", "fastest"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lying_webp(8192, 8192), "a packed picture of 8192 x 8192 where 8 x 8 is expected"),
        (lying_webp(8, 16), "a packed picture of 16 x 8 where 8 x 8 is expected"),
        (lying_webp(8, 8), "not a readable WebP picture"),
        (b"not a picture at all", "not a readable WebP picture"),
        (b"", None),
    ],
    ids=["bomb", "wrong_size", "garbage_inside", "garbage", "as_it_was"],
)
def test_a_sample_that_lies_is_named_and_allocates_nothing(
    root: Path, data: bytes, message: str | None, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "pillow":
        monkeypatch.setattr(decode, "_fast_decoder", lambda: None)
    if message is None:
        assert LatentDataset(root)[18][1] == 3
        return
    rewrite_payload(root, 18, data)
    dataset = LatentDataset(root)
    with pytest.raises(CorruptShardError, match=rf"train-00001.tar: sample 000000018: .*{message}"):
        dataset[18]
    assert dataset[17][1] == 2


def test_decoders_agree_value_by_value(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imagecodecs")
    assert decode._fast_decoder() is not None
    fast = [latents for latents, _ in LatentDataset(root).loader(batch_size=7)]
    monkeypatch.setattr(decode, "_fast_decoder", lambda: None)
    slow = [latents for latents, _ in LatentDataset(root).loader(batch_size=7)]
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))


def test_a_picture_with_alpha_is_refused_by_every_decoder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(lying_webp(8, 8))
    data[24] |= 0x10
    assert webp_size(memoryview(bytes(data))) is None
    rewrite_payload(root, 18, bytes(data))
    with pytest.raises(CorruptShardError, match="sample 000000018"):
        LatentDataset(root)[18]


def test_the_size_is_read_from_the_container() -> None:
    import numpy as np

    for height, width in ((1, 1), (5, 9), (64, 48), (300, 2)):
        data = encode_webp(np.zeros((height, width, 3), np.uint8))
        assert webp_size(memoryview(data)) == (height, width)
    assert webp_size(memoryview(b"RIFF")) is None
