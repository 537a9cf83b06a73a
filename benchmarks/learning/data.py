"""Inputs of each arm of the experiment: the same pictures, in one order, as pixels, fewer pixels or latents.

Everything is made once by the package's own converter and kept as memory-mapped uint8 or int8 arrays in a work folder,
so that accuracy does not depend on how fast a disk is; `benchmarks.learning.speed` measures reading what is stored.
"""

import io
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from walloc_data import LatentDataset, encode_dataset
from walloc_data.codec import load_codec
from walloc_data.fitting import fit_codec_operators
from walloc_data.format import EncodeSettings, Manifest
from walloc_data.pictures import original_pictures
from walloc_data.sources import open_source
from walloc_data.transforms import LatentOperators

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Prepared:
    """A work folder, filled."""

    folder: Path
    manifest: Manifest
    labels: dict[str, torch.Tensor]
    stored_bytes: dict[str, float]  # mean bytes a training sample takes on disk, by kind
    operators: LatentOperators

    def array(self, kind: str, split: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.int8]:
        """Open an array, (N, C, H, W): "pixels", "reduced", "jpeg" uint8; "latents", "mirrored" int8."""
        return np.load(self.folder / f"{kind}-{split}.npy", mmap_mode="r")

    def codec_folder(self) -> Path:
        return self.folder / "latents" / "codec"


def prepare(pictures: Path, *, size_px: int, codec: str | None, folder: Path, workers: int | None = None) -> Prepared:
    """Encode `pictures/train` and `pictures/val`, and lay out every arm's arrays. Does only what is not done yet.

    Args:
        workers: processes; default one a core.
    """
    workers = workers or os.cpu_count() or 1
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "latents"
    for split in SPLITS:
        encode_dataset(
            pictures / split,
            out,
            split=split,
            size_px=size_px,
            codec=codec if split == "train" else None,
            workers=workers,
            samples_per_shard=500,
        )
    datasets = {split: LatentDataset(out, split=split) for split in SPLITS}
    manifest = datasets["train"].manifest
    if size_px % manifest.codec.cell_px:
        raise SystemExit(f"--size-px must be a multiple of {manifest.codec.cell_px}")
    stored_path = folder / "stored_bytes.json"
    if not stored_path.exists():
        stored: dict[str, float] = {}
        for split in ("val", "train"):
            dataset = datasets[split]
            read = original_pictures(open_source(pictures / split), settings=manifest.settings)
            latent_bytes = float(dataset.index["length"].mean())
            source_index = dataset.index["source_index"].tolist()
            quality = _jpeg_quality(read, source_index, budget=latent_bytes)
            layout = _Layout(folder, split, pictures, manifest.settings, source_index, quality, size_px)
            sizes = _write_arrays(layout, manifest.codec.latent_shape(size_px, size_px), workers=workers)
            stored = {"latents": latent_bytes, "mirrored": 2 * latent_bytes, "jpeg_quality": quality} | sizes
        stored_path.write_text(json.dumps(stored, indent=1))
    try:
        operators = LatentOperators.load(out, spec=manifest.codec)
    except OSError:
        operators = fit_codec_operators(out, pictures=pictures / "train")
    labels = {split: torch.from_numpy(datasets[split].labels.copy()) for split in SPLITS}
    return Prepared(folder, manifest, labels, json.loads(stored_path.read_text()), operators)


def _jpeg(picture: npt.NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _jpeg_quality(read: Callable[[int], npt.NDArray[np.uint8]], source_index: list[int], *, budget: float) -> int:
    """Find the highest quality whose files are on average no larger than the latents' WebP."""
    rows = np.random.default_rng(0).permutation(len(source_index))[:200]
    sample = [read(source_index[row]) for row in rows]
    fits = [q for q in range(5, 96, 5) if np.mean([len(_jpeg(picture, q)) for picture in sample]) <= budget]
    return max(fits, default=5)


@dataclass(frozen=True)
class _Layout:
    """One split's arrays to be filled; picklable, for workers that fill a range of rows each."""

    folder: Path
    split: str
    pictures: Path
    settings: EncodeSettings
    source_index: list[int]
    quality: int
    size_px: int

    def create(self, latent_shape: tuple[int, int, int]) -> None:
        side, small = self.size_px, self.size_px // 4
        shapes = {
            "pixels": ((3, side, side), np.uint8),
            "reduced": ((3, small, small), np.uint8),
            "jpeg": ((3, side, side), np.uint8),
            "latents": (latent_shape, np.int8),
            "mirrored": (latent_shape, np.int8),
        }
        for kind, (shape, dtype) in shapes.items():
            np.lib.format.open_memmap(
                self.path(kind), mode="w+", dtype=dtype, shape=(len(self.source_index), *shape)
            ).flush()

    def path(self, kind: str) -> Path:
        return self.folder / f"{kind}-{self.split}.npy"

    def fill(self, rows: range) -> dict[str, int]:
        """Fill some rows; return the bytes of the files that they would be stored in."""
        torch.set_num_threads(1)  # one worker, one core
        kinds = ("pixels", "reduced", "jpeg", "latents", "mirrored")
        arrays = {kind: np.load(self.path(kind), mmap_mode="r+") for kind in kinds}
        read = original_pictures(open_source(self.pictures / self.split), settings=self.settings)
        codec, _ = load_codec(self.folder / "latents" / "codec", decoder=False)
        sizes = {"pixels": 0, "reduced": 0, "jpeg": 0}
        small = self.size_px // 4
        for row in rows:
            picture = read(self.source_index[row])
            image = Image.fromarray(picture)
            # Sixteen times fewer values: as many as the latent has.
            reduced = image.resize((small, small), Image.Resampling.BICUBIC)
            data = _jpeg(picture, self.quality)
            sizes["jpeg"] += len(data)
            sizes["pixels"] += len(_jpeg(picture, 90))
            buffer = io.BytesIO()
            reduced.save(buffer, "WEBP", lossless=True)
            sizes["reduced"] += len(buffer.getvalue())
            arrays["pixels"][row] = picture.transpose(2, 0, 1)
            arrays["reduced"][row] = np.asarray(reduced).transpose(2, 0, 1)
            arrays["jpeg"][row] = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
        some = slice(rows.start, rows.stop)
        batch = torch.from_numpy(np.array(arrays["pixels"][some]))
        arrays["latents"][some] = codec.encode(batch).numpy()
        arrays["mirrored"][some] = codec.encode(batch.flip(-1)).numpy()
        for array in arrays.values():
            array.flush()
        return sizes


def _write_arrays(layout: _Layout, latent_shape: tuple[int, int, int], *, workers: int) -> dict[str, float]:
    """Fill every array of a split; return mean bytes a picture."""
    layout.create(latent_shape)
    count = len(layout.source_index)
    ranges = [range(start, min(start + 128, count)) for start in range(0, count, 128)]
    totals: Counter[str] = Counter()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for sizes in pool.map(layout.fill, ranges) if workers > 1 else map(layout.fill, ranges):
            totals.update(sizes)
    return {kind: total / count for kind, total in totals.items()}
