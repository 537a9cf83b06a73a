"""Arguments of `train_timm.py`: the recipe where they are left open, and what a resumed run may change."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from walloc_data import LatentDataset
from walloc_data.adapters import LatentModelConfig
from walloc_data.errors import StorageError
from walloc_data.transforms import LatentOperators

LONG_EPOCHS = 80  # from here on mixed pictures are the default: shorter runs are not short of pictures
# What the weights, the optimizer's state or the order of samples depend on.
FIXED = {
    "model", "model_kwargs", "geometry", "normalization", "stem_hidden_channels", "size_cells", "val_cells", "target",
    "task", "train_split", "init", "global_batch_size", "opt", "weight_decay", "layer_decay", "seed",
}  # fmt: skip


def parse(argv: list[str] | None, *, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder or URL of an encoded data set")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/latent"), help="folder for checkpoints, log and final model"
    )
    parser.add_argument(
        "--init",
        type=Path,
        metavar="FOLDER",
        help="fine-tune the model saved there, by walloc-data adapt or by this script: its network, first layer and "
        "input size; its classifier is kept if it has the classes of the data set",
    )
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="name of a timm model")
    parser.add_argument(
        "--model-kwargs",
        type=json.loads,
        default={},
        help="arguments of timm.create_model as JSON, e.g. '{\"depth\": 6}'",
    )
    parser.add_argument(
        "--geometry",
        choices=("skip_early", "all_stages", "pixel_grid"),
        help="stage of the network that takes the latents (default: the first of its family)",
    )
    parser.add_argument(
        "--normalization",
        choices=("standard", "expand"),
        default="standard",
        help="standardise stored integers, or undo the codec's companding first",
    )
    parser.add_argument(
        "--stem-hidden-channels", type=int, default=48, help="channels between the layers of the stem; 0: one layer"
    )
    parser.add_argument("--train-split", default="train", help="split to train on")
    parser.add_argument(
        "--val-split", help="split for validation (default: the first of val, validation, valid, dev, test)"
    )
    parser.add_argument("--target", default="label", metavar="COLUMN", help="column to learn (default: the label)")
    parser.add_argument(
        "--task",
        choices=("auto", "classes", "labels", "numbers"),
        default="auto",
        help="one class of several, several labels, or numbers (default: by the column)",
    )
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training split")
    parser.add_argument("--global-batch-size", type=int, default=128, help="samples per step over all processes")
    parser.add_argument("--opt", default="adamw", help="name of a timm optimizer")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate after the warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="weight decay of matrices and kernels")
    parser.add_argument(
        "--layer-decay", type=float, help="factor of the learning rate from each layer to the one before"
    )
    parser.add_argument("--clip-grad", type=float, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--sched", default="cosine", help="name of a timm schedule")
    parser.add_argument("--warmup-epochs", type=int, default=1, help="epochs of linear warm-up")
    parser.add_argument("--smoothing", type=float, help="smoothing of classes or labels (default: 0.1 for classes)")
    parser.add_argument(
        "--mixup", type=float, help="alpha of mixup; 0: off (default: 0.2 for 80 epochs or more, not for numbers)"
    )
    parser.add_argument(
        "--cutmix", type=float, help="alpha of cutmix; 0: off (default: 1 for 80 epochs or more, not for numbers)"
    )
    parser.add_argument("--ema-decay", type=float, default=0.99, help="decay of the average of the weights per step")
    parser.add_argument(
        "--mix-from", type=float, default=0.5, help="fraction of the epochs without mixup and cutmix, at the start"
    )
    parser.add_argument(
        "--flip",
        choices=("auto", "none", "naive", "fitted", "stored"),
        default="auto",
        help="auto: stored mirrors if there are any, else the operator of the codec if it has one",
    )
    parser.add_argument(
        "--shift-cells",
        type=int,
        help="random shift by up to this many cells (default: 2 without random crops, else 0)",
    )
    parser.add_argument(
        "--size-cells", type=int, help="side of the training input in cells (default: that of the stored latents)"
    )
    parser.add_argument(
        "--val-cells",
        type=int,
        metavar="CELLS",
        help="side for validation and `walloc-data predict` (default: size-cells). After random crops some networks "
        "score better on larger pictures (benchmarks/learning)",
    )
    parser.add_argument(
        "--crops",
        choices=("auto", "random", "whole"),
        default="auto",
        help="how to get size-cells: RandomResizedCrop, or downscaled latents (default: random if smaller than stored)",
    )
    parser.add_argument(
        "--crop-scale",
        type=float,
        nargs=2,
        default=(0.35, 1.0),
        metavar=("LOW", "HIGH"),
        help="area of random crops as a fraction of the stored picture",
    )
    parser.add_argument(
        "--progressive-from",
        type=int,
        metavar="CELLS",
        help="start with random crops of this side, growing to size-cells over the first two thirds of the epochs",
    )
    parser.add_argument(
        "--cache", choices=("shards", "array"), default="array", help="array: decode once, into a memory-mapped file"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read batches")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="use bfloat16 autocast, in validation as well")
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="memory format that can be quicker for convolutional networks with --amp",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation")
    parser.add_argument("--checkpoint-steps", type=int, default=0, help="also save a checkpoint every N steps")
    return parser.parse_args(argv)


def adopt(args: argparse.Namespace, config: LatentModelConfig) -> None:
    """Let --init decide what describes its model.

    Raises:
        SystemExit: an argument says otherwise, or the input is not square.
    """
    _, height, width = config.input_shape
    if height != width:
        raise SystemExit(f"--init {args.init}: its input of {height} x {width} cells is not square")
    found = {
        "model": config.name,
        "model_kwargs": dict(config.timm_kwargs),
        "geometry": config.geometry,
        "normalization": config.normalization,
        "stem_hidden_channels": config.stem_hidden_channels or 0,
        "val_cells": height,
    }
    defaults = vars(parse(["data"], description=None))
    for name, value in found.items():
        if getattr(args, name) not in (defaults[name], value):
            option = name.replace("_", "-")
            raise SystemExit(f"--init {args.init} has --{option} {value}, not {getattr(args, name)}: leave it out")
        setattr(args, name, value)
    args.size_cells = height if args.size_cells is None else args.size_cells


def fill_in_recipe(args: argparse.Namespace, train: LatentDataset, *, task: str = "classes") -> None:
    """Decide what the arguments leave open: by the task, the length of training, and what is stored."""
    long = args.epochs >= LONG_EPOCHS and task != "numbers"
    args.smoothing = 0.1 * (task == "classes") if args.smoothing is None else args.smoothing
    args.mixup = 0.2 * long if args.mixup is None else args.mixup
    args.cutmix = 1.0 * long if args.cutmix is None else args.cutmix
    shape = train.record.latent_shape
    stored = max(shape[1:]) if shape is not None else 0
    args.size_cells = stored if args.size_cells is None else args.size_cells
    args.val_cells = args.size_cells if args.val_cells is None else args.val_cells
    if stored and (side := max(args.size_cells, args.val_cells)) > stored:
        raise SystemExit(f"latents are stored with {stored} cells a side: none gives an input of {side}")
    if args.crops == "auto":
        args.crops = "random" if args.size_cells < stored else "whole"
    if args.progressive_from is not None and args.crops != "random":
        raise SystemExit("--progressive-from grows random crops: store latents larger than --size-cells")
    if args.shift_cells is None:
        args.shift_cells = 2 * (args.crops == "whole")
    if args.flip == "auto":
        args.flip = "stored" if train.manifest.settings.mirror else "fitted"
        if args.flip == "fitted":
            try:
                LatentOperators.load(args.data, spec=train.manifest.codec)
            except StorageError:  # a codec that none were fitted for
                args.flip = "none"


def compare_arguments(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> str:
    """Return what a resumed run's arguments changed, for people; empty where nothing was.

    Raises:
        SystemExit: one of them cannot change within a run.
    """
    changed = {name: (saved[name], now[name]) for name in now if name in saved and saved[name] != now[name]}
    said = [f"--{name.replace('_', '-')} {old} -> {new}" for name, (old, new) in changed.items()]
    fixed = [text for text, name in zip(said, changed, strict=True) if name in FIXED]
    if fixed:
        raise SystemExit(
            f"{path} was begun with other arguments, which cannot change within a run: {', '.join(fixed)}. Give them "
            "as they were, or begin another run with another --output"
        )
    return f"changed since {path} was saved: {', '.join(said)}" if said else ""


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Return arguments as a checkpoint and a JSON file hold them; the data set's place is not one of them."""
    return json.loads(json.dumps({name: value for name, value in vars(args).items() if name != "data"}, default=str))
