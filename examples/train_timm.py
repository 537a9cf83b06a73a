"""Train a timm model on an encoded data set, with timm's own optimizer, scheduler, mixup and EMA.

    walloc-data encode imagenette/train latents --split train --size 160
    walloc-data encode imagenette/val   latents --split val   --size 160
    python examples/train_timm.py latents --model resnet18 --epochs 12 --output runs/r18
    torchrun --nproc-per-node 2 examples/train_timm.py latents --model resnet18 --epochs 12 --output runs/r18

From scratch and for long, store pictures larger than the network takes them, to be cropped and shrunk at random:

    walloc-data encode imagewoof/train latents --split train --size 192   # 24 x 24 cells; the same for val
    python examples/train_timm.py latents --model resnet18 --geometry all_stages --size-cells 16 --lr 4e-3 --amp \\
        --epochs 40

The defaults are a recipe for training from scratch: random crops wherever latents are stored larger than the network
takes them, else shifts by two cells; flips, by stored mirrors or else by the codec's operator; a first layer in two
steps; label smoothing, warm-up and cosine, an average of the weights; mixup and cutmix in the second half of 80 epochs
or more.

Run again with the same command after any interruption: it goes on from the last checkpoint, to the same weights as an
uninterrupted run. Everything random in a step follows from (seed, step, rank), so nothing random has to be saved.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from walloc_data import LatentDataset, create_latent_model
from walloc_data.adapters import parameter_groups, save_latent_model, summarize
from walloc_data.errors import StorageError
from walloc_data.files import atomic_file
from walloc_data.serving import attach_codec
from walloc_data.transforms import LatentOperators, RandomHorizontalFlip, RandomResizedCrop, RandomTranslate, Resize

LONG_EPOCHS = 80  # from here on mixed pictures are the default: shorter runs are not short of pictures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder or URL that walloc-data encode wrote")
    parser.add_argument("--output", type=Path, default=Path("runs/latent"), help="checkpoints, log and final model")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="a timm model")
    parser.add_argument("--model-kwargs", type=json.loads, default={}, help="JSON for timm, e.g. '{\"depth\": 6}'")
    parser.add_argument("--geometry", choices=("skip_early", "all_stages", "pixel_grid"))
    parser.add_argument("--normalization", choices=("standard", "expand"), default="standard")
    parser.add_argument("--stem-hidden-channels", type=int, default=48, help="between two layers; 0: a stem of one")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--val-split", help="default: the first there is of val, validation, valid, dev, test")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--global-batch-size", type=int, default=128, help="over all processes")
    parser.add_argument("--opt", default="adamw")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--layer-decay", type=float)
    parser.add_argument("--clip-grad", type=float, default=1.0)
    parser.add_argument("--sched", default="cosine")
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--mixup", type=float, help="alpha; 0 is off (default: 0.2 from 80 epochs on)")
    parser.add_argument("--cutmix", type=float, help="alpha; 0 is off (default: 1 from 80 epochs on)")
    parser.add_argument("--ema-decay", type=float, default=0.99)
    parser.add_argument("--mix-from", type=float, default=0.5, help="share of the epochs before mixup and cutmix begin")
    parser.add_argument(
        "--flip",
        choices=("auto", "none", "naive", "fitted", "stored"),
        default="auto",
        help="auto: stored mirrors where there are any, else by the codec's operator where it has one",
    )
    parser.add_argument(
        "--shift-cells",
        type=int,
        help="random shift by up to this many cells (default: 2 without random crops, else 0)",
    )
    parser.add_argument(
        "--size-cells", type=int, help="side that the network takes; default: that of the stored latents"
    )
    parser.add_argument(
        "--crops",
        choices=("auto", "random", "whole"),
        default="auto",
        help="to size-cells: RandomResizedCrop, or whole latents shrunk (default: random where it is less than stored)",
    )
    parser.add_argument("--crop-scale", type=float, nargs=2, default=(0.35, 1.0), metavar=("LOW", "HIGH"))
    parser.add_argument(
        "--progressive-from",
        type=int,
        metavar="CELLS",
        help="begin with random crops of this side, and grow to size-cells over the first two thirds of the epochs",
    )
    parser.add_argument("--cache", choices=("shards", "array"), default="array")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-steps", type=int, default=0, help="also save every so many steps")
    return parser.parse_args(argv)


class Progress:
    """One live line on a terminal; a line an epoch elsewhere."""

    def __init__(self, *, enabled: bool) -> None:
        self.live = enabled and sys.stderr.isatty()
        self.enabled = enabled

    def step(self, text: str) -> None:
        if self.live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        if self.enabled:
            print(("\r\x1b[K" if self.live else "") + text, file=sys.stderr, flush=True)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make everything random in a step a function of (seed, step, rank): mixup uses numpy, drop-path torch."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=4).digest()
    np.random.seed(int.from_bytes(digest, "little"))  # timm's Mixup draws from the global generator
    torch.manual_seed(int.from_bytes(digest, "little"))


def evaluate(model: nn.Module, loader: Any, device: torch.device, view: nn.Module) -> float:
    """Score top-1 accuracy in percent, exact for any number of ranks: padding is masked, buffers are rank 0's."""
    model.eval()
    if dist.is_initialized():
        for buffer in model.buffers():  # each rank's batch norms saw other batches
            dist.broadcast(buffer, src=0)
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.inference_mode():
        for latents, labels, valid in loader:
            correct = model(view(latents.to(device))).argmax(1).cpu() == labels
            sums += torch.tensor([float((correct & valid).sum()), float(valid.sum())], dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(sums)
    return float(100 * sums[0] / sums[1])


def fill_in_recipe(args: argparse.Namespace, train: LatentDataset) -> None:
    """Decide what the arguments leave open: by the length of training, and by what is stored."""
    long = args.epochs >= LONG_EPOCHS
    args.mixup = 0.2 * long if args.mixup is None else args.mixup
    args.cutmix = 1.0 * long if args.cutmix is None else args.cutmix
    shape = train.record.latent_shape
    stored = max(shape[1:]) if shape is not None else 0
    args.size_cells = stored if args.size_cells is None else args.size_cells
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


def side_of_epoch(args: argparse.Namespace, epoch: int) -> int:
    """Return the cells a side that an epoch trains on: growing evenly over the first two thirds, then size_cells."""
    if args.progressive_from is None:
        return int(args.size_cells)
    share = min(1.0, epoch / max(1, 2 * args.epochs / 3))
    return round(args.progressive_from + share * (args.size_cells - args.progressive_from))


class Augmentation(nn.Module):
    """Crops, shifts and flips of whole batches, on their device. Stored mirrors are the data set's own affair."""

    def __init__(self, args: argparse.Namespace, train: LatentDataset, *, stored_cells: int) -> None:
        super().__init__()
        operators = None
        if args.flip == "fitted" or args.size_cells != stored_cells:
            operators = LatentOperators.load(args.data, spec=train.manifest.codec)
        self.crops = nn.ModuleDict()
        self.whole: nn.Module = nn.Identity()
        flips = args.flip == "fitted"
        if args.crops == "random":
            for side in sorted({side_of_epoch(args, epoch) for epoch in range(args.epochs)}):
                self.crops[str(side)] = RandomResizedCrop(
                    side, operators=operators, scale=tuple(args.crop_scale), flip_p=0.5 * flips
                )
        elif args.size_cells != stored_cells:
            # Of the only crop there is: the whole, in the same pass as its flip.
            self.whole = RandomResizedCrop(
                args.size_cells, operators=operators, scale=(1, 1), ratio=(1, 1), flip_p=0.5 * flips
            )
        elif operators is not None:
            self.whole = RandomHorizontalFlip(operators.flip)
        self.shift = RandomTranslate(args.shift_cells, fill=train.statistics.mean)
        self.naive = RandomHorizontalFlip() if args.flip == "naive" else nn.Identity()

    def forward(self, latents: Tensor, side: int) -> Tensor:
        latents = self.crops[str(side)](latents) if len(self.crops) else self.whole(latents)
        result: Tensor = self.naive(self.shift(latents) if self.shift.max_cells else latents)
        return result


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint that is there whole or not at all."""
    with atomic_file(path) as unfinished:
        torch.save(state, unfinished)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    progress = Progress(enabled=rank == 0)

    shared = {"cache": args.cache, "seed": args.seed}
    train = LatentDataset(args.data, split=args.train_split, shuffle=True, **shared)
    stored = max(train.record.latent_shape[1:]) if train.record.latent_shape is not None else 0
    fill_in_recipe(args, train)
    if args.flip == "stored":
        train = LatentDataset(args.data, split=args.train_split, shuffle=True, mirror=True, **shared)
    val_split = train.manifest.held_out_split(args.val_split, context=args.data)
    val = LatentDataset(args.data, split=val_split, **shared)
    batches = train.loader(global_batch_size=args.global_batch_size, num_workers=args.workers, drop_last=True)
    val_batches = val.loader(global_batch_size=args.global_batch_size, pad=True)
    resized = args.size_cells != stored
    augment = Augmentation(args, train, stored_cells=stored).to(device)
    view: nn.Module = nn.Identity()
    if resized:
        view = Resize(args.size_cells, operators=LatentOperators.load(args.data, spec=train.manifest.codec)).to(device)

    torch.manual_seed(args.seed)
    model = create_latent_model(
        args.model,
        dataset=train,
        geometry=args.geometry,
        normalization=args.normalization,
        stem_hidden_channels=args.stem_hidden_channels or None,
        input_shape=(train.manifest.codec.latent_dim, args.size_cells, args.size_cells) if resized else None,
        view="resize" if resized else "whole",
        **args.model_kwargs,
    ).to(device)
    num_classes = model.num_classes
    summary = summarize(model)
    progress.line(str(summary))
    mixup = Mixup(
        args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=num_classes, prob=1.0, mode="batch"
    )
    criterion = SoftTargetCrossEntropy()
    optimizer = create_optimizer_v2(
        parameter_groups(model, weight_decay=args.weight_decay, layer_decay=args.layer_decay), opt=args.opt, lr=args.lr
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=args.sched,
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=args.lr / 100,
        min_lr=args.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=len(batches),
    )
    ema = ModelEmaV3(model, decay=args.ema_decay, use_warmup=True)
    step, first_epoch, history = 0, 0, []

    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        batches.load_state_dict(state["loader"])
        step, first_epoch, history = state["step"], state["epoch"], state["history"]
        progress.line(f"resuming {checkpoint} at epoch {first_epoch}, step {step}")
    trained: nn.Module = DistributedDataParallel(model) if world_size > 1 else model

    def save(epoch: int) -> None:
        if rank == 0:
            state = {
                "model": model.state_dict(),
                "ema": ema.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "loader": batches.state_dict(),
                "step": step,
                "epoch": epoch,
                "history": history,
            }
            save_atomically(state, checkpoint)

    def targets(latents: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        if (args.mixup or args.cutmix) and epoch >= args.mix_from * args.epochs:
            return mixup(latents.float(), labels)  # type: ignore[no-any-return]
        off = args.smoothing / num_classes
        return latents, torch.full((len(labels), num_classes), off, device=device).scatter_(
            1, labels[:, None], 1 - args.smoothing + off
        )

    autocast = torch.autocast(device.type, torch.bfloat16) if args.amp else nullcontext()
    for epoch in range(first_epoch, args.epochs):
        trained.train()
        batches.set_epoch(epoch)
        begun, seen, loss_sum, correct = time.monotonic(), 0, torch.zeros((), device=device), 0.0
        for latents, labels in batches:
            seed_step(args.seed, step, rank)
            latents, labels = latents.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            inputs, soft = targets(augment(latents, side_of_epoch(args, epoch)), labels, epoch)
            with autocast:
                logits = trained(inputs)
                loss = criterion(logits, soft)
            optimizer.zero_grad()
            loss.backward()
            if args.clip_grad:
                nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)
            optimizer.step()
            step += 1
            scheduler.step_update(step)
            ema.update(model, step=step)
            seen += args.global_batch_size
            loss_sum += loss.detach() * args.global_batch_size
            correct += float((logits.argmax(1) == soft.argmax(1)).sum()) * world_size
            rate = seen / (time.monotonic() - begun)
            progress.step(
                f"epoch {epoch} {seen}/{batches.num_samples}: loss {loss_sum / seen:.3f}, "
                f"accuracy {100 * correct / seen:.1f} % (training, as augmented), {rate:.0f} samples/s"
            )
            if args.checkpoint_steps and step % args.checkpoint_steps == 0 and batches.epoch == epoch:
                save(epoch)
        seconds = time.monotonic() - begun
        top1, ema_top1 = (evaluate(scored, val_batches, device, view) for scored in (model, ema.module))
        history.append(
            {
                "epoch": epoch,
                "loss": float(loss_sum / max(seen, 1)),
                "top1": top1,
                "ema_top1": ema_top1,
                "samples_per_s": seen / seconds,
                "seconds": seconds,
                "size_cells": side_of_epoch(args, epoch),
            }
        )
        progress.line(
            f"epoch {epoch}: loss {history[-1]['loss']:.3f}, validation {top1:.1f} % (EMA {ema_top1:.1f} %), "
            f"{history[-1]['samples_per_s']:.0f} samples/s"
        )
        save(epoch + 1)

    result = {
        "model": args.model,
        "geometry": summary.geometry,
        "input_shape": summary.input_shape,
        "num_parameters": summary.num_parameters,
        "num_macs": summary.num_macs,
        "codec": train.manifest.codec.name,
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "data"},
        "history": history,
    }
    if rank == 0:
        (args.output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        save_latent_model(ema.module, args.output / "model")
        attach_codec(args.output / "model", dataset=args.data)  # so that it can meet pictures: walloc-data predict
        progress.line(f"final model: {args.output / 'model'}")
    if world_size > 1:
        dist.destroy_process_group()
    return result


if __name__ == "__main__":
    main()
