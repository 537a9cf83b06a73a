"""Small data sets written straight from the contract: no encoder, known integers, every sample recognisable."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from walloc_data.format import (
    INDEX_COLUMNS,
    MIRROR_INDEX_COLUMNS,
    OPTIONAL_INDEX_COLUMNS,
    ChannelStatistics,
    CodecSpec,
    EncodeSettings,
    Manifest,
    ShardRecord,
    SplitRecord,
    dump_json,
    index_name,
    sample_key,
    shard_name,
)
from walloc_data.latents import encode_webp, pack

SPEC = CodecSpec("test-16x", 3, 3, 12, 8, "bior4.4", "0" * 64)
_ARROW = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64(), "uint32": pa.uint32()}

Latent = npt.NDArray[np.int8]


def make_latent(source_index: int, shape: tuple[int, int], *, seed: int = 0, mirror: bool = False) -> Latent:
    """Noise that names its sample: the first four values of channel 0 spell the source index, the fifth the mirror."""
    rng = np.random.default_rng([seed, source_index, mirror])
    latent = np.clip(np.round(rng.laplace(0, 8, (12, *shape))), -128, 127).astype(np.int8)
    latent[0].reshape(-1)[:5] = np.array([source_index >> 8 * i & 255 for i in range(4)] + [mirror], np.uint8).view(
        np.int8
    )
    return latent


def read_ids(latents: torch.Tensor) -> list[int]:
    """Source indices of latents that `make_latent` made: (B, 12, h, w)."""
    digits = latents[:, 0].reshape(len(latents), -1)[:, :4].to(torch.int64) & 255
    return (digits << torch.tensor([0, 8, 16, 24])).sum(1).tolist()


def write_dataset(
    root: Path,
    *,
    num_samples: int = 100,
    samples_per_shard: int = 16,
    shapes: Sequence[tuple[int, int]] = ((4, 4),),
    num_classes: int | None = 5,
    mirror: bool = False,
    split: str = "train",
    seed: int = 0,
    checksums: bool = True,
) -> Manifest:
    """Write one split by `walloc_data.format` alone: sample i has label i % num_classes and shape i % len(shapes).

    checksums: False writes what data sets were before the index had checksums and the manifest its sha256.
    """
    rows: dict[str, list[object]] = {name: [] for name, _, _ in (*INDEX_COLUMNS, *MIRROR_INDEX_COLUMNS)}
    shards = []
    counts = np.zeros((12, 256), np.int64)
    for first in range(0, num_samples, samples_per_shard):
        buffer = io.BytesIO()
        members = range(first, min(num_samples, first + samples_per_shard))
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:

            def add(
                name: str, data: bytes, tar: tarfile.TarFile = tar, buffer: io.BytesIO = buffer
            ) -> tuple[int, int, int]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                return buffer.tell() - -(-len(data) // 512) * 512, len(data), zlib.crc32(data)

            for i in members:
                h, w = shapes[i % len(shapes)]
                key = sample_key(i)
                latent = make_latent(i, (h, w), seed=seed)
                for channel in range(12):
                    counts[channel] += np.bincount(latent[channel].reshape(-1).astype(int) + 128, minlength=256)
                places = [add(f"{key}.webp", _webp(latent))]
                if mirror:
                    places.append(add(f"{key}.mirror.webp", _webp(make_latent(i, (h, w), seed=seed, mirror=True))))
                if num_classes is not None:
                    add(f"{key}.cls", str(i % num_classes).encode())
                add(
                    f"{key}.json",
                    dump_json({"height": 8 * h, "width": 8 * w, "padding": [0] * 4, "source_index": i}).encode(),
                )
                label = None if num_classes is None else i % num_classes
                values = (
                    key,
                    len(shards),
                    *places[0][:2],
                    label,
                    8 * h,
                    8 * w,
                    i,
                    places[0][2],
                    *(places[1] if mirror else (None, None, None)),
                )
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
        path = root / shard_name(split, len(shards))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        shards.append(ShardRecord(shard_name(split, len(shards)), len(members), path.stat().st_size, digest))
    columns = (*INDEX_COLUMNS, *(MIRROR_INDEX_COLUMNS if mirror else ()))
    table = pa.table({name: pa.array(rows[name], _ARROW[kind]) for name, kind, _ in columns})
    if not checksums:
        table = table.drop_columns(sorted(OPTIONAL_INDEX_COLUMNS & set(table.column_names)))
    (root / "index").mkdir(exist_ok=True)
    pq.write_table(table, root / index_name(split))
    index_sha256 = hashlib.sha256((root / index_name(split)).read_bytes()).hexdigest()
    record = SplitRecord(
        source={"kind": "test"},
        num_samples=num_samples,
        num_failures=0,
        shards=tuple(shards),
        latent_shape=(12, *shapes[0]) if len(shapes) == 1 else None,
        labelled=num_classes is not None,
        statistics=ChannelStatistics(tuple(map(tuple, counts.tolist()))),
        index_sha256=index_sha256 if checksums else None,
    )
    names = None if num_classes is None else tuple(f"class{i}" for i in range(num_classes))
    settings = EncodeSettings(samples_per_shard=samples_per_shard, mirror=mirror)
    manifest = Manifest(SPEC, settings, names, {split: record}, {"walloc_data": "test"})
    value = json.loads(manifest.to_json())
    if not checksums:
        del value["splits"][split]["index_sha256"]  # the field was not there
    (root / "walloc.json").write_text(dump_json(value))
    return manifest


def _webp(latent: Latent) -> bytes:
    return encode_webp(pack(torch.from_numpy(latent[None]))[0])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads what another left in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Manifest]:
    """`write_dataset`, for tests that need a data set of their own."""
    return write_dataset


@pytest.fixture(scope="session")
def ids_of() -> Callable[[torch.Tensor], list[int]]:
    """`read_ids`."""
    return read_ids


@pytest.fixture(scope="session")
def expected_latent() -> Callable[..., Latent]:
    """`make_latent`."""
    return make_latent


@pytest.fixture(scope="session")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 samples of one shape in 7 shards, 5 classes."""
    root = tmp_path_factory.mktemp("hundred")
    write_dataset(root)
    return root


@pytest.fixture(scope="session")
def mixed_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 samples of three shapes."""
    root = tmp_path_factory.mktemp("mixed")
    write_dataset(root, num_samples=90, shapes=((4, 4), (4, 6), (6, 4)))
    return root


@pytest.fixture(scope="session")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples with the latents of their mirror images."""
    root = tmp_path_factory.mktemp("mirrored")
    write_dataset(root, num_samples=60, mirror=True)
    return root


@pytest.fixture(scope="session")
def write_index() -> Callable[..., Path]:
    """A data set of many samples that are one and the same: a real index over shards that are not."""

    def write(root: Path, *, num_samples: int, samples_per_shard: int = 2048) -> Path:
        payload = _webp(make_latent(0, (4, 4)))
        shard = payload + bytes(512)
        digest = hashlib.sha256(shard).hexdigest()
        sizes = [min(samples_per_shard, num_samples - i) for i in range(0, num_samples, samples_per_shard)]
        (root / "data").mkdir(parents=True)
        (root / "index").mkdir()
        records = []
        for i, size in enumerate(sizes):
            (root / shard_name("train", i)).write_bytes(shard)
            records.append(ShardRecord(shard_name("train", i), size, len(shard), digest))
        index = np.arange(num_samples)
        constant = {"offset": 0, "length": len(payload), "height": 32, "width": 32}
        columns = {
            "key": pa.array(np.char.zfill(index.astype(str), 9)),
            "shard": pa.array(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)),
            "label": pa.array(index % 1000),
            "source_index": pa.array(index),
        } | {name: pa.array(np.full(num_samples, value)) for name, value in constant.items()}
        stored = [(name, kind) for name, kind, _ in INDEX_COLUMNS if name in columns]
        table = pa.table({name: columns[name].cast(_ARROW[kind]) for name, kind in stored})
        pq.write_table(table, root / index_name("train"))
        split = SplitRecord(
            {"kind": "test"}, num_samples, 0, tuple(records), (12, 4, 4), True, ChannelStatistics.zero(SPEC)
        )
        names = tuple(f"class{i}" for i in range(1000))
        settings = EncodeSettings(samples_per_shard=samples_per_shard)
        (root / "walloc.json").write_text(Manifest(SPEC, settings, names, {"train": split}, {}).to_json())
        return root

    return write
