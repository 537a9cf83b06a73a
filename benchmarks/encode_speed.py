"""Picture in memory to WebP bytes: this package against the reference pipeline, side by side, on one thread.

    python -m benchmarks.encode_speed [--repeats 7] [--shared ../shared/data] [--codec NAME]

The reference is the PyPI package `walloc`: wavelet_analysis, encoder, latent_to_pil, and Pillow's default lossless
WebP. Both start from (H, W, 3) uint8 in memory, as decoders leave it. Every pipeline has a process of its own, as
importing this package changes how the C library keeps memory, which is worth much to the reference too. They take
turns on every picture. Times are CPU time, so that other programs on the machine count little; of the repeats the
median is kept, with the spread. Whole Kodak photographs go one by one; 256-px crops sixteen at a time.
"""

import argparse
import copy
import io
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, features
from torch import Tensor

from benchmarks.results import spread, write_results
from walloc_data.codec import WallocCodec, load_codec
from walloc_data.codec.precision import keep_freed_memory
from walloc_data.latents import encode_webps, pack

Pictures = npt.NDArray[np.uint8]  # (N, H, W, 3)
# The reference as it is, and where the allocator keeps freed memory, as walloc_data makes it do; then our efforts.
PIPELINES = ("reference", "reference_tuned", "default", "fast")
# (method, quality) of libwebp's lossless mode; Pillow's default is (4, 80).
WEBP_SETTINGS = ((4, 80), (4, 25), (4, 0), (3, 0), (2, 0), (1, 0), (0, 0))


def measure(stages: Mapping[str, Callable[[Any], Any]], start: Any) -> tuple[dict[str, float], Any]:
    """CPU milliseconds of each stage, every one fed what the one before it returned."""
    times, value = {}, start
    for name, stage in stages.items():
        begin = time.process_time()
        value = stage(value)
        times[name] = (time.process_time() - begin) * 1e3
    return times, value


def reference_module() -> Any:
    """The PyPI package's own module, whose imports warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources
        from walloc import walloc
    return walloc


def reference_model(weight: Tensor, bias: Tensor) -> Any:
    """The reference's codec with these encoder weights, in evaluation mode."""
    model = reference_module().LinearCodec2D(channels=3, J=3, latent_dim=len(bias), latent_bits=8).eval()
    model.encoder[0].load_state_dict({"weight": weight, "bias": bias})
    return model


def read_photographs(shared: Path) -> list[npt.NDArray[np.uint8]]:
    """Kodak's, (H, W, 3) each."""
    photographs = []
    for path in sorted((shared / "kodak").glob("*.png")):
        with Image.open(path) as image:
            photographs.append(np.array(image.convert("RGB")))
    return photographs


def reference_stages(weight: Tensor, bias: Tensor, *, tuned: bool) -> dict[str, Callable[[Any], Any]]:
    walloc = reference_module()
    if tuned:
        keep_freed_memory()
    model = reference_model(weight, bias)

    def webp(images: list[Image.Image]) -> int:
        total = 0
        for image in images:
            buffer = io.BytesIO()
            image.save(buffer, format="WEBP", lossless=True)
            total += len(buffer.getvalue())
        return total

    return {
        "to_float": lambda a: torch.from_numpy(a).permute(0, 3, 1, 2).to(torch.float) / 255 - 0.5,
        "analysis": lambda x: model.wavelet_analysis(x, J=3),
        "encoder": model.encoder,
        "pack": lambda z: walloc.latent_to_pil(z, 8, 3),
        "webp": webp,
    }


def our_stages(codec: WallocCodec, effort: Any) -> dict[str, Callable[[Any], Any]]:
    return {
        "encode": lambda a: codec.encode(torch.from_numpy(a).permute(0, 3, 1, 2)),
        "pack": pack,
        "webp": lambda packed: sum(map(len, encode_webps(packed, effort=effort))),
    }


def encode_parts(codec: WallocCodec, pictures: Pictures, repeats: int) -> dict[str, float]:
    """Time the parts of `encode`: the float32 filter, companding and rounding, the exact second pass."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    encoder = codec.linear_encoder()
    careless = copy.copy(encoder)
    careless._rounding_unit = -1.0  # no cell is doubtful

    def cost(function: Callable[[], Any]) -> float:
        times = []
        for _ in range(repeats):
            begin = time.process_time()
            function()
            times.append((time.process_time() - begin) * 1e3)
        return statistics.median(times)

    filtered = cost(lambda: encoder.values(images))
    quantised = cost(lambda: careless.encode(images))
    whole = cost(lambda: encoder.encode(images))
    return {
        "filter": filtered,
        "quantise": max(0.0, quantised - filtered),
        "exact_second_pass": max(0.0, whole - quantised),
    }


def work(
    pipeline: str, source: str | None, weights: tuple[Tensor, Tensor], batches: list[Pictures], pipe: Connection
) -> None:
    """A process of one pipeline: answers a batch's number with (milliseconds by stage, bytes), None with goodbye."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # how the reference calls Pillow
    with torch.no_grad():
        if pipeline.startswith("reference"):
            stages = reference_stages(*weights, tuned=pipeline == "reference_tuned")
        else:
            stages = our_stages(load_codec(source, decoder=False)[0], pipeline)
        measure(stages, batches[0])
        measure(stages, batches[0])
        while (number := pipe.recv()) is not None:
            pipe.send(measure(stages, batches[number]))


def compare(
    source: str | None, weights: tuple[Tensor, Tensor], batches: list[Pictures], *, repeats: int
) -> dict[str, Any]:
    """The pipelines in turn on every batch, `repeats` times, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for pipeline in PIPELINES:
        pipes[pipeline], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(pipeline, source, weights, batches, theirs)))
        processes[-1].start()
    runs: dict[str, list[dict[str, float]]] = {pipeline: [] for pipeline in PIPELINES}
    num_bytes = dict.fromkeys(PIPELINES, 0)
    for _ in range(repeats):
        for pipeline in PIPELINES:
            runs[pipeline].append({})
            num_bytes[pipeline] = 0
        for number in range(len(batches)):
            for pipeline, pipe in pipes.items():
                pipe.send(number)
                times, size = pipe.recv()
                num_bytes[pipeline] += size
                for stage, milliseconds in times.items():
                    runs[pipeline][-1][stage] = runs[pipeline][-1].get(stage, 0.0) + milliseconds
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    pixels = sum(batch.shape[0] * batch.shape[1] * batch.shape[2] for batch in batches)
    pictures = sum(len(batch) for batch in batches)
    report: dict[str, Any] = {"pictures": pictures, "pixels": pixels}

    def latent(run: Mapping[str, float]) -> float:
        return sum(milliseconds for stage, milliseconds in run.items() if stage not in ("pack", "webp"))

    reference = runs["reference"]
    for pipeline, repeated in runs.items():
        whole = [sum(run.values()) for run in repeated]
        report[pipeline] = {
            "ms_per_picture": spread([ms / pictures for ms in whole]),
            "stages_ms_per_picture": {
                stage: round(statistics.median(run[stage] for run in repeated) / pictures, 4) for stage in repeated[0]
            },
            "megapixels_per_second": round(pixels / 1e3 / statistics.median(whole), 2),
            "bytes": num_bytes[pipeline],
            "bytes_against_reference": round(num_bytes[pipeline] / num_bytes["reference"], 4),
            # They took turns, so a ratio within one repeat shares the machine's mood.
            "times_faster": spread([sum(r.values()) / ms for r, ms in zip(reference, whole, strict=True)]),
            "latents_times_faster": spread([latent(r) / latent(o) for r, o in zip(reference, repeated, strict=True)]),
        }
    return report


def webp_settings(codec: WallocCodec, batches: list[Pictures]) -> dict[str, Any]:
    """Bytes and time of libwebp's lossless settings on packed latents: why the efforts are what they are."""
    packed = [
        picture for batch in batches for picture in pack(codec.encode(torch.from_numpy(batch).permute(0, 3, 1, 2)))
    ]
    table = {}
    for method, quality in WEBP_SETTINGS:
        size, milliseconds = 0, 0.0
        for picture in packed:
            buffer = io.BytesIO()
            begin = time.process_time()
            Image.fromarray(picture).save(buffer, "WEBP", lossless=True, method=method, quality=quality)
            milliseconds += (time.process_time() - begin) * 1e3
            size += len(buffer.getvalue())
        table[f"method {method} quality {quality}"] = {"bytes": size, "ms": round(milliseconds / len(packed), 3)}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--codec", help="codec, as for load_codec (default: the bundled one)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec, info = load_codec(options.codec, decoder=False)
    weights = (codec.encoder[0].weight.detach(), codec.encoder[0].bias.detach())
    photographs = read_photographs(options.shared)
    whole = [picture[None] for picture in photographs]
    corners = ((0, 0), (0, 256), (256, 0), (256, 256))
    crops = [picture[y : y + 256, x : x + 256] for picture in photographs for y, x in corners]
    sixteens = [np.stack(crops[i : i + 16]) for i in range(0, len(crops) - 15, 16)]
    results: dict[str, Any] = {"codec": info.name, "libwebp": features.version("webp")}
    for name, batches in (("kodak_768x512", whole), ("crops_256_in_sixteens", sixteens)):
        results[name] = compare(options.codec, weights, batches, repeats=options.repeats)
        parts = [encode_parts(codec, batch, options.repeats) for batch in batches]
        pictures = results[name]["pictures"]
        results[name]["encode_parts_ms_per_picture"] = {
            part: round(sum(times[part] for times in parts) / pictures, 4) for part in parts[0]
        }
        results[name]["webp_settings"] = webp_settings(codec, batches)
        print(name, results[name]["encode_parts_ms_per_picture"])
        for pipeline in PIPELINES:
            row = results[name][pipeline]
            print(
                f"  {pipeline:15} {row['ms_per_picture']['median']:7.2f} ms/picture"
                f" {row['megapixels_per_second']:6.1f} MP/s  bytes {row['bytes_against_reference']:.4f}"
                f"  {row['times_faster']['median']:.2f}x ({row['times_faster']['min']:.2f}-"
                f"{row['times_faster']['max']:.2f}), latents {row['latents_times_faster']['median']:.2f}x"
                f"  {row['stages_ms_per_picture']}"
            )
    print(write_results("encode_speed", results))


if __name__ == "__main__":
    main()
