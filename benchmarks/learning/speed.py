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
from torch.nn import functional as F

from benchmarks.learning.data import Prepared, prepare
from benchmarks.learning.run import ARMS, NETWORKS, RESULTS, Arm, Augment, make_model
from benchmarks.results import machine_facts, spread
from walloc_data import LatentDataset

BATCH = 128
READ = 1024  # samples a round


def read_jpeg_files(pictures: Path, side_px: int) -> Iterator[int]:
    """What trains on pixels today: decode, take the centre square, resize."""
    for path in sorted((pictures / "train").rglob("*.JPEG"))[:READ]:
        with Image.open(path) as image:
            short = min(image.size)
            left, top = (image.width - short) // 2, (image.height - short) // 2
            box = (left, top, left + short, top + short)
            np.asarray(image.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC, box=box))
        yield 1


def files_of(prepared: Prepared, kind: str, **options: Any) -> list[bytes]:
    """The stored files of an arm whose pictures were made smaller beforehand."""
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
    """Shuffled batches of the package's own loader: one loader, whose epochs follow each other."""
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
    """Samples per second read from each stored form."""
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


class Trainer:
    """Training steps of one arm on its first batch: the work of a step does not depend on what is in it."""

    def __init__(self, kind: str, arm: Arm, prepared: Prepared, *, patch_cells: int) -> None:
        source = "pixels" if arm.flip == "encoded" else arm.array
        side_px = prepared.array(arm.array, "val").shape[-1]
        model = make_model(kind, arm, prepared, side_px=side_px, patch_cells=patch_cells)
        self.model = model.to(memory_format=torch.channels_last)
        self.augment = Augment(arm, prepared, model=model, device=torch.device("cpu"))
        self.x = torch.from_numpy(prepared.array(source, "train")[:BATCH].copy())
        self.y = torch.from_numpy(prepared.array("mirrored", "train")[:BATCH].copy()) if arm.flip == "stored" else None
        self.target = prepared.labels["train"][:BATCH]
        self.optimizer = torch.optim.AdamW(model.parameters())
        self.generator = torch.Generator().manual_seed(0)

    def step(self) -> None:
        x = self.augment(self.x, self.y, self.generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), self.target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def training(prepared: Prepared, *, patch_cells: int | None, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Samples per second trained, by network and arm."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for kind, network in NETWORKS.items():
        cells = patch_cells if patch_cells and kind == "vit" else network.patch_cells
        trainers = {name: Trainer(kind, arm, prepared, patch_cells=cells) for name, arm in ARMS.items()}
        rates: dict[str, list[float]] = {name: [] for name in trainers}
        for round_number in range(rounds + 1):
            for name, trainer in trainers.items():
                begun = time.perf_counter()
                trainer.step()
                if round_number:  # the first is slower
                    rates[name].append(BATCH / (time.perf_counter() - begun))
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
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    prepared = prepare(args.pictures, size_px=args.size_px, codec=args.codec, folder=args.work)
    value = {
        "read_samples_per_s": reading(prepared, args.pictures, size_px=args.size_px, rounds=args.rounds),
        "train_samples_per_s": training(prepared, patch_cells=args.patch_cells, rounds=args.rounds),
        "machine": machine_facts(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}-speed.json").write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    print(json.dumps({key: value[key] for key in ("read_samples_per_s", "train_samples_per_s")}, indent=1))


if __name__ == "__main__":
    main()
