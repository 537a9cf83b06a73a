"""From a classifier of pixels to a classifier of latents: fold its stem in closed form, then fine-tune.

    python examples/finetune_folded.py latents --train-pictures imagenette/train --val-pictures imagenette/val

The pixel model is trained here on the very pictures that were encoded, or taken from timm with --pretrained. Printed
for the validation split: the pixel model on pixels; the latent model folded, before any training on latents; after
each epoch of fine-tuning, its stem in a parameter group of its own, with --distill also towards the pixel model's
logits; and the same architecture trained from scratch for as many epochs.

Where the geometry skips stages (--geometry skip_early of a convolutional model), no fold exists: the stem is trained
with the first kept stage to imitate that stage of the pixel model (--imitate-steps), everything else frozen.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F

from walloc_data import LatentDataset, create_latent_model
from walloc_data.adapters import (
    PixelPrediction,
    fold_stem,
    freeze_except,
    parameter_groups,
    save_latent_model,
    stage_output,
    summarize,
    unfreeze,
)
from walloc_data.pictures import original_pictures
from walloc_data.serving import attach_codec
from walloc_data.sources import open_source


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="encoded data set with a split to train on and one to validate on")
    parser.add_argument("--train-pictures", required=True, help="what the training split was encoded from")
    parser.add_argument("--val-pictures", required=True, help="what the validation split was encoded from")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--val-split", help="default: the first there is of val, validation, valid, dev, test")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--model-kwargs", type=json.loads, default={}, help="JSON for timm, for both models")
    parser.add_argument("--pretrained", action="store_true", help="take timm's weights; needs the network once")
    parser.add_argument("--geometry", default="pixel_grid", choices=("skip_early", "all_stages", "pixel_grid"))
    parser.add_argument("--stem-kernel-cells", type=int, help="default: 4 for patches of 2 cells, else the family's")
    parser.add_argument("--pixel-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--imitate-steps", type=int, default=200)
    parser.add_argument("--distill", type=float, default=0.0, help="weight of the pixel model's logits in the loss")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--finetune-lr", type=float, default=3e-4)
    parser.add_argument("--stem-lr-scale", type=float, default=2.0)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the training split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/folded"))
    return parser.parse_args(argv)


class Pairs:
    """Latents, pictures and labels of a split, in batches: every picture as it was when it was encoded."""

    def __init__(self, dataset: LatentDataset, pictures: str) -> None:
        self.dataset = dataset
        self.read = original_pictures(open_source(pictures), settings=dataset.manifest.settings)
        self.source_index = dataset.index["source_index"].tolist()

    def batches(self, size: int, *, seed: int | None) -> Any:
        order = (
            np.arange(len(self.dataset)) if seed is None else np.random.default_rng(seed).permutation(len(self.dataset))
        )
        for rows in np.array_split(order, max(1, len(order) // size)):
            samples = self.dataset.__getitems__(rows.tolist())
            pixels = np.stack([self.read(self.source_index[row]) for row in rows])
            yield (
                torch.stack([latent for latent, _ in samples]),
                torch.from_numpy(pixels).permute(0, 3, 1, 2),
                torch.tensor([label for _, label in samples]),
            )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    torch.manual_seed(args.seed)
    train = LatentDataset(args.data, split=args.train_split).subset(fraction=args.fraction, seed=args.seed)
    val = LatentDataset(args.data, split=train.manifest.held_out_split(args.val_split, where=args.data))
    train_pairs, val_pairs = Pairs(train, args.train_pictures), Pairs(val, args.val_pictures)
    if train.latent_shape is None or train.num_classes is None:
        raise SystemExit("the pictures must be of one size, and labelled")
    side_px = train.manifest.settings.size_px or train.latent_shape[1] * train.manifest.codec.cell_px

    sized = {"img_size": side_px} if "vit" in args.model or "deit" in args.model or "swin" in args.model else {}
    pixel = timm.create_model(
        args.model, pretrained=args.pretrained, num_classes=train.num_classes, **sized, **args.model_kwargs
    )
    config = resolve_model_data_config(pixel)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))

    def normalised(pixels: Tensor) -> Tensor:
        return (pixels.float() / 255 - mean) / std

    def fit(model: nn.Module, epochs: int, *, lr: float, on: str, groups: Any = None, label: str) -> list[float]:
        optimizer = create_optimizer_v2(groups or model, opt="adamw", lr=lr, weight_decay=0.05)
        steps = max(1, len(train) // args.batch_size)
        scheduler, _ = create_scheduler_v2(
            optimizer, sched="cosine", num_epochs=epochs, step_on_epochs=False, updates_per_epoch=steps
        )
        step, accuracies = 0, []
        for epoch in range(epochs):
            model.train()
            begun = time.monotonic()
            for z, pixels, labels in train_pairs.batches(args.batch_size, seed=args.seed + epoch):
                flip = bool(torch.rand(()) < 0.5) if on == "pixels" else False
                logits = model(normalised(pixels.flip(-1) if flip else pixels) if on == "pixels" else z)
                loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
                if args.distill and on == "latents":
                    with torch.no_grad():
                        soft = pixel.eval()(normalised(pixels)).softmax(1)
                    loss = loss + args.distill * F.cross_entropy(logits, soft)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
                scheduler.step_update(step)
            accuracies.append(accuracy(model, on))
            say(f"{label}, epoch {epoch}: {accuracies[-1]:.1f} % ({time.monotonic() - begun:.0f} s)")
        return accuracies

    def accuracy(model: nn.Module, on: str) -> float:
        model.eval()
        correct = 0
        with torch.inference_mode():
            for z, pixels, labels in val_pairs.batches(args.batch_size, seed=None):
                correct += int((model(normalised(pixels) if on == "pixels" else z).argmax(1) == labels).sum())
        return 100 * correct / len(val)

    def latent_model(pretrained: Any) -> Any:
        # A 16-px patch is two cells; bands sit at corners, so it is seen best through four.
        kernel = args.stem_kernel_cells or (4 if sized and "swin" not in args.model else None)
        return create_latent_model(
            args.model,
            dataset=train,
            geometry=args.geometry,
            pretrained=pretrained,
            stem_kernel_cells=kernel,
            stem_bias=True,
            stem_padding="circular",
            **args.model_kwargs,
        )

    if not args.pretrained or args.pixel_epochs:
        fit(pixel, args.pixel_epochs, lr=args.lr, on="pixels", label="pixel model")
    results: dict[str, Any] = {"pixels": accuracy(pixel, "pixels")}
    model = latent_model(pixel)
    results["copied, stem random"] = accuracy(model, "latents")
    if model.stem_site.feeds is None:
        prediction = PixelPrediction.for_model(model, pixel)
        for number, (z, pixels, _) in enumerate(train_pairs.batches(args.batch_size, seed=args.seed)):
            prediction.update(z, pixels)
            if number == 20:  # some 1300 pictures determine the map
                break
        fold_stem(model, pixel, prediction=prediction.solve())
    else:
        imitate(model, pixel, train_pairs, normalised, steps=args.imitate_steps, args=args)
    results["before fine-tuning"] = accuracy(model, "latents")
    say(f"{summarize(model)}\npixels {results['pixels']:.1f} %, folded {results['before fine-tuning']:.1f} %")
    groups = parameter_groups(model, stem_lr_scale=args.stem_lr_scale)
    results["fine-tuned"] = fit(
        model, args.epochs, lr=args.finetune_lr, on="latents", groups=groups, label="fine-tuning"
    )
    torch.manual_seed(args.seed)
    distill, args.distill = args.distill, 0.0
    results["from scratch"] = fit(latent_model(False), args.epochs, lr=args.lr, on="latents", label="from scratch")
    args.distill = distill
    save_latent_model(model, args.output / "model")
    attach_codec(args.output / "model", dataset=args.data)
    print(json.dumps(results))
    return results


def imitate(model: Any, pixel: nn.Module, pairs: Pairs, normalised: Any, *, steps: int, args: Any) -> None:
    """Train the stem and the first kept stage to give what that stage gives in the pixel model."""
    freeze_except(model, "stem", *model.stem_site.fresh, model.stem_site.feeds)
    optimizer = create_optimizer_v2(
        [parameter for parameter in model.parameters() if parameter.requires_grad], opt="adamw", lr=3e-3
    )
    model.train()
    pixel.eval()
    step = 0
    while step < steps:
        for z, pixels, _ in pairs.batches(args.batch_size, seed=args.seed + step):
            with torch.no_grad():
                target = stage_output(pixel, normalised(pixels), latent_model=model)
            loss = F.mse_loss(stage_output(model, z, latent_model=model), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 50 == 0 or step == steps:
                say(f"imitating, step {step}: error {float(loss.detach() / target.var()):.3f} of the variance")
            if step == steps:
                break
    unfreeze(model)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
