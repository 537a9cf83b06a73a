"""What each arm of the experiment is given: the same pictures, in the same order, as pixels, fewer pixels or latents.

Everything is made once by the package's own converter and kept as memory-mapped uint8 or int8 arrays in a work folder,
so that accuracy does not depend on how fast a disk is; `benchmarks.learning.speed` measures reading what is stored.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from walloc_data import LatentDataset, encode_dataset
from walloc_data.codec import load_codec
from walloc_data.convert import original_pictures
from walloc_data.fitting import fit_codec_operators
from walloc_data.format import Manifest
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
        """(N, C, H, W): "pixels", "reduced", "jpeg" uint8; "latents", "mirrored" int8."""
        return np.load(self.folder / f"{kind}-{split}.npy", mmap_mode="r")

    def codec_folder(self) -> Path:
        return self.folder / "latents" / "codec"


def prepare(pictures: Path, *, size_px: int, codec: str | None, folder: Path) -> Prepared:
    """Encode `pictures/train` and `pictures/val`, and lay out every arm's arrays. Does only what is not done yet."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "latents"
    for split in SPLITS:
        encode_dataset(pictures / split, out, split=split, size_px=size_px, codec=codec if split == "train" else None)
    datasets = {split: LatentDataset(out, split=split) for split in SPLITS}
    manifest = datasets["train"].manifest
    stored_path = folder / "stored_bytes.json"
    if not stored_path.exists():
        loaded, _ = load_codec(out / "codec", decoder=False)
        stored: dict[str, float] = {}
        for split in ("val", "train"):
            dataset = datasets[split]
            read = original_pictures(open_source(pictures / split), settings=manifest.settings)
            latent_bytes = float(dataset.index["length"].mean())
            quality = _jpeg_quality(read, dataset, budget=latent_bytes)
            sizes = _write_arrays(folder, split, dataset, read, loaded, quality=quality, size_px=size_px)
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


def _jpeg_quality(read: object, dataset: LatentDataset, *, budget: float) -> int:
    """The highest quality whose files are on average no larger than the latents' WebP."""
    rows = np.random.default_rng(0).permutation(len(dataset))[:200]
    sample = [read(int(dataset.index["source_index"][row])) for row in rows]  # type: ignore[operator]
    fits = [q for q in range(5, 96, 5) if np.mean([len(_jpeg(picture, q)) for picture in sample]) <= budget]
    return max(fits, default=5)


def _write_arrays(
    folder: Path, split: str, dataset: LatentDataset, read: object, codec: object, *, quality: int, size_px: int
) -> dict[str, float]:
    count, small = len(dataset), size_px // 4
    c, h, w = codec.spec.latent_shape(size_px, size_px)  # type: ignore[attr-defined]
    shapes = {
        "pixels": ((count, 3, size_px, size_px), np.uint8),
        "reduced": ((count, 3, small, small), np.uint8),
        "jpeg": ((count, 3, size_px, size_px), np.uint8),
        "latents": ((count, c, h, w), np.int8),
        "mirrored": ((count, c, h, w), np.int8),
    }
    arrays = {
        kind: np.lib.format.open_memmap(folder / f"{kind}-{split}.npy", mode="w+", dtype=dtype, shape=shape)
        for kind, (shape, dtype) in shapes.items()
    }
    sizes = {"pixels": 0, "reduced": 0, "jpeg": 0}
    for row, index in enumerate(dataset.index["source_index"].tolist()):
        picture = read(index)  # type: ignore[operator]
        image = Image.fromarray(picture)
        # Sixteen times fewer values: as many as the latent has.
        reduced = image.resize((small, small), Image.Resampling.BICUBIC)
        data = _jpeg(picture, quality)
        sizes["jpeg"] += len(data)
        sizes["pixels"] += len(_jpeg(picture, 90))
        buffer = io.BytesIO()
        reduced.save(buffer, "WEBP", lossless=True)
        sizes["reduced"] += len(buffer.getvalue())
        arrays["pixels"][row] = picture.transpose(2, 0, 1)
        arrays["reduced"][row] = np.asarray(reduced).transpose(2, 0, 1)
        arrays["jpeg"][row] = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    if size_px % codec.spec.cell_px:  # type: ignore[attr-defined]
        raise SystemExit(f"--size-px must be a multiple of {codec.spec.cell_px}")  # type: ignore[attr-defined]
    for start in range(0, count, 256):
        batch = torch.from_numpy(np.array(arrays["pixels"][start : start + 256]))
        arrays["latents"][start : start + 256] = codec.encode(batch).numpy()  # type: ignore[attr-defined]
        arrays["mirrored"][start : start + 256] = codec.encode(batch.flip(-1)).numpy()  # type: ignore[attr-defined]
    for array in arrays.values():
        array.flush()
    return {kind: total / count for kind, total in sizes.items()}
