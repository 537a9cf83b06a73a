"""Rate and distortion of the bundled codec on Kodak, beside the published codec, JPEG, lossy WebP and a linear codec.

    python -m benchmarks.rate_distortion [--codec NAME] [--shared ../shared/data] [--no-speed]

Per picture and in the mean: bits per pixel of the real files, PSNR over all values of the 8-bit RGB picture, MS-SSIM.
Our rate is that of the packed latent as lossless WebP, as data sets hold it. Our curve is drawn by the same weights
with other quantisation steps: latents times a factor before rounding, divided by it before decoding. JPEG and WebP are
Pillow's, 4:2:0, and are compared at the quality of the nearest mean rate that is not below ours.

The published codec's numbers, its authors' official weights, come from kodak-published.csv. Rows of "linear, 5x5" are
the best linear decoder that sees 5 x 5 cells, least squares on 400 photographs of photos-halfres: what an encoder's
latents tell before any network guesses.

LPIPS is left out: the package `lpips` carries its linear heads, but its backbone's weights come from a model hub.

Decoding speed is measured against the published decoder's architecture (diffusers' Decoder, width 768, random
weights), on one thread, in CPU time, taking turns on a latent of 64 x 96 cells (768 x 512 pixels).
"""

import argparse
import csv
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.ms_ssim import ms_ssim
from benchmarks.results import RESULTS, spread, write_results
from walloc_data.codec import WallocCodec, load_codec, read_pictures, wavelet_analysis, wavelet_synthesis
from walloc_data.codec.training.closed_form import whole_cells
from walloc_data.latents import compand, encode_webp, expand, pack

Pixels = npt.NDArray[np.uint8]
Point = dict[str, float]
STEP_FACTORS = (0.25, 0.5, 0.7, 1.0, 1.4)
QUALITIES = {"jpeg": (5, 10, 15, 25, 40, 60, 75), "webp": (1, 5, 15, 30, 50, 70, 85)}


def quality(original: Pixels, decoded: Pixels, *, num_bytes: int) -> Point:
    """One picture's point."""
    error = ((original.astype(np.float64) - decoded) ** 2).mean()
    pixels = original.shape[0] * original.shape[1]
    return {
        "bpp": 8 * num_bytes / pixels,
        "psnr_db": float(10 * np.log10(255**2 / error)),
        "ms_ssim": ms_ssim(original, decoded),
    }


def mean(points: Sequence[Point]) -> Point:
    return {name: round(statistics.fmean(point[name] for point in points), 5) for name in points[0]}


def to_pixels(x: torch.Tensor) -> Pixels:
    """(1, 3, H, W) in [-1/2, 1/2] as (H, W, 3) uint8."""
    return ((x[0].clamp(-0.5, 0.5) + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def through_codec(codec: WallocCodec, picture: Pixels, *, linear: bool = False) -> Point:
    latent = codec.encode(torch.from_numpy(picture)[None].permute(0, 3, 1, 2))
    decoded = to_pixels(codec.decode(latent, linear=linear))
    return quality(picture, decoded, num_bytes=len(encode_webp(pack(latent)[0])))


def linear_5x5(codec: WallocCodec, photographs: Path) -> Callable[[WallocCodec, Pixels], Point]:
    """Fit the decoder that takes 5 x 5 cells of expanded latents to the coefficients of the middle one."""
    count = codec.latent_dim * 25 + 1
    auto = torch.zeros(count, count, dtype=torch.float64)
    cross = torch.zeros(count, 3 * 4**codec.J, dtype=torch.float64)

    def windows(latent: torch.Tensor) -> torch.Tensor:  # (cells, 25 * latent_dim + 1); the encoder wraps around too
        v = F.pad(expand(latent, latent_bits=8), (2, 2, 2, 2), mode="circular")
        rows = F.unfold(v, 5)[0].T
        return torch.cat((rows, torch.ones(len(rows), 1)), 1).double()

    pictures = [picture for picture in read_pictures(photographs) if min(picture.shape[:2]) >= 48][:400]
    for images in whole_cells(pictures, J=codec.J):
        rows, X = windows(codec.encode(images)), wavelet_analysis(images.float() / 255 - 0.5)[0].flatten(1).T.double()
        auto += rows.T @ rows
        cross += rows.T @ X
    weight = torch.linalg.solve(auto + 1e-6 * torch.eye(count, dtype=torch.float64), cross)

    def through(codec: WallocCodec, picture: Pixels) -> Point:
        latent = codec.encode(torch.from_numpy(picture)[None].permute(0, 3, 1, 2))
        X = (windows(latent) @ weight).float().T.reshape(1, -1, *latent.shape[2:])
        return quality(picture, to_pixels(wavelet_synthesis(X, codec.J)), num_bytes=len(encode_webp(pack(latent)[0])))

    return through


def published_points(path: Path) -> dict[str, Point]:
    """Bits per pixel and PSNR of the published codec, by picture."""
    with path.open(newline="") as file:
        return {row["picture"]: {k: float(row[k]) for k in ("bpp", "psnr_db")} for row in csv.DictReader(file)}


def with_step_factor(codec: WallocCodec, picture: Pixels, factor: float) -> Point:
    v = codec.linear_encoder().values(torch.from_numpy(picture)[None].permute(0, 3, 1, 2))
    latent = compand(v * factor, latent_bits=8).round().clamp(-128, 127).to(torch.int8)
    with torch.no_grad():
        X = codec.decoder[1](expand(latent, latent_bits=8) / factor)
    return quality(picture, to_pixels(wavelet_synthesis(X, codec.J)), num_bytes=len(encode_webp(pack(latent)[0])))


def pillow_bytes(picture: Pixels, kind: str, setting: int) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"optimize": True} if kind == "jpeg" else {"method": 6}
    Image.fromarray(picture).save(buffer, kind.upper(), quality=setting, **options)
    return buffer.getvalue()


def through_pillow(picture: Pixels, kind: str, setting: int) -> Point:
    data = pillow_bytes(picture, kind, setting)
    return quality(picture, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), num_bytes=len(data))


def matching_setting(pictures: Sequence[Pixels], kind: str, *, bpp: float) -> int:
    """The first quality whose mean rate is not below `bpp`: the comparison never favours us."""
    for setting in range(QUALITIES[kind][0], 100):
        rates = [8 * len(pillow_bytes(p, kind, setting)) / (p.shape[0] * p.shape[1]) for p in pictures]
        if statistics.fmean(rates) >= bpp:
            return setting
    return 100


def seconds(call: Callable[[torch.Tensor], Any], argument: torch.Tensor) -> float:
    begin = time.process_time()
    call(argument)
    return time.process_time() - begin


def decode_speed(codec: WallocCodec, *, repeats: int) -> dict[str, Any]:
    """CPU seconds of decoding one latent by ours and by the published architecture, and their ratio."""
    from diffusers.models.autoencoders.autoencoder_kl import Decoder

    torch.manual_seed(0)
    published = Decoder(
        in_channels=12, out_channels=192, up_block_types=("UpDecoderBlock2D",), block_out_channels=(768,),
        layers_per_block=2, norm_num_groups=32, act_fn="silu", mid_block_add_attention=True,
    ).eval()  # fmt: skip
    latent = torch.randint(-30, 31, (1, 12, 64, 96), dtype=torch.int8)
    reference = WallocCodec(decoder=published).eval()
    v = expand(latent, latent_bits=8)
    networks = {"ours": codec.decoder[1], "published": published}
    codecs = {"ours": codec, "published": reference}
    times: dict[str, list[float]] = {f"{what}_{name}": [] for what in ("network", "whole") for name in networks}
    with torch.no_grad():
        for _ in range(repeats):
            for name in ("ours", "published"):
                for _ in range(2 if name == "ours" else 1):  # the first one of ours warms the caches
                    network, whole = seconds(networks[name], v), seconds(codecs[name].decode, latent)
                times[f"network_{name}"].append(network)
                times[f"whole_{name}"].append(whole)
    result: dict[str, Any] = {f"seconds_{name}": spread(values) for name, values in times.items()}
    for what in ("network", "whole"):
        pairs = zip(times[f"{what}_published"], times[f"{what}_ours"], strict=True)
        result[f"ratio_{what}"] = spread([slow / fast for slow, fast in pairs])
    result["parameters_ours"] = sum(p.numel() for p in networks["ours"].parameters())
    result["parameters_published"] = sum(p.numel() for p in published.parameters())
    return result


def draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, what, label in zip(figure.subplots(1, 2), ("psnr_db", "ms_ssim"), ("PSNR, dB", "MS-SSIM"), strict=True):
        for name, curve in results["curves"].items():
            axes.plot([p["bpp"] for p in curve], [p[what] for p in curve], ".-", label=name)
        point = results["mean"]["ours"]
        axes.plot(point["bpp"], point[what], "k*", markersize=12, label=f"{results['codec']}, as bundled")
        axes.set(xlabel="bits per pixel", ylabel=label, xlim=(0, 1.5))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Mean of {len(results['pictures'])} Kodak pictures")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", help="a bundled name or a folder (default: the bundled default)")
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the speed measurement (default: 5)")
    parser.add_argument("--no-speed", action="store_true", help="do not measure speed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec, info = load_codec(args.codec)
    klt, _ = load_codec("klt-16x")
    first = load_codec(args.codec, decoder="1")[0] if info.decoder_version not in (None, "1") else None
    paths = sorted((args.shared / "kodak").glob("*.png"))
    if not paths:
        raise SystemExit(f"no Kodak pictures in {args.shared / 'kodak'}")
    pictures = {path.stem: np.array(Image.open(path).convert("RGB")) for path in paths}
    photographs = args.shared / "photos-halfres.tar"
    curves: dict[str, list[Point]] = {
        f"{info.name}, other steps": [
            mean([with_step_factor(codec, p, factor) for p in pictures.values()]) for factor in STEP_FACTORS
        ],
        "klt-16x, other steps": [
            mean([with_step_factor(klt, p, factor) for p in pictures.values()]) for factor in STEP_FACTORS
        ],
    }
    by_setting = {
        kind: {setting: [through_pillow(p, kind, setting) for p in pictures.values()] for setting in settings}
        for kind, settings in QUALITIES.items()
    }
    curves |= {kind: [mean(points) for points in settings.values()] for kind, settings in by_setting.items()}
    methods = {
        "ours": [through_codec(codec, p) for p in pictures.values()],
        **({"ours, decoder 1": [through_codec(first, p) for p in pictures.values()]} if first is not None else {}),
        "ours, linear decoder": [through_codec(codec, p, linear=True) for p in pictures.values()],
        "ours, linear 5x5": [
            through(codec, p) for through in [linear_5x5(codec, photographs)] for p in pictures.values()
        ],
        "klt-16x": [through_codec(klt, p) for p in pictures.values()],
        "klt-16x, linear 5x5": [
            through(klt, p) for through in [linear_5x5(klt, photographs)] for p in pictures.values()
        ],
    }
    rate = mean(methods["ours"])["bpp"]
    for kind in QUALITIES:
        setting = matching_setting(list(pictures.values()), kind, bpp=rate)
        methods[f"{kind} at {setting}"] = [through_pillow(p, kind, setting) for p in pictures.values()]
    published = published_points(args.shared / "kodak-published.csv")
    results: dict[str, Any] = {
        "codec": info.name,
        "decoder_version": info.decoder_version,
        "encoder_sha256": info.encoder_sha256,
        "pictures": {
            name: {method: {k: round(v, 5) for k, v in points[i].items()} for method, points in methods.items()}
            for i, name in enumerate(pictures)
        },
        "mean": {method: mean(points) for method, points in methods.items()},
        "published": {name: point for name, point in published.items() if name in pictures},
        "curves": curves,
    }
    if not args.no_speed:
        results["decode_speed"] = decode_speed(codec, repeats=args.repeats)
    for method, point in results["mean"].items():
        print(f"{method:24} {point['bpp']:.4f} bpp  {point['psnr_db']:.3f} dB  MS-SSIM {point['ms_ssim']:.4f}")
    if "decode_speed" in results:
        print({name: value for name, value in results["decode_speed"].items() if name.startswith("ratio")})
    print(write_results("rate_distortion", results))
    draw(results, RESULTS / "rate_distortion.png")


if __name__ == "__main__":
    main()
