"""From a classifier of pixels to a classifier of latents: adapt it without labels, then fine-tune with them.

    python examples/finetune_folded.py latents --train-pictures imagenette/train --val-pictures imagenette/val

The pixel model is trained here on the very pictures that were encoded, or taken from timm with --pretrained. Printed
for the validation split: the pixel model on pixels; its weights with what is new left random; the model that
`adapt_model` makes of it (folded in closed form, matched, or imitating where stages are skipped); after each epoch of
fine-tuning, its stem in a group of its own; and the same architecture trained from scratch for as many epochs.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F

from walloc_data import LatentDataset, adapt_model, create_latent_model
from walloc_data.adapters import input_normalisation, latent_config, parameter_groups, save_latent_model, summarize
from walloc_data.adapting import AdaptConfig, Pairs
from walloc_data.pictures import original_pictures
from walloc_data.serving import attach_codec
from walloc_data.sources import open_source


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="encoded data set with a split to train on and one to validate on")
    parser.add_argument("--train-pictures", required=True, help="source of the training split")
    parser.add_argument("--val-pictures", required=True, help="source of the validation split")
    parser.add_argument("--train-split", default="train")
    parser.add_argument(
        "--val-split", help="split for validation (default: the first of val, validation, valid, dev, test)"
    )
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument(
        "--model-kwargs", type=json.loads, default={}, help="arguments of timm.create_model for both models, as JSON"
    )
    parser.add_argument("--pretrained", action="store_true", help="use timm's pretrained weights; downloads them once")
    parser.add_argument("--geometry", default="pixel_grid", choices=("skip_early", "all_stages", "pixel_grid"))
    parser.add_argument("--stem-blocks", type=int, help="residual blocks of the stem (default: one linear layer)")
    parser.add_argument(
        "--stem-kernel-cells",
        type=int,
        help="kernel size of the stem (default: 4 for patches of 2 cells, else the family's)",
    )
    parser.add_argument("--pixel-epochs", type=int, default=8)
    parser.add_argument(
        "--stem-epochs", type=float, default=2.0, help="epochs that train only new layers to imitate the pixel model"
    )
    parser.add_argument(
        "--distill-epochs", type=float, default=0.0, help="epochs that train the full model to imitate it"
    )
    parser.add_argument("--epochs", type=int, default=2, help="epochs of fine-tuning, and of training from scratch")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--finetune-lr", type=float, default=3e-4)
    parser.add_argument("--stem-lr-scale", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/folded"))
    return parser.parse_args(argv)


class Run:
    """Both splits, and what is done to every model alike."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.train = LatentDataset(args.data, split=args.train_split)
        val = LatentDataset(args.data, split=self.train.manifest.held_out_split(args.val_split, context=args.data))
        self.pairs = {data: self.paired(data, source) for data, source in
                      ((self.train, args.train_pictures), (val, args.val_pictures))}  # fmt: skip
        self.val = val

    @staticmethod
    def paired(data: LatentDataset, source: str) -> Pairs:
        return Pairs(data, original_pictures(open_source(source), settings=data.manifest.settings))

    def inputs(self, batch: Any, on: str, model: nn.Module) -> Tensor:
        if on == "latents":
            return batch.latents
        mean, std = (torch.tensor(values)[:, None, None] for values in input_normalisation(model))
        return (batch.pictures.float() / 255 - mean) / std

    def fit(self, model: nn.Module, epochs: int, *, lr: float, on: str, groups: Any = None, label: str) -> list[float]:
        optimizer = create_optimizer_v2(groups or model, opt="adamw", lr=lr, weight_decay=0.05)
        size, accuracies, step = self.args.batch_size, [], 0
        scheduler, _ = create_scheduler_v2(
            optimizer, sched="cosine", num_epochs=epochs, step_on_epochs=False,
            updates_per_epoch=-(-len(self.train) // size),
        )  # fmt: skip
        for epoch in range(epochs):
            model.train()
            begun = time.monotonic()
            order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.args.seed + epoch))
            for batch in self.pairs[self.train].batches(order, size=size):
                x = self.inputs(batch, on, model)
                if on == "pixels" and torch.rand(()) < 0.5:
                    x = x.flip(-1)
                loss = F.cross_entropy(model(x), batch.labels, label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
                scheduler.step_update(step)
            accuracies.append(self.accuracy(model, on))
            log(f"{label}, epoch {epoch}: {accuracies[-1]:.1f} % ({time.monotonic() - begun:.0f} s)")
        return accuracies

    @torch.inference_mode()
    def accuracy(self, model: nn.Module, on: str) -> float:
        model.eval()
        batches = self.pairs[self.val].batches(range(len(self.val)), size=self.args.batch_size)
        correct = sum(int((model(self.inputs(batch, on, model)).argmax(1) == batch.labels).sum()) for batch in batches)
        return 100 * correct / len(self.val)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    torch.manual_seed(args.seed)
    run = Run(args)
    if run.train.num_classes is None or run.train.latent_shape is None:
        raise SystemExit("the pictures must be labelled")
    side_px = run.train.latent_shape[1] * run.train.manifest.codec.cell_px
    sized = {"img_size": side_px} if any(kind in args.model for kind in ("vit", "deit", "swin")) else {}
    pixel = timm.create_model(
        args.model, pretrained=args.pretrained, num_classes=run.train.num_classes, **sized, **args.model_kwargs
    )
    if not args.pretrained or args.pixel_epochs:
        run.fit(pixel, args.pixel_epochs, lr=args.lr, on="pixels", label="pixel model")
    results: dict[str, Any] = {"pixels": run.accuracy(pixel, "pixels")}
    # A 16-px patch is two cells; bands sit at corners, so it is seen best through four.
    kernel = args.stem_kernel_cells or (4 if sized and "swin" not in args.model else None)
    config = AdaptConfig(
        split=args.train_split, geometry=args.geometry, input_cells=run.train.latent_shape[1],
        stem_kernel_cells=kernel, stem_linear=args.stem_blocks is None, stem_blocks=args.stem_blocks,
        model_kwargs=args.model_kwargs,
        stem_epochs=0.0 if args.geometry == "pixel_grid" and not args.stem_blocks else args.stem_epochs,
        epochs=args.distill_epochs, batch_size=args.batch_size, seed=args.seed,
    )  # fmt: skip
    model, _ = adapt_model(pixel, dataset=run.train, pictures=args.train_pictures, config=config, log=log)

    def fresh(pretrained: Any) -> Any:
        return create_latent_model(
            args.model, dataset=run.train, geometry=args.geometry, pretrained=pretrained, stem_kernel_cells=kernel,
            stem_bias=True, stem_padding="circular", stem_blocks=latent_config(model).stem_blocks,
            stem_hidden_channels=latent_config(model).stem_hidden_channels, **args.model_kwargs,
        )  # fmt: skip

    results["copied, stem random"] = run.accuracy(fresh(pixel), "latents")
    results["before fine-tuning"] = run.accuracy(model, "latents")
    log(f"{summarize(model)}\npixels {results['pixels']:.1f} %, adapted {results['before fine-tuning']:.1f} %")
    groups = parameter_groups(model, stem_lr_scale=args.stem_lr_scale)
    tuned = run.fit(model, args.epochs, lr=args.finetune_lr, on="latents", groups=groups, label="fine-tuning")
    results["fine-tuned"] = tuned
    torch.manual_seed(args.seed)
    results["from scratch"] = run.fit(fresh(False), args.epochs, lr=args.lr, on="latents", label="from scratch")
    save_latent_model(model, args.output / "model")
    attach_codec(args.output / "model", dataset=args.data)
    print(json.dumps(results))
    return results


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
