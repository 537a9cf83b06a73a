"""Train a timm model on an encoded data set, with timm's own optimizer, scheduler, mixup and EMA.

    walloc-data encode imagenette/train latents --split train --size 160
    walloc-data encode imagenette/val   latents --split val   --size 160
    python examples/train_timm.py latents --model resnet18 --epochs 12 --output runs/r18
    torchrun --nproc-per-node 2 examples/train_timm.py latents --model resnet18 --epochs 12 --output runs/r18

To train from scratch for many epochs, store pictures larger than the network's input and crop them at random:

    walloc-data encode imagewoof/train latents --split train --size 192   # 24 x 24 cells; the same for val
    python examples/train_timm.py latents --model resnet18 --geometry all_stages --size-cells 16 --lr 4e-3 --amp \\
        --epochs 40

Small crops at first save time, and some networks score better on pictures larger than the crops (benchmarks/learning):

    walloc-data encode imagewoof/train latents --split train --size 320   # 40 x 40 cells; the same for val
    python examples/train_timm.py latents --model resnet18d --geometry skip_early --progressive-from 16 \
        --size-cells 24 --val-cells 32 --lr 4e-3 --amp --channels-last --epochs 36

To fine-tune a model that `walloc-data adapt` saved, or an earlier run:

    python examples/train_timm.py latents --init my-classifier --epochs 3 --lr 1e-4

The defaults are a recipe for training from scratch: random crops if the stored latents are larger than the network's
input, else shifts by two cells; flips, from stored mirrors or else by the codec's operator; a stem of two layers; label
smoothing, warm-up, a cosine schedule and an EMA of the weights; mixup and cutmix in the second half of runs of 80
or more epochs.

It also learns columns of several labels (binary cross-entropy; the score is mean average precision) and of numbers (the
score is the mean absolute error):

    python examples/train_timm.py latents --target attributes
    python examples/train_timm.py latents --target age --task numbers

After an interruption, the same command resumes from the last checkpoint and reaches the weights of an uninterrupted
run: everything random in a step depends on (seed, step, rank) alone. Arguments that differ from the saved run's are
printed if they may change (--epochs, --lr, --workers) and refused if not (--model).
"""

import hashlib
import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from timm_training.arguments import adopt, compare_arguments, fill_in_recipe, parse, plain
from timm_training.augmentation import Augmentation, side_of_epoch
from timm_training.network import check_sides, new_network, saved_network
from timm_training.tasks import evaluate, find_task
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from walloc_data import LatentDataset
from walloc_data.adapters import latent_config, load_latent_model, parameter_groups, save_latent_model, summarize
from walloc_data.errors import WallocDataError
from walloc_data.files import atomic_file
from walloc_data.serving import attach_codec
from walloc_data.serving.classifier import stored_view
from walloc_data.transforms import LatentOperators


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


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint that is there whole or not at all."""
    with atomic_file(path) as unfinished:
        torch.save(state, unfinished)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse(argv, description=__doc__)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    progress = Progress(enabled=rank == 0)

    shared = {"cache": args.cache, "seed": args.seed, "target": args.target}
    train = LatentDataset(args.data, split=args.train_split, shuffle=True, **shared)
    stored = max(train.record.latent_shape[1:]) if train.record.latent_shape is not None else 0
    task = find_task(train, kind=args.task)
    saved = None if args.init is None else load_latent_model(args.init, dataset=train)
    if saved is not None:
        adopt(args, latent_config(saved))
    fill_in_recipe(args, train, task=task.kind)
    if args.flip == "stored":
        train = LatentDataset(args.data, split=args.train_split, shuffle=True, mirror=True, **shared)
    val_split = train.manifest.held_out_split(args.val_split, context=args.data)
    val = LatentDataset(args.data, split=val_split, **shared)
    batches = train.loader(global_batch_size=args.global_batch_size, num_workers=args.workers, drop_last=True)
    val_batches = val.loader(global_batch_size=args.global_batch_size, pad=True)
    resized = args.val_cells != stored
    augment = Augmentation(args, train, stored_cells=stored).to(device)
    torch.manual_seed(args.seed)
    model = new_network(args, train, num_outputs=task.num_outputs, resized=resized)
    if saved is not None:
        model = saved_network(saved, model, log=progress.line)
    check_sides(model, {side_of_epoch(args, epoch) for epoch in range(args.epochs)})
    model = model.to(device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    operators = LatentOperators.load(args.data, spec=train.manifest.codec) if resized else None
    view = stored_view(latent_config(model), operators=operators).to(device)
    if stored:  # now, not after an epoch: not every size can be made of what is stored
        view(torch.zeros(1, *train.record.latent_shape, device=device))
    model.latent_config = replace(model.latent_config, task=task.kind)  # --task may say what the column does not
    summary = summarize(model)
    progress.line(str(summary))
    mixup = Mixup(args.mixup, args.cutmix, prob=1.0, mode="batch")
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
        changes = compare_arguments(checkpoint, state.get("arguments", {}), plain(args))
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        batches.load_state_dict(state["loader"])
        step, first_epoch, history = state["step"], state["epoch"], state["history"]
        scheduler.step_update(step)  # a function of the step and the arguments
        progress.line(
            f"resuming {checkpoint} at epoch {first_epoch}, step {step}" + (f"; {changes}" if changes else "")
        )
    trained: nn.Module = DistributedDataParallel(model) if world_size > 1 else model

    def save(epoch: int) -> None:
        if rank == 0:
            state = {
                "model": model.state_dict(),
                "ema": ema.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "arguments": plain(args),
                "loader": batches.state_dict(),
                "step": step,
                "epoch": epoch,
                "history": history,
            }
            save_atomically(state, checkpoint)

    def mixed(latents: Tensor, targets: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        soft = task.soften(targets, smoothing=args.smoothing)
        if (args.mixup or args.cutmix) and epoch >= args.mix_from * args.epochs:
            return task.mixed(mixup, latents, soft)
        return latents, soft

    autocast = torch.autocast(device.type, torch.bfloat16) if args.amp else nullcontext()
    for epoch in range(first_epoch, args.epochs):
        trained.train()
        batches.set_epoch(epoch)
        begun, seen, loss_sum = time.monotonic(), 0, torch.zeros((), device=device)
        for latents, given in batches:
            seed_step(args.seed, step, rank)
            targets = task.prepare(given).to(device, non_blocking=True)
            latents = augment(latents.to(device, non_blocking=True), side_of_epoch(args, epoch))
            inputs, soft = mixed(latents, targets, epoch)
            with autocast:
                loss = task.loss(trained(inputs), soft)
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
            rate = seen / (time.monotonic() - begun)
            progress.step(
                f"epoch {epoch} {seen}/{batches.num_samples}: loss {loss_sum / seen:.3f}, {rate:.0f} samples/s"
            )
            if args.checkpoint_steps and step % args.checkpoint_steps == 0 and batches.epoch == epoch:
                save(epoch)
        seconds = time.monotonic() - begun
        score, ema_score = (
            evaluate(task, scored, val_batches, device, view, autocast) for scored in (model, ema.module)
        )
        history.append(
            {
                "epoch": epoch,
                "loss": float(loss_sum / max(seen, 1)),
                task.score: score,
                f"ema_{task.score}": ema_score,
                "samples_per_s": seen / seconds,
                "seconds": seconds,
                "size_cells": side_of_epoch(args, epoch),
            }
        )
        progress.line(
            f"epoch {epoch}: loss {history[-1]['loss']:.3f}, validation {task.shown(score)} "
            f"(EMA {task.shown(ema_score)}), {history[-1]['samples_per_s']:.0f} samples/s"
        )
        save(epoch + 1)

    result = {
        "model": args.model,
        "geometry": summary.geometry,
        "input_shape": summary.input_shape,
        "num_parameters": summary.num_parameters,
        "num_macs": summary.num_macs,
        "codec": train.manifest.codec.name,
        "arguments": plain(args),
        "history": history,
    }
    if rank == 0:
        (args.output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        task.in_units_of_the_data(ema.module)
        save_latent_model(ema.module, args.output / "model")
        attach_codec(args.output / "model", dataset=args.data)  # so that it can meet pictures: walloc-data predict
        progress.line(f"final model: {args.output / 'model'}")
    if world_size > 1:
        dist.destroy_process_group()
    return result


if __name__ == "__main__":
    try:
        main()
    except WallocDataError as mistake:  # such as a column or a split that does not exist
        sys.exit(f"error: {mistake}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoint, if there is one")
