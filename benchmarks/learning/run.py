"""Does training on latents pay? One command, every arm, seeds fixed, resumable.

    python -m benchmarks.learning.run PICTURES --size-px 160 --work SCRATCH --name imagenette
    python -m benchmarks.learning.run PICTURES --size-px 256 --work SCRATCH --name imagewoof --patch-cells 8
    python -m benchmarks.learning.plot imagenette imagewoof

PICTURES holds train/ and val/, one folder a class: Imagenette-160 or Imagewoof (github.com/fastai/imagenette; as plain
files also github.com/q878787/imagewoof2-320). Every arm trains the same network on the same pictures for the same
epochs; only the first layer differs, so that each sees its input at the same number of tokens or the same grid.
Validation is of the whole view in every arm. The accuracy reported is the last epoch's, never the best.

Runs are lines in benchmarks/learning/results/NAME.jsonl; what is there already is not run again.
"""

import argparse
import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.learning.data import Prepared, prepare
from benchmarks.results import machine_facts
from walloc_data.adapters import create_latent_model, parameter_groups, stem_of, summarize
from walloc_data.codec import load_codec
from walloc_data.transforms import RandomHorizontalFlip

RESULTS = Path(__file__).parent / "results"
IMAGENET_MEAN, IMAGENET_STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


@dataclass(frozen=True)
class Arm:
    """One way of giving a network the pictures."""

    array: Literal["pixels", "reduced", "jpeg", "latents"]
    flip: Literal["none", "exact", "naive", "fitted", "stored", "stem", "encoded"]
    normalization: Literal["standard", "expand"] = "standard"
    extra_window_cells: int = 0  # stem windows that overlap


ARMS = {
    "pixels, full resolution": Arm("pixels", "exact"),
    "pixels, reduced 16x": Arm("reduced", "exact"),
    "pixels, JPEG of the latents' bytes": Arm("jpeg", "exact"),
    "latents, no flip": Arm("latents", "none"),
    "latents, cells reversed": Arm("latents", "naive"),
    "latents, fitted flip": Arm("latents", "fitted"),
    "latents, mirrored stem": Arm("latents", "stem"),
    "latents, stored mirrors": Arm("latents", "stored"),
    "latents, stored mirrors, expanded": Arm("latents", "stored", normalization="expand"),
    "latents, stored mirrors, overlapping stem": Arm("latents", "stored", extra_window_cells=2),
    # Not a data set of latents: what augmentation finer than a cell would give.
    "latents, encoded after augmenting pixels": Arm("latents", "encoded"),
}


@dataclass(frozen=True)
class Network:
    """What the arms share."""

    name: str  # timm's
    options: dict[str, Any]
    patch_cells: int  # one token, or one cell of the first grid, covers so many latent cells a side
    lr: float
    epochs: int


# Of one cost: at 160 px both take about 70 million multiply-accumulates.
NETWORKS = {
    "vit": Network("vit_tiny_patch16_224", {"depth": 6}, patch_cells=4, lr=1e-3, epochs=14),
    "resnet": Network(
        "resnet18", {"channels": (32, 64, 128, 256), "geometry": "all_stages"}, patch_cells=1, lr=2e-3, epochs=8
    ),
}


class PixelStem(nn.Conv2d):
    """The first layer of the pixel arms: standardised colours, and one convolution that sees what the latents' sees."""

    def __init__(self, stem: nn.Conv2d, *, cell_px: int) -> None:
        (kernel, _), (stride, _), (padding, _) = stem.kernel_size, stem.stride, stem.padding  # type: ignore[misc]
        super().__init__(
            3,
            stem.out_channels,
            kernel * cell_px,
            stride=stride * cell_px,
            padding=padding * cell_px,
            bias=stem.bias is not None,
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward((pixels.float() - self.mean) / self.std)


class MirroredStem(nn.Module):
    """Two first layers in training: one for latents, one of its own for latents whose cells were reversed.

    The second learns what a mirrored cell looks like; validation uses the first alone. Its start is the first
    composed with nothing: the fitted operator is not needed.
    """

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.plain, self.mirrored = stem, copy.deepcopy(stem)
        self.reversed_rows: Tensor | None = None  # set by Augment for the batch to come

    def forward(self, latents: Tensor) -> Tensor:
        out: Tensor = self.plain(latents)
        if not self.training or self.reversed_rows is None:
            return out
        return torch.where(self.reversed_rows, self.mirrored(latents), out)


def make_model(kind: str, arm: Arm, prepared: Prepared, *, side_px: int, patch_cells: int) -> nn.Module:
    """The arm's network: the same body for all, with the stem that its input needs."""
    network = NETWORKS[kind]
    kwargs = dict(network.options)
    if kind == "vit":
        kwargs["patch_size"] = patch_cells
    window = None if not arm.extra_window_cells else (patch_cells if kind == "vit" else 3) + arm.extra_window_cells
    model: Any = create_latent_model(
        network.name,
        dataset=prepared.manifest,
        normalization=arm.normalization,
        stem_kernel_cells=window,
        **kwargs,
    )
    model.num_macs = summarize(model).num_macs
    parent, _, leaf = model.stem_site.path.rpartition(".")
    if arm.flip == "stem":
        setattr(model.get_submodule(parent), leaf, MirroredStem(stem_of(model)))
    if arm.array != "latents":
        stem = stem_of(model)
        cells_per_side = prepared.manifest.splits["train"].latent_shape[1]  # type: ignore[index]
        pixel_stem = PixelStem(stem, cell_px=side_px // cells_per_side)  # pixels of this arm under one cell
        windows = (cells_per_side // stem.stride[0]) ** 2
        model.num_macs += windows * (pixel_stem.weight.numel() - stem.weight.numel())
        setattr(model.get_submodule(parent), leaf, pixel_stem)
        if kind == "vit":
            model.patch_embed.img_size = None  # its check is in cells
    return model  # type: ignore[no-any-return]


class Augment:
    """Shifts by up to a tenth of the side and, half of the time, a mirror: pixels exactly, latents as the arm says."""

    def __init__(self, arm: Arm, prepared: Prepared, *, model: nn.Module, device: torch.device) -> None:
        self.arm, self.device = arm, device
        self.stems = [module for module in model.modules() if isinstance(module, MirroredStem)]
        self.flip = RandomHorizontalFlip(prepared.operators.flip, p=1.0).to(device) if arm.flip == "fitted" else None
        self.codec = load_codec(prepared.codec_folder(), decoder=False)[0] if arm.flip == "encoded" else None

    def __call__(self, x: Tensor, mirrored: Tensor | None, generator: torch.Generator) -> Tensor:
        heads = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)[:, None, None, None]
        for stem in self.stems:
            stem.reversed_rows = heads
        if self.arm.flip in ("exact", "naive", "encoded", "stem"):
            x = torch.where(heads, x.flip(-1), x)
        elif self.arm.flip == "stored" and mirrored is not None:
            x = torch.where(heads, mirrored, x)
        elif self.flip is not None:
            x = torch.where(heads, self.flip(x), x.float())
        most = x.shape[-1] // 10
        down, right = torch.randint(-most, most + 1, (2, len(x)), generator=generator)
        rows = (torch.arange(x.shape[2]) - down[:, None]).clamp(0, x.shape[2] - 1).to(x.device)
        columns = (torch.arange(x.shape[3]) - right[:, None]).clamp(0, x.shape[3] - 1).to(x.device)
        n, c = torch.arange(len(x), device=x.device)[:, None, None, None], torch.arange(x.shape[1], device=x.device)
        x = x[n, c[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]  # edges repeat
        return x if self.codec is None else self.codec.encode(x.cpu()).to(self.device)


def train_one(
    kind: str,
    arm_name: str,
    seed: int,
    prepared: Prepared,
    *,
    epochs: int,
    batch_size: int,
    patch_cells: int,
    device: torch.device,
) -> dict[str, Any]:
    """One run: (model, arm, seed)."""
    arm = ARMS[arm_name]
    source = "pixels" if arm.flip == "encoded" else arm.array
    data = prepared.array(source, "train")
    mirrored = prepared.array("mirrored", "train") if arm.flip == "stored" else None
    held_out, labels = prepared.array(arm.array, "val"), prepared.labels
    torch.manual_seed(seed)
    model: Any = make_model(kind, arm, prepared, side_px=held_out.shape[-1], patch_cells=patch_cells)
    model = model.to(device, memory_format=torch.channels_last)
    if arm.array == "latents":
        groups: Any = parameter_groups(model, weight_decay=0.05)
    else:
        groups = model
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=NETWORKS[kind].lr, weight_decay=0.05)
    steps = len(data) // batch_size
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        warmup_epochs=1,
        warmup_lr=1e-5,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    augment = Augment(arm, prepared, model=model, device=device)
    generator = torch.Generator().manual_seed(seed)
    history, step = [], 0
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(data), generator=generator).numpy()
        loss_sum = 0.0
        for start in range(0, steps * batch_size, batch_size):
            rows = np.sort(order[start : start + batch_size])
            x = torch.from_numpy(data[rows]).to(device)
            y = None if mirrored is None else torch.from_numpy(mirrored[rows]).to(device)
            target = labels["train"][torch.from_numpy(rows)].to(device)
            x = augment(x, y, generator)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), target, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            scheduler.step_update(step)
            loss_sum += float(loss.detach())
        history.append({"loss": loss_sum / max(1, steps), "accuracy": accuracy(model, held_out, labels["val"], device)})
    return {
        "model": kind,
        "arm": arm_name,
        "seed": seed,
        "patch_cells": patch_cells,
        "epochs": epochs,
        "batch_size": batch_size,
        "num_macs": model.num_macs,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "stored_bytes": prepared.stored_bytes["mirrored" if arm.flip == "stored" else arm.array],
        "num_samples": len(data),
        "accuracy": history[-1]["accuracy"],
        "history": history,
        "codec": prepared.manifest.codec.name,
        "machine": machine_facts() | {"device": str(device), "threads": torch.get_num_threads()},
    }


def accuracy(model: nn.Module, data: Any, labels: Tensor, device: torch.device) -> float:
    """Top-1 in percent."""
    model.eval()
    correct = 0
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16):
        for start in range(0, len(data), 256):
            x = torch.from_numpy(np.array(data[start : start + 256])).to(device)
            correct += int((model(x).argmax(1).cpu() == labels[start : start + 256]).sum())
    return 100 * correct / len(data)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--size-px", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for arrays: about 0.2 MB a picture at 160 px")
    parser.add_argument("--name", required=True, help="of the results file")
    parser.add_argument("--codec", help="what load_codec takes; default the bundled one")
    parser.add_argument("--models", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="default: the model's own")
    parser.add_argument("--patch-cells", type=int, help="side of a ViT's patch, in latent cells of 8 px (default: 4)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    prepared = prepare(args.pictures, size_px=args.size_px, codec=args.codec, folder=args.work)
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / f"{args.name}.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    key = ("model", "arm", "seed", "epochs", "patch_cells", "codec")
    done = {tuple(line[name] for name in key) for line in lines}
    for seed in args.seeds:
        for kind in args.models:
            for arm in args.arms:
                epochs = args.epochs or NETWORKS[kind].epochs
                cells = args.patch_cells if args.patch_cells and kind == "vit" else NETWORKS[kind].patch_cells
                if (kind, arm, seed, epochs, cells, prepared.manifest.codec.name) in done:
                    continue
                result = train_one(
                    kind,
                    arm,
                    seed,
                    prepared,
                    epochs=epochs,
                    batch_size=args.batch_size,
                    patch_cells=cells,
                    device=torch.device(args.device),
                )
                with log.open("a") as file:  # a line a run: an interruption loses one run at most
                    file.write(json.dumps(result) + "\n")
                print(f"{kind}, {arm}, seed {seed}: {result['accuracy']:.1f} %", flush=True)


if __name__ == "__main__":
    main()
