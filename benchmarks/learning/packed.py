"""Training sets small enough to carry to a machine that is lent for minutes: files of WebP pictures in one array.

A packed split is a `.npz`: `data` (every file after the other), `ends` (where each ends), `labels`, `side`. Latents are
the WebP files of the data set as they are. Reduced pixels have as many values as the latents, rounded to multiples of
`PIXEL_STEP` (an error of 1.2 grey levels: a third of the bytes), which the latents' own integers are as well.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from walloc_data.latents import unpack

PIXEL_STEP = 4
SPLITS = ("train", "val")


def prepare(pictures: Path, *, size_px: int, out: Path, work: Path, pixels: bool = False) -> None:
    """Encode `pictures/train` and `pictures/val`, and pack `out/latents` and `out/reduced`; `out/pixels` if asked."""
    from walloc_data import LatentDataset, encode_dataset
    from walloc_data.pictures import original_pictures
    from walloc_data.sources import open_source
    from walloc_data.storage import Store, read_manifest

    kinds = ("latents", "reduced", "pixels") if pixels else ("latents", "reduced")
    for kind in kinds:
        (out / kind).mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        encode_dataset(pictures / split, work, split=split, size_px=size_px, progress=False)
    manifest = read_manifest(Store(work))
    for kind in kinds:  # each folder can be carried alone
        (out / kind / "walloc.json").write_text(manifest.to_json())
    for split in SPLITS:
        dataset = LatentDataset(work, split=split)
        labels, side = dataset.labels, size_px // manifest.codec.cell_px
        pack(out / "latents" / f"{split}.npz", list(_webp_files(work, manifest, split)), labels, side=side)
        read = original_pictures(open_source(pictures / split), settings=manifest.settings)
        files = [reduced_file(read(row), side=size_px // 4) for row in dataset.index["source_index"].tolist()]
        pack(out / "reduced" / f"{split}.npz", files, labels, side=size_px // 4)
        if pixels:
            write_pixels(out / "pixels" / f"{split}.npy", dataset, read, side=size_px)


def write_pixels(path: Path, dataset: Any, read: Callable[[int], npt.NDArray[np.uint8]], *, side: int) -> None:
    """Write a split's pictures as (N, 3, side, side) uint8, to be mapped, and the labels beside it as JSON."""
    rows = dataset.index["source_index"].tolist()
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(rows), 3, side, side))
    for i, row in enumerate(rows):
        array[i] = read(row).transpose(2, 0, 1)
    array.flush()
    path.with_suffix(".json").write_text(json.dumps(dataset.labels.tolist()))


def _webp_files(work: Path, manifest: Any, split: str) -> Iterator[bytes]:
    """Yield the latents' files in the order of the index."""
    for shard in manifest.splits[split].shards:
        with tarfile.open(work / shard.name) as tar:
            for member in tar:
                if member.name.endswith(".webp"):
                    yield tar.extractfile(member).read()  # type: ignore[union-attr]


def reduced_file(picture: npt.NDArray[np.uint8], *, side: int) -> bytes:
    """Write (H, W, 3) uint8 as a lossless WebP of (side, side), in units of PIXEL_STEP."""
    small = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    units = np.round(np.asarray(small) / PIXEL_STEP).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(units).save(buffer, "WEBP", lossless=True, quality=50, method=4)
    return buffer.getvalue()


def pack(path: Path, files: Sequence[bytes], labels: Any, *, side: int) -> None:
    """Write one split: files, their ends, labels, and the side of a picture."""
    data = np.frombuffer(b"".join(files), np.uint8)
    ends = np.cumsum([len(file) for file in files])
    with path.open("wb") as out:
        np.savez(out, data=data, ends=ends, labels=np.asarray(labels, np.int64), side=side)


def unpack_split(path: Path, *, latent_dim: int | None) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Decode a split: (N, C, h, w) int8 latents, or (N, 3, H, W) uint8 pixels for latent_dim None; labels (N,)."""
    with np.load(path) as stored:
        data, ends, labels = stored["data"], stored["ends"], stored["labels"]
    workers = os.cpu_count() or 1
    bounds = np.linspace(0, len(ends), 4 * workers + 1).astype(int)
    starts = np.concatenate([[0], ends])
    jobs = [
        (data[starts[low] : starts[high]].tobytes(), (ends[low:high] - starts[low]).tolist(), latent_dim)
        for low, high in pairwise(bounds)
        if high > low
    ]
    # Before CUDA is touched, a fork is safe and costs no imports.
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        return np.concatenate(list(pool.map(_decode, jobs))), labels


def _decode(job: tuple[bytes, list[int], int | None]) -> npt.NDArray[Any]:
    data, ends, latent_dim = job
    pictures = []
    for start, end in zip([0, *ends], ends, strict=False):
        with Image.open(io.BytesIO(data[start:end]), formats=("WEBP",)) as image:
            pictures.append(np.asarray(image))
    stacked = np.stack(pictures)
    if latent_dim is not None:
        return unpack(stacked, latent_dim=latent_dim)
    pixels = np.minimum(stacked.astype(np.uint16) * PIXEL_STEP, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
