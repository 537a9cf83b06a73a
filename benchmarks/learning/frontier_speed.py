"""CPU seconds a picture for `benchmarks.learning.frontier`: reading, augmenting and training, in rounds side by side.

    python -m benchmarks.learning.frontier_speed PICTURES LATENTS PACKED --model resnet18 --model-kwargs ...

PICTURES, LATENTS and PACKED are the pictures, --work and --out of `frontier prepare`; one thread. Writes the network's
entry of results/frontier-speed.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.learning.frontier_plot import RESULTS
from benchmarks.learning.frontier_run import Run
from benchmarks.learning.frontier_views import ARMS, RATIO, SCALE, load
from benchmarks.results import machine_facts, spread
from walloc_data import LatentDataset

PICTURES = 512  # a round of each way
Way = Callable[[], int]  # does its work on some pictures, returns how many


def read_jpeg_crops(pictures: Path, side_px: int) -> Way:
    """Make the way that trains on pixels: decode a file, take a random crop of it, resize, flip."""
    from torchvision.transforms import v2

    crop = v2.Compose([v2.RandomResizedCrop(side_px, scale=SCALE, ratio=RATIO), v2.RandomHorizontalFlip()])
    paths = sorted((pictures / "train").rglob("*.JPEG"))[:PICTURES]

    def read() -> int:
        for path in paths:
            with Image.open(path) as image:
                np.asarray(crop(image.convert("RGB")))
        return len(paths)

    return read


def read_latents(folder: Path, **options: Any) -> Way:
    """Make a way of reading the package's own batches: an epoch of the array cache, or a part of one of the shards."""
    loader = LatentDataset(folder, shuffle=True, **options).loader(batch_size=64)
    if options:
        for _ in loader:  # the first epoch fills the array
            pass
    return lambda: sum(len(latents) for latents, _ in (loader if options else islice(loader, PICTURES // 64)))


def training(arm: str, args: argparse.Namespace, *, cells: int) -> dict[str, Way]:
    """Make an arm's ways at a size: augmenting, and training on what was augmented."""
    data = load(args.packed, ARMS[arm]).first(PICTURES)
    args = argparse.Namespace(**vars(args) | {"cells": cells})
    run = Run(arm, data, args, seed=0, epochs=1000, lr=1e-4)

    def augment() -> int:
        run.begin_epoch()
        return len(data.x["train"])

    def train() -> int:
        for i in range(run.steps):
            run.step(i)
        return run.steps * args.batch_size

    return {f"augment, {arm}, {cells} cells": augment, f"train, {arm}, {cells} cells": train}


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("latents", type=Path)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--model-kwargs", type=json.loads, default={})
    parser.add_argument("--cells", nargs="+", type=int, default=[16])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--matmul-gradients", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.set_defaults(weight_decay=0.05, graphs=False, cells_before=[])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    side_px = LatentDataset(args.latents).manifest.settings.size_px or 0
    with tempfile.TemporaryDirectory() as cache:
        ways: dict[str, Way] = {
            **{f"JPEG files, random crops, {n} cells": read_jpeg_crops(args.pictures, 8 * n) for n in args.cells},
            "latent shards": read_latents(args.latents),
            "latent array": read_latents(args.latents, cache="array", cache_folder=cache),
        }
        for arm in args.arms:
            for cells in args.cells:
                ways |= training(arm, args, cells=cells)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds + 1):
            for name, way in ways.items():
                begun = time.process_time()
                count = way()
                if number:  # the first is slower
                    seconds[name].append((time.process_time() - begun) / count)
    facts = {
        "model": args.model,
        "model_kwargs": args.model_kwargs,
        "size_px": side_px,
        "cells": args.cells,
        "matmul_gradients": args.matmul_gradients,
    }
    path = RESULTS / "frontier-speed.json"
    others = json.loads(path.read_text()) if path.exists() else []
    others = [value for value in others if any(value[name] != facts[name] for name in facts)]
    value = facts | {
        "cpu_seconds_a_picture": {name: spread(values) for name, values in seconds.items()},
        "machine": machine_facts(),
    }
    path.write_text(json.dumps([*others, value], indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
