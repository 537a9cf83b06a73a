"""Damage and change are named, or mended where there is another copy; nothing wrong is read in silence."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.errors import CorruptShardError, FormatError, StorageError
from walloc_data.format import Manifest, shard_name
from walloc_data.storage import default_cache_folder

Make = Callable[..., Manifest]
Ids = Callable[[torch.Tensor], list[int]]
Expected = Callable[..., np.ndarray]


@pytest.fixture
def root(tmp_path: Path, make_dataset: Make) -> Path:
    make_dataset(tmp_path / "set", num_samples=40)
    return tmp_path / "set"


@pytest.fixture
def old(tmp_path: Path, make_dataset: Make) -> Path:
    """A data set as they were written before there were checksums."""
    make_dataset(tmp_path / "old", num_samples=40, checksums=False)
    value = json.loads((tmp_path / "old" / "walloc.json").read_text())
    assert "index_sha256" not in value["splits"]["train"]
    assert "crc32" not in pq.read_schema(tmp_path / "old" / "index" / "train.parquet").names
    return tmp_path / "old"


def relabel(root: Path, *, tell: bool) -> None:
    """Move every label on by one; tell the manifest, as one does who means it."""
    path = root / "index" / "train.parquet"
    table = pq.read_table(path)
    labels = pa.array([(label + 1) % 5 for label in table["label"].to_pylist()], pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), path)
    if tell:
        manifest = json.loads((root / "walloc.json").read_text())
        manifest["splits"]["train"]["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (root / "walloc.json").write_text(json.dumps(manifest))


# The index.


def test_an_index_that_was_changed_is_refused_and_never_served_from_the_cache(root: Path) -> None:
    assert LatentDataset(root).labels[:3].tolist() == [0, 1, 2]
    relabel(root, tell=False)
    with pytest.raises(
        FormatError, match=r"index/train.parquet: its sha256 is [0-9a-f]{64}, .* if the change is intended"
    ):
        LatentDataset(root)
    relabel(root, tell=True)
    assert LatentDataset(root).labels[:3].tolist() == [2, 3, 4]


@pytest.mark.parametrize("cache", ["shards", "array"])
def test_copies_with_other_labels_do_not_share_an_index_in_one_cache(root: Path, tmp_path: Path, cache: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    relabel(copy, tell=True)
    for _ in range(2):
        assert [LatentDataset(path, cache=cache)[7][1] for path in (root, copy)] == [2, 3]


def test_no_flipped_bit_of_an_index_goes_unseen(root: Path) -> None:
    path = root / "index" / "train.parquet"
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"index/train.parquet: its sha256 is"):
            LatentDataset(root)


def test_a_data_set_without_checksums_reads_as_before(
    old: Path, root: Path, tmp_path: Path, mirrored: Path, make_dataset: Make
) -> None:
    for (a, x), (b, y) in zip(
        LatentDataset(old).loader(batch_size=8), LatentDataset(root).loader(batch_size=8), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(x, y)
    assert LatentDataset(old).identity == LatentDataset(root).identity  # states of training runs stay good
    relabel(old, tell=False)  # there is nothing to compare it with, but it is not taken from the cache either
    assert LatentDataset(old).labels[:3].tolist() == [1, 2, 3]
    make_dataset(tmp_path / "mirrored", num_samples=60, mirror=True, checksums=False)
    pair = (LatentDataset(path, mirror=True, shuffle=True) for path in (mirrored, tmp_path / "mirrored"))
    for (a, _), (b, _) in zip(*(dataset.loader(batch_size=20) for dataset in pair), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "garbage"])
def test_a_damaged_index_in_the_cache_is_made_anew(root: Path, damage: str) -> None:
    LatentDataset(root)
    [path] = default_cache_folder().rglob("index/*.npy")
    whole = path.read_bytes()
    data = {
        "empty": b"",
        "cut": whole[:-100],
        "flipped": whole[:-500] + bytes([whole[-500] ^ 16]) + whole[-499:],
        "garbage": b"\x93NUMPY nothing",
    }[damage]
    path.unlink()
    path.write_bytes(data)
    again = LatentDataset(root)
    assert again.labels.tolist() == [i % 5 for i in range(40)]
    assert path.read_bytes() == whole


# Shards.


def test_no_flipped_bit_of_a_local_sample_is_read_in_silence(root: Path, expected_latent: Expected) -> None:
    """Of every sample one bit: those that a decoder would take too."""
    rows = pq.read_table(root / "index" / "train.parquet").to_pylist()
    rng = random.Random(1)
    files = {number: bytearray((root / shard_name("train", number)).read_bytes()) for number in range(3)}
    for row in rows[1:]:
        place = row["offset"] + rng.randrange(row["length"])
        files[row["shard"]][place] ^= 1 << rng.randrange(8)
    for number, data in files.items():
        (root / shard_name("train", number)).write_bytes(data)
    dataset = LatentDataset(root)
    assert torch.equal(dataset[0][0], torch.from_numpy(expected_latent(0, (4, 4))))
    for i in range(1, 40):
        message = rf"sample {i:09d}: its bytes differ from those that were encoded .*`walloc-data verify"
        with pytest.raises(CorruptShardError, match=message):
            dataset[i]


def test_mirror_images_are_checked_too(tmp_path: Path, make_dataset: Make) -> None:
    make_dataset(tmp_path / "set", num_samples=8, mirror=True)
    [row] = pq.read_table(tmp_path / "set" / "index" / "train.parquet").to_pylist()[3:4]
    path = tmp_path / "set" / shard_name("train", 0)
    data = bytearray(path.read_bytes())
    data[row["mirror_offset"] + row["mirror_length"] // 2] ^= 4
    path.write_bytes(data)
    dataset = LatentDataset(tmp_path / "set", mirror=True)
    outcomes = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        try:
            latent, _ = dataset[3]
            outcomes.add(f"mirrored {bool(latent[0, 1, 0])}")
        except CorruptShardError as error:
            outcomes.add("named" if "sample 000000003" in str(error) else str(error))
    assert outcomes == {"mirrored False", "named"}


def publish(new: Path, root: Path) -> None:
    """Put a new version over a data set as the converter does: whole files, the manifest last."""
    (root / "walloc.json").unlink()
    for path in sorted(new.rglob("*.*"), key=lambda path: path.name == "walloc.json"):
        path.replace(root / path.relative_to(new))


@pytest.mark.slow
@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("cache", ["shards", "array"])
def test_a_data_set_encoded_again_under_a_reader_is_named(
    tmp_path: Path, make_dataset: Make, expected_latent: Expected, checksums: bool, cache: str
) -> None:
    make_dataset(tmp_path / "set", num_samples=64, checksums=checksums)
    make_dataset(tmp_path / "new", num_samples=64, checksums=checksums, seed=1)
    reader = LatentDataset(tmp_path / "set", cache=cache)
    assert reader[0][1] == 0  # the first shard is open
    publish(tmp_path / "new", tmp_path / "set")
    old = named = 0
    for i in range(64):
        try:
            latent, _ = reader[i]
            assert np.array_equal(latent, expected_latent(i, (4, 4)))
            old += 1
        except (CorruptShardError, StorageError) as error:
            named += "encoded again after it was opened: open it again" in str(error)
    assert (old, named) == (16, 48)
    again = LatentDataset(tmp_path / "set", cache=cache)
    assert all(np.array_equal(again[i][0], expected_latent(i, (4, 4), seed=1)) for i in range(64))


def test_another_split_may_be_added_under_a_reader(tmp_path: Path, make_dataset: Make) -> None:
    """The manifest changes, the shards do not."""
    make_dataset(tmp_path / "set", num_samples=40, checksums=False)
    reader = LatentDataset(tmp_path / "set")
    manifest = json.loads((tmp_path / "set" / "walloc.json").read_text())
    manifest["class_names"][0] = "renamed"
    (tmp_path / "set" / "walloc.json").write_text(json.dumps(manifest))
    assert [label for _, label in reader[:]] == [i % 5 for i in range(40)]


# The array.


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "marks gone", "marks cut", "checksums gone"])
def test_an_array_that_was_cut_is_decoded_again(root: Path, ids_of: Ids, damage: str) -> None:
    first = LatentDataset(root, cache="array")
    list(first.loader(batch_size=8))
    folder = next(default_cache_folder().rglob("latents.int8")).parent
    latents, marks = folder / "latents.int8", folder / "done"
    if damage == "cut":
        os.truncate(latents, latents.stat().st_size // 2)
    elif damage == "empty":
        os.truncate(latents, 0)
    elif damage == "gone":
        latents.unlink()
    elif damage == "marks gone":
        marks.unlink()
    elif damage == "checksums gone":  # or an array of a version that kept none
        (folder / "crc32").unlink()
    else:
        os.truncate(marks, 1)
    again = LatentDataset(root, cache="array")
    assert [i for batch, _ in again.loader(batch_size=8) for i in ids_of(batch)] == list(range(40))
    assert np.fromfile(marks, np.uint8).tolist() == [1, 1, 1]


def flip(path: Path, *, every: int) -> None:
    """Flip one bit in each so many bytes of a file, in place."""
    data = np.fromfile(path, np.uint8)
    data[every // 2 :: every] ^= 1
    with path.open("r+b") as file:
        file.write(data.tobytes())


@pytest.mark.parametrize("mirror", [False, True])
def test_no_flipped_bit_of_an_array_is_read_and_what_is_damaged_is_decoded_again(
    tmp_path: Path, make_dataset: Make, mirror: bool
) -> None:
    make_dataset(tmp_path / "set", num_samples=40, mirror=mirror)

    def all_latents() -> np.ndarray:
        """Read 12 epochs, in which every sample comes as it is and mirrored; a later one is not checked again."""
        loader = LatentDataset(tmp_path / "set", cache="array", mirror=mirror, seed=1).loader(batch_size=40)
        return np.stack([latents.numpy() for _ in range(12) for latents, _ in loader])

    first = all_latents()
    variants = [len(np.unique(first[:, i].reshape(12, -1), axis=0)) for i in range(40)]
    assert set(variants) == {2 if mirror else 1}
    [latents] = (tmp_path / "cache").rglob("latents.int8")
    checksums = latents.with_name("crc32")
    whole = latents.read_bytes(), checksums.read_bytes()
    for damaged, every in ((latents, 1000), (checksums, 16)):
        flip(damaged, every=every)
        assert (latents.read_bytes(), checksums.read_bytes()) != whole
        assert np.array_equal(all_latents(), first)
        assert (latents.read_bytes(), checksums.read_bytes()) == whole


def test_an_array_that_keeps_nothing_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(LatentDataset(root, cache="array").loader(batch_size=8))
    reader = LatentDataset(root, cache="array")._reader
    flip(reader.folder / "latents.int8", every=1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(reader, "_decode", lambda number: None)
    with pytest.raises(CorruptShardError, match="the latent at row 2 differs from what was just written"):
        reader.read(np.arange(40, dtype=np.int64), None)
