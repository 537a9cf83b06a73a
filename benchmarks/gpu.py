"""Encoding on a GPU: agreement of latents with the CPU, speed of the analysis, and of conversions.

    python -m benchmarks.gpu PICTURES [--shared ../shared/data] [--workers 1 4 16]

PICTURES is a class folder, as `walloc-data encode` takes it. Three parts:

1. Latents of photographs, noise and awkward sizes from the GPU, compared with the CPU's value by value.
2. The analysis, uint8 pictures in the GPU's memory to latents there, megapixels a second by batch, beside the
   reference (the PyPI package `walloc`: wavelet_analysis, encoder, companding and rounding) on the same GPU and one CPU
   thread of ours, timed once. Medians of rounds that take turns.
3. Conversions of PICTURES at 160 px with `--device cpu` and `--device cuda`, by number of workers: pictures a second
   from call to manifest, workers' start included, one run each, and whether every shard has the same bytes.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.encode_speed import read_photographs, reference_model
from benchmarks.results import shown, spread, write_results
from walloc_data import encode_dataset
from walloc_data.codec import WallocCodec, load_codec


def agreement(codec: WallocCodec, kodak: list[Tensor]) -> dict[str, Any]:
    """Return the number of latents that differ between the devices, and the largest difference of float values."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((8, 8), (16, 200), (24, 40), (256, 256), (1000, 1496))
    noise = [torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    latents = different = 0
    largest = 0.0
    for picture in kodak + noise:
        ours, theirs = codec.encode(picture.cuda()).cpu(), codec.encode(picture)
        latents, different = latents + ours.numel(), different + int((ours != theirs).sum())
        values = codec.linear_encoder()
        gpu = values.to(torch.device("cuda")).values(picture.cuda()).cpu()
        largest = max(largest, float((gpu - values.values(picture)).abs().max()))
    return {"latents": latents, "different": different, "largest_difference_of_values": largest}


def reference_on_gpu(codec: WallocCodec) -> Callable[[Tensor], Tensor]:
    layer = codec.encoder[0]
    model = reference_model(layer.weight.detach().cpu(), layer.bias.detach().cpu()).cuda()
    return lambda pictures: model.encoder(model.wavelet_analysis(pictures.to(torch.float) / 255 - 0.5, J=3))


def analysis(codec: WallocCodec, kodak: list[Tensor], *, rounds: int) -> dict[str, Any]:
    """Megapixels a second, by pictures of 256 px in a batch."""
    crops = torch.cat([picture[:, :, :256, :256] for picture in kodak])
    ways = {"ours": codec.encode, "reference": reference_on_gpu(codec)}
    report: dict[str, Any] = {}
    for batch in (16, 128, 1024):
        pictures = crops.repeat(-(-batch // len(crops)), 1, 1, 1)[:batch].cuda()
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for round_number in range(rounds + 2):
            for name, way in ways.items():
                torch.cuda.synchronize()
                begun = time.perf_counter()
                with torch.no_grad():
                    way(pictures)
                torch.cuda.synchronize()
                if round_number > 1:
                    rates[name].append(batch * 256 * 256 / 1e6 / (time.perf_counter() - begun))
        report[str(batch)] = {name: spread(values) for name, values in rates.items()}
    torch.set_num_threads(1)
    begun = time.perf_counter()
    codec.encode(crops)
    report["one_cpu_thread"] = len(crops) * 256 * 256 / 1e6 / (time.perf_counter() - begun)
    return report


def conversions(pictures: Path, *, workers: list[int]) -> list[dict[str, Any]]:
    """One line a conversion; raises where shards differ."""
    lines, known = [], ""
    with tempfile.TemporaryDirectory() as scratch:
        for number in workers:
            for device in ("cpu", "cuda"):
                out = Path(scratch) / f"{device}-{number}"
                begun = time.perf_counter()
                summary = encode_dataset(
                    pictures, out, size_px=160, samples_per_shard=256, workers=number, device=device, progress=False
                )
                seconds = time.perf_counter() - begun
                digest = hashlib.sha256()
                for shard in sorted(out.rglob("*.tar")):
                    digest.update(shard.read_bytes())
                if known not in ("", digest.hexdigest()):
                    raise SystemExit(f"{device}, {number} workers: other bytes")
                known = digest.hexdigest()
                lines.append(
                    {
                        "device": device,
                        "workers": number,
                        "pictures": summary.num_samples,
                        "seconds": round(seconds, 2),
                        "pictures_per_s": round(summary.num_samples / seconds, 1),
                    }
                )
                print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    kodak = [torch.from_numpy(p).permute(2, 0, 1)[None] for p in read_photographs(args.shared)]  # (1, 3, H, W) each
    codec, info = load_codec(decoder=False)
    results: dict[str, Any] = {"codec": info.name, "gpu": torch.cuda.get_device_name()}
    results["agreement"] = agreement(codec, kodak)
    print(results["agreement"], flush=True)
    results["conversions"] = conversions(args.pictures, workers=args.workers)
    results["analysis_megapixels_per_s"] = analysis(codec, kodak, rounds=args.rounds)
    print(results["analysis_megapixels_per_s"], flush=True)
    print(write_results("gpu", results, arguments=shown(sys.argv[1:])))


if __name__ == "__main__":
    main()
