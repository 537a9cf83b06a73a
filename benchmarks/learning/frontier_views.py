"""The data of `benchmarks.learning.frontier`: what each arm trains on, augmented, and what it is scored on."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import walloc_data
from benchmarks.learning.packed import unpack_split
from walloc_data.errors import TransformError
from walloc_data.format import Manifest
from walloc_data.transforms import LatentOperators, RandomResizedCrop, RandomTranslate, Resize
from walloc_data.transforms.resizing import random_crops

ARMS = {  # arm: folder of the packed data
    "latents-crops": "latents",
    "latents-shifts": "latents",
    "reduced-crops": "reduced",
    "pixels-crops": "pixels",
}
PX_A_CELL = {"reduced": 2, "pixels": 8}  # of pixels under one cell of the network
SCALE, RATIO = (0.35, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Data:
    """One folder of the packed data, on the device."""

    kind: str  # "latents", "reduced" or "pixels"
    x: dict[str, Tensor]  # by split: (N, 12, h, w) int8 or (N, 3, H, W) uint8
    labels: dict[str, Tensor]
    manifest: Manifest
    operators: LatentOperators
    size_px: int
    decode_s: float

    def to(self, device: torch.device) -> "Data":
        """Return the same data on another device."""
        x, labels = ({split: t.to(device) for split, t in some.items()} for some in (self.x, self.labels))
        return replace(self, x=x, labels=labels)

    def first(self, count: int) -> "Data":
        """Return only the first samples of each split."""
        x, labels = ({split: t[:count] for split, t in some.items()} for some in (self.x, self.labels))
        return replace(self, x=x, labels=labels)


def load(folder: Path, kind: str) -> Data:
    """Read one folder of the packed data: decoded, in memory; full pixels mapped from their file."""
    begun = time.monotonic()
    manifest = Manifest.from_json((folder / kind / "walloc.json").read_bytes(), context=f"{kind}/walloc.json")
    dim = manifest.codec.latent_dim if kind == "latents" else None
    arrays: dict[str, tuple[Any, Any]] = {}
    for split in ("train", "val"):
        if kind == "pixels":
            pixels = np.load(folder / kind / f"{split}.npy", mmap_mode="c")
            arrays[split] = pixels, np.asarray(json.loads((folder / kind / f"{split}.json").read_text()))
        else:
            arrays[split] = unpack_split(folder / kind / f"{split}.npz", latent_dim=dim)
    decode_s = time.monotonic() - begun
    codec = Path(walloc_data.__file__).parent / "codec" / "bundled" / manifest.codec.name
    return Data(
        kind,
        {split: torch.from_numpy(x) for split, (x, _) in arrays.items()},
        {split: torch.from_numpy(labels) for split, (_, labels) in arrays.items()},
        manifest,
        LatentOperators.load(codec, spec=manifest.codec),
        manifest.settings.size_px or 0,
        decode_s,
    )


def resized_pixels(x: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Resize each sample's box (top, left, height, width) of (N, 3, H, W) to (side, side), bilinear and antialiased.

    What torchvision does to one picture, as two batched matrix products.
    """

    def weights(start: Tensor, length: Tensor, size: int) -> Tensor:
        scale = (length / side)[:, None, None]
        centres = start[:, None, None] + (torch.arange(side, device=x.device)[None, :, None] + 0.5) * scale - 0.5
        cells = torch.arange(size, device=x.device)[None, None, :]
        inside = (cells >= start[:, None, None]) & (cells < (start + length)[:, None, None])
        w = (1 - (cells - centres).abs() / scale.clamp_min(1)).clamp_min(0) * inside
        return w / w.sum(2, keepdim=True)

    rows, columns = weights(boxes[:, 0], boxes[:, 2], x.shape[2]), weights(boxes[:, 1], boxes[:, 3], x.shape[3])
    return torch.einsum("nih,nchw,njw->ncij", rows, x.float(), columns)


def resized_one_by_one(x: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Do the same by torchvision's own call, rounded to uint8: on a CPU quicker for large pictures."""
    from torchvision.transforms.v2.functional import resized_crop

    size = [side, side]
    return torch.stack(
        [resized_crop(one, *box, size, antialias=True) for one, box in zip(x, boxes.int().tolist(), strict=True)]
    ).float()


class PixelCrops(nn.Module):
    """RandomResizedCrop and flips of a batch of pixels, to (side, side)."""

    def __init__(self, side: int, *, one_by_one: bool = False) -> None:
        super().__init__()
        self.side, self.resize = side, resized_one_by_one if one_by_one else resized_pixels

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, side = len(x), x.shape[2]
        size = random_crops(n, (side, side), SCALE, RATIO, generator=generator).round()
        place = (torch.rand(n, 2, generator=generator) * (side - size + 1)).floor()
        heads = torch.rand(n, generator=generator) < 0.5
        out = self.resize(x, torch.cat([place, size], 1).to(x.device), self.side)
        return torch.where(heads.to(x.device)[:, None, None, None], out.flip(-1), out)


Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def augmentation(arm: str, data: Data, *, cells: int) -> Augmentation:
    """Make the arm's augmentation: a batch and a generator to a batch of floats, `cells` a side."""
    device = data.x["train"].device
    if data.kind != "latents":
        return PixelCrops(cells * PX_A_CELL[data.kind], one_by_one=data.kind == "pixels" and device.type == "cpu")
    ops = data.operators
    if arm == "latents-crops":
        crop = RandomResizedCrop(cells, operators=ops, scale=SCALE, ratio=RATIO, flip_p=0.5).to(device)
        return lambda x, generator: crop(x, generator=generator)
    whole = RandomResizedCrop(cells, operators=ops, scale=(1, 1), ratio=(1, 1), flip_p=0.5).to(device)
    shift = RandomTranslate(2, fill=data.manifest.splits["train"].statistics.mean).to(device)  # type: ignore[union-attr]
    return lambda x, generator: shift(whole(x, generator=generator), generator=generator)


def trying_no_kernels() -> Any:
    """Return a context for batches of many sizes, each seen once: cuDNN would try every kernel for each."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False)


def in_parts(x: Tensor, function: Callable[[Tensor], Tensor], *, rows: Tensor | None = None) -> Tensor:
    """Compute half-precision results of a large batch, or of some rows, without its intermediates all at once."""
    size = 16384 if x.is_cuda else 512
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    result = None
    for start in range(0, len(rows), size):
        part = function(x[rows[start : start + size]]).half()
        if result is None:  # as the network reads it, filled in place: never two copies of an epoch
            result = part.new_empty((len(rows), *part.shape[1:])).to(memory_format=torch.channels_last)
        result[start : start + len(part)] = part
    assert result is not None
    return result


def views(data: Data, sizes: list[int]) -> dict[int, Tensor]:
    """Make the whole validation pictures at several sizes, by cells a side; sizes that cannot be had are left out."""
    x = data.x["val"]
    found = {}
    for cells in sizes:
        if data.kind == "latents":
            resize = Resize(cells, operators=data.operators).to(x.device)
            try:
                found[cells] = in_parts(x, resize)
            except TransformError:
                continue
        else:
            found[cells] = in_parts(x, lambda part, to=cells * PX_A_CELL[data.kind]: _whole(part, to))  # type: ignore[misc]
    return found


def _whole(x: Tensor, side: int) -> Tensor:
    box = torch.tensor([0.0, 0.0, x.shape[2], x.shape[3]], device=x.device)
    return resized_pixels(x, box.expand(len(x), 4), side)
