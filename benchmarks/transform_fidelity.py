"""Error of each transform of latents compared with the same operation on pixels.

    python -m benchmarks.transform_fidelity CODEC_OR_DATASET PICTURES [--fit-pictures FOLDER] [--num-pictures N]

For every transform T: the error of T_latent(encode(x)) against encode(T_pixel(x)), squared and relative to the
variance of each channel, averaged over channels; and the PSNR of the decoded results against T_pixel(x), beside the
PSNR that the codec itself reaches on T_pixel(x). Operators are fitted on other pictures than are measured.
"""

import argparse
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.results import write_results
from walloc_data.codec import codec_folder, load_codec
from walloc_data.fitting import fit_codec_operators
from walloc_data.transforms import (
    CenterCrop,
    ColorJitter,
    LatentTransform,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from walloc_data.transforms.operators import LatentOperators

LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def load(path: Path, *, side_px: int) -> Tensor:
    """(1, 3, side, side) float32 in [0, 1]: the middle of a photograph."""
    picture = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255
    top, left = (picture.shape[2] - side_px) // 2, (picture.shape[3] - side_px) // 2
    return picture[..., top : top + side_px, left : left + side_px].contiguous()


def grey(x: Tensor) -> Tensor:
    return (x * LUMA).sum(1, keepdim=True).expand_as(x)


def contrast(x: Tensor, factor: float) -> Tensor:
    return (factor * x + (1 - factor) * grey(x).mean((2, 3), keepdim=True)).clamp(0, 1)


class _Shift(LatentTransform):
    """Roll by whole cells: what a crop or a translation does away from the border."""

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        return latents.roll((1, 2), (2, 3))


class _Upscale(LatentTransform):
    """The middle quarter, resampled to the whole."""

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        h, w = latents.shape[2:]
        middle = latents[..., h // 4 : h - h // 4, w // 4 : w - w // 4].float()
        return F.interpolate(middle, size=(h, w), mode="bilinear", align_corners=False)


class _Bilinear(LatentTransform):
    """Latents resampled as if they were pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        return F.interpolate(latents.float(), size=self.size, mode="bilinear", align_corners=False)


class _MixHalf(LatentTransform):
    """A mixup of each picture with the next, half and half."""

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        return 0.5 * latents.float() + 0.5 * latents.float().roll(1, 0)


def cases(ops: LatentOperators, side_px: int) -> dict[str, tuple[LatentTransform, Callable[[Tensor], Tensor]]]:
    """Name: (latent transform with fixed parameters, its pixel twin on (N, 3, H, W) in [0, 1])."""
    q = side_px // 4

    def zoom(x: Tensor) -> Tensor:
        middle = x[..., q : side_px - q, q : side_px - q]
        return F.interpolate(middle, size=(side_px, side_px), mode="bicubic", align_corners=False).clamp(0, 1)

    def erase(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 0 : side_px // 2, 0 : side_px // 2] = 0.5
        return x

    class Erase(LatentTransform):
        def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
            out = latents.float().clone()
            h, w = latents.shape[2:]
            out[..., : h // 2, : w // 2] = RandomErasing(
                p=1.0, scale=(1.0, 1.0), ratio=(h / w, h / w), fill=ColorJitter(ops)._compand(ops.grey)
            )(latents.float())[..., : h // 2, : w // 2]
            return out

    class Nothing(LatentTransform):
        def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
            return latents

    def shrink(x: Tensor, rows: Fraction, columns: Fraction) -> Tensor:
        size = [int(side_px * rows), int(side_px * columns)]
        images = [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in x]
        small = [np.array(image.resize((size[1], size[0]), Image.Resampling.BICUBIC)) for image in images]
        return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 255

    cells = side_px // 8
    shrunk: dict[str, tuple[LatentTransform, Callable[[Tensor], Tensor]]] = {}
    pairs = [(f, f) for f in ops.factors if f < 1] + [(Fraction(1), Fraction(1, 2))]
    for rows, columns in pairs:
        if cells % rows.denominator or cells % columns.denominator:
            continue
        size = (int(cells * rows), int(cells * columns))
        name = f"shrunk to {rows}" if rows == columns else f"shrunk to {rows} x {columns}"
        shrunk[name] = (Resize(size, operators=ops), partial(shrink, rows=rows, columns=columns))
        if rows == columns:
            shrunk[f"{name}, bilinear"] = (_Bilinear(size), shrunk[name][1])
    for factor in (Fraction(1, 2), Fraction(2, 3)):
        if cells % factor.denominator == 0:
            both = RandomResizedCrop(int(cells * factor), operators=ops, scale=(1, 1), ratio=(1, 1), flip_p=1.0)
            shrunk[f"shrunk to {factor} and flipped"] = (
                both,
                partial(_flipped, partial(shrink, rows=factor, columns=factor)),
            )
    whole = Nothing()
    return {
        "nothing (the codec alone)": (whole, lambda x: x),
        "crop at whole cells": (
            CenterCrop(side_px // 16),
            lambda x: x[..., q : side_px - q, q : side_px - q].contiguous(),
        ),
        "the same but for its outer ring": (
            CenterCrop(side_px // 16),
            lambda x: x[..., q : side_px - q, q : side_px - q].contiguous(),
        ),
        "shift by whole cells (wrapping)": (_Shift(), lambda x: x.roll((8, 16), (2, 3))),
        "horizontal flip, cells reversed": (RandomHorizontalFlip(p=1.0), lambda x: x.flip(-1)),
        "horizontal flip, fitted": (RandomHorizontalFlip(ops.flip, p=1.0), lambda x: x.flip(-1)),
        "brightness 1.2": (ColorJitter(ops, brightness=(1.2, 1.2)), lambda x: (1.2 * x).clamp(0, 1)),
        "brightness 0.6": (ColorJitter(ops, brightness=(0.6, 0.6)), lambda x: 0.6 * x),
        "contrast 1.4": (ColorJitter(ops, contrast=(1.4, 1.4)), lambda x: contrast(x, 1.4)),
        "contrast 0.6": (ColorJitter(ops, contrast=(0.6, 0.6)), lambda x: contrast(x, 0.6)),
        "saturation 0.5": (ColorJitter(ops, saturation=(0.5, 0.5)), lambda x: 0.5 * x + 0.5 * grey(x)),
        "saturation 1.5": (ColorJitter(ops, saturation=(1.5, 1.5)), lambda x: (1.5 * x - 0.5 * grey(x)).clamp(0, 1)),
        "grayscale": (RandomGrayscale(ops, p=1.0), grey),
        "erasing a quarter (grey)": (Erase(), erase),
        "mixup, half and half": (_MixHalf(), lambda x: 0.5 * x + 0.5 * x.roll(1, 0)),
        **shrunk,
        "enlarged 2 x, bilinear": (_Upscale(), zoom),
    }


def _flipped(shrink: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return shrink(x).flip(-1)


def psnr_db(x: Tensor, y: Tensor) -> float:
    return float(-10 * (x - y).square().mean((1, 2, 3)).log10().mean())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", help="codec folder, bundled name, or encoded data set")
    parser.add_argument("pictures", type=Path, help="folder of photographs to measure on, at least --side-px each")
    parser.add_argument("--fit-pictures", help="other photographs to fit the operators on")
    parser.add_argument("--num-pictures", type=int, default=24)
    parser.add_argument("--num-fit", type=int, default=400)
    parser.add_argument("--side-px", type=int, default=256)
    args = parser.parse_args(argv)
    folder = Path(args.codec) / "codec" if (Path(args.codec) / "codec").is_dir() else codec_folder(args.codec)
    codec, info = load_codec(folder)
    if args.fit_pictures:
        ops = fit_codec_operators(folder, pictures=args.fit_pictures, num_pictures=args.num_fit, write=False)
    else:
        ops = LatentOperators.load(folder, spec=codec.spec)
    paths = sorted(p for p in args.pictures.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    x = torch.cat([load(path, side_px=args.side_px) for path in paths[: args.num_pictures]])

    def to_uint8(y: Tensor) -> Tensor:
        return (y * 255).round().clamp(0, 255).to(torch.uint8)

    z = codec.encode(to_uint8(x))
    rows = []
    print(f"{'transform':34s} {'error':>8s} {'PSNR, dB':>9s} {'codec, dB':>10s}")
    for name, (transform, twin) in cases(ops, args.side_px).items():
        expected_pixels = twin(x)
        expected = codec.encode(to_uint8(expected_pixels)).float()
        got = transform(z).float()
        pixels, best = codec.decode(got) + 0.5, codec.decode(expected) + 0.5
        if "outer ring" in name:
            got, expected = got[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1]
            expected_pixels, pixels, best = (y[..., 16:-16, 16:-16] for y in (expected_pixels, pixels, best))
        variance = expected.var((0, 2, 3)).clamp_min(0.25)  # half a step: a silent channel's rounding is no error
        error = float(((got - expected).square().mean((0, 2, 3)) / variance).mean())
        quality, ceiling = psnr_db(pixels, expected_pixels), psnr_db(best, expected_pixels)
        rows.append({"transform": name, "error": error, "psnr_db": quality, "codec_psnr_db": ceiling})
        print(f"{name:34s} {error:8.4f} {quality:9.2f} {ceiling:10.2f}")
    results = {
        "codec": info.name,
        "pictures": len(x),
        "side_px": args.side_px,
        "operators_held_out_error": dict(ops.held_out_error),
        "rows": rows,
    }
    # Only the names of folders are published, not their location on this machine.
    arguments = [Path(a).name if Path(a).is_absolute() else a for a in (sys.argv[1:] if argv is None else argv)]
    print(f"written to {write_results('transform_fidelity', results, arguments=arguments)}")


if __name__ == "__main__":
    main()
