"""Samples per second of every arm, reading and training apart, side by side in one run, one thread.

    python -m benchmarks.learning.speed PICTURES --size-px 160 --work SCRATCH --name imagenette

The same PICTURES, --size-px, --work and --patch-cells as `benchmarks.learning.run` had; run it alone on the machine.
Writes results/NAME-speed.json. Together a sample costs 1/reading + 1/training seconds, where nothing overlaps.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.learning.arms import ARMS, NETWORKS
from benchmarks.learning.data import Prepared, prepare
from benchmarks.learning.run import RESULTS
from benchmarks.learning.training import Trainer, device_name
from benchmarks.results import machine_facts, spread
from walloc_data import LatentDataset

BATCH = 128
READ = 1024  # samples a round


def read_jpeg_files(pictures: Path, side_px: int) -> Iterator[int]:
    """Read as what trains on pixels does: decode, take the centre square, resize."""
    for path in sorted((pictures / "train").rglob("*.JPEG"))[:READ]:
        with Image.open(path) as image:
            short = min(image.size)
            left, top = (image.width - short) // 2, (image.height - short) // 2
            box = (left, top, left + short, top + short)
            np.asarray(image.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC, box=box))
        yield 1


def files_of(prepared: Prepared, kind: str, **options: Any) -> list[bytes]:
    """Make the stored files of an arm whose pictures were made smaller beforehand."""
    files = []
    for picture in prepared.array(kind, "train")[:READ]:
        buffer = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, **options)
        files.append(buffer.getvalue())
    return files


def decode_files(files: list[bytes]) -> Iterator[int]:
    for data in files:
        np.asarray(Image.open(io.BytesIO(data)))
        yield 1


def latent_batches(prepared: Prepared, **options: Any) -> Callable[[], Iterator[int]]:
    """Make a way to read shuffled batches of the package's own loader: one loader, whose epochs follow each other."""
    loader = LatentDataset(prepared.folder / "latents", shuffle=True, **options).loader(batch_size=BATCH)
    if options:
        for _ in loader:  # the first epoch fills the array
            pass

    def read() -> Iterator[int]:
        count = 0
        for latents, _ in loader:
            yield len(latents)
            count += len(latents)
            if count >= (len(prepared.labels["train"]) if options else READ):
                return

    return read


def reading(prepared: Prepared, pictures: Path, *, size_px: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure samples per second read from each stored form."""
    reduced = files_of(prepared, "reduced", format="WEBP", lossless=True)
    jpeg = files_of(prepared, "jpeg", format="JPEG", quality=int(prepared.stored_bytes["jpeg_quality"]))
    ways: dict[str, Callable[[], Iterator[int]]] = {
        "JPEG files as they came": lambda: read_jpeg_files(pictures, size_px),
        "JPEG files of the latents' bytes": lambda: decode_files(jpeg),
        "reduced pictures, lossless WebP": lambda: decode_files(reduced),
        "latent shards": latent_batches(prepared),
        "latent array": latent_batches(prepared, cache="array", cache_folder=prepared.folder / "cache"),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            samples = sum(way())
            rates[name].append(samples / (time.perf_counter() - begun))
    return {name: spread(values) for name, values in rates.items()}


def training(
    prepared: Prepared, *, patch_cells: int | None, rounds: int, device: torch.device
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure samples per second trained, by network and arm, on one batch: the work does not depend on it."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    steps = 1 if device.type == "cpu" else 20  # a round
    for kind, network in NETWORKS.items():
        cells = patch_cells if patch_cells and kind == "vit" else network.patch_cells
        rows = np.arange(min(BATCH, len(prepared.labels["train"])))
        options = {"patch_cells": cells, "seed": 0, "epochs": 1, "batch_size": len(rows)}
        trainers = {name: Trainer(kind, arm, prepared, device=device, **options) for name, arm in ARMS.items()}
        rates: dict[str, list[float]] = {name: [] for name in trainers}
        for round_number in range(rounds + 1):
            for name, trainer in trainers.items():
                begun = time.perf_counter()
                for _ in range(steps):
                    loss = trainer.step(rows)
                float(loss)  # waits for an accelerator
                if round_number:  # the first is slower
                    rates[name].append(steps * len(rows) / (time.perf_counter() - begun))
        result[kind] = {name: spread(values) for name, values in rates.items()}
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--size-px", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--codec")
    parser.add_argument("--patch-cells", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="device of training; reading uses one core (default: cpu)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    prepared = prepare(args.pictures, size_px=args.size_px, codec=args.codec, folder=args.work)
    value = {
        "read_samples_per_s": reading(prepared, args.pictures, size_px=args.size_px, rounds=args.rounds),
        "train_samples_per_s": training(
            prepared, patch_cells=args.patch_cells, rounds=args.rounds, device=torch.device(args.device)
        ),
        "machine": machine_facts() | {"device": device_name(torch.device(args.device))},
    }
    RESULTS.mkdir(exist_ok=True)
    suffix = "-speed" if args.device == "cpu" else "-speed-gpu"
    (RESULTS / f"{args.name}{suffix}.json").write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    print(json.dumps({key: value[key] for key in ("read_samples_per_s", "train_samples_per_s")}, indent=1))


if __name__ == "__main__":
    main()
