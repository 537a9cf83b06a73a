"""One run of `benchmarks.learning.frontier`: model, optimizer, an epoch at a time, a checkpoint after each."""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import Lookahead
from torch import Tensor

from benchmarks.learning.frontier_plot import SIZES, cells_at
from benchmarks.learning.frontier_views import (
    ARMS,
    PX_A_CELL,
    Data,
    augmentation,
    in_parts,
    trying_no_kernels,
    views,
)
from benchmarks.learning.matmul_gradients import with_matmul_gradients
from benchmarks.learning.pixel_stem import PixelConv2d, replace_module
from benchmarks.learning.steps import CapturedStep, accuracy, smoothed_loss
from walloc_data.adapters import create_latent_model, stem_of, summarize

LOOKAHEAD_STEPS = 6  # Ranger's, as fastai's records were trained
KEY = ("arm", "model", "model_kwargs", "seed", "epochs", "lr", "size_px", "cells", "batch_size", "weight_decay")
VIEWS = sorted({cells for sizes in SIZES.values() for cells in sizes})  # that a trained network is scored on


def key_of(line: dict[str, Any]) -> str:
    """Return what tells runs apart, as text."""
    return json.dumps([*(line.get(name) for name in KEY), *line.get("cells_before", [])], sort_keys=True)


class Run:
    """One arm, one seed: model, optimizer, graph."""

    def __init__(self, arm: str, data: Data, args: argparse.Namespace, *, seed: int, epochs: int, lr: float) -> None:
        self.arm, self.data, self.seed, self.epochs, self.args, self.lr = arm, data, seed, epochs, args, lr
        self.device = data.x["train"].device
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        model: Any = create_latent_model(
            args.model,
            codec=data.manifest.codec,
            statistics=data.manifest.splits["train"].statistics,
            input_shape=(data.manifest.codec.latent_dim, args.cells, args.cells),
            num_classes=10,
            **args.model_kwargs,
        )
        self.macs = summarize(model).num_macs
        if ARMS[arm] != "latents":
            first = stem_of(model)
            pixels = PixelConv2d(first, cell_px=PX_A_CELL[ARMS[arm]])
            self.macs += args.cells**2 * (pixels.weight.numel() - first.weight.numel())
            replace_module(model, model.pretrained_cfg["first_conv"], pixels)
        if args.matmul_gradients:
            with_matmul_gradients(model)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        cuda = self.device.type == "cuda"
        self.inner = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=torch.tensor(lr, device=self.device) if cuda else lr,
            betas=(0.95, 0.99),
            eps=1e-6,
            fused=True,
            capturable=cuda,
        )
        self.lookahead = Lookahead(self.inner, alpha=0.5, k=LOOKAHEAD_STEPS)
        self.sizes = [*args.cells_before, args.cells]
        self.augment = {cells: augmentation(arm, data, cells=cells) for cells in self.sizes}
        self.steps = len(data.x["train"]) // args.batch_size
        self.stream = torch.cuda.Stream() if cuda else None
        self.captured = {cells: CapturedStep(self.learn, capture=args.graphs) for cells in self.sizes}
        self.count = 0
        self.seconds = {"augment": 0.0, "train": 0.0}
        self.losses: list[float] = []
        self.top1_by_epoch: dict[int, float] = {}

    def facts(self) -> dict[str, Any]:
        """Return what the run is, as the first fields of its line of results."""
        return {
            "arm": self.arm,
            "model": self.args.model,
            "model_kwargs": self.args.model_kwargs,
            "seed": self.seed,
            "epochs": self.epochs,
            "lr": self.lr,
            "size_px": self.data.size_px,
            "cells": self.args.cells,
            **({"cells_before": self.args.cells_before} if self.args.cells_before else {}),
            "batch_size": self.args.batch_size,
            "weight_decay": self.args.weight_decay,
        }

    def rate(self) -> float:
        """Return the rate of this step: warm-up over a tenth, flat, cosine over the last 40 per cent."""
        total = self.epochs * self.steps
        done = self.count / total
        if done < 0.1:
            return float(self.lr * max(done, 0.5 / total) * 10)
        return float(self.lr * (1.0 if done < 0.6 else 0.5 + 0.5 * np.cos(np.pi * (done - 0.6) / 0.4)))

    @property
    def cells(self) -> int:
        """Side of this epoch's inputs."""
        return cells_at(len(self.losses), epochs=self.epochs, sizes=self.sizes)

    def begin_epoch(self) -> None:
        """Shuffle and augment a whole epoch."""
        begun = time.monotonic()
        augment = self.augment[self.cells]
        order = torch.randperm(len(self.data.x["train"]), generator=self.generator).to(self.device)
        with trying_no_kernels(), torch.no_grad():
            self.epoch_x = in_parts(self.data.x["train"], lambda part: augment(part, self.generator), rows=order)
        self.epoch_labels = self.data.labels["train"][order]
        self.loss_sum = torch.zeros((), device=self.device)
        self.model.train()
        self.seconds["augment"] += time.monotonic() - begun

    def step(self, i: int) -> None:
        """Train on the epoch's i-th batch."""
        for group in self.inner.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.rate())
            else:
                group["lr"] = self.rate()
        rows = slice(i * self.args.batch_size, (i + 1) * self.args.batch_size)
        x, target = self.epoch_x[rows], self.epoch_labels[rows]
        loss = self.captured[self.cells](x, target)
        self.count += 1
        if self.count % LOOKAHEAD_STEPS == 0:
            self.lookahead.sync_lookahead()
        self.loss_sum += loss

    def learn(self, x: Tensor, target: Tensor) -> Tensor:
        """Take one step of the optimizer; return the loss."""
        self.inner.zero_grad(set_to_none=True)
        loss = smoothed_loss(self.model, x.float(), target)
        loss.backward()
        self.inner.step()
        return loss.detach()

    def end_epoch(self) -> None:
        """Note the loss; drop the epoch's batches."""
        self.losses.append(float(self.loss_sum) / max(1, self.steps))
        del self.epoch_x, self.epoch_labels

    def accuracy(self, x: Tensor) -> float:
        """Score validation pictures: top-1 in percent."""
        with trying_no_kernels():
            return accuracy(self.model, x, self.data.labels["val"])

    def result(self, *, seconds: float, together: int) -> dict[str, Any]:
        """Score the trained network on every view; return its line of results."""
        top1 = {cells: self.accuracy(x) for cells, x in views(self.data, sorted({*VIEWS, self.args.cells})).items()}
        return self.facts() | {
            "top1": top1[self.args.cells],
            "top1_by_cells": top1,
            "top1_by_epoch": self.top1_by_epoch,
            "loss": self.losses,
            "num_macs": self.macs,
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
            "num_samples": len(self.data.x["train"]),
            "num_val": len(self.data.x["val"]),
            "seconds": seconds,  # of all that were trained together, validation left out
            "seconds_by_part": self.seconds,
            "together": together,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def path(self, folder: Path, suffix: str) -> Path:
        """Return where this run's checkpoint or weights lie."""
        digest = hashlib.sha256(key_of(self.facts()).encode()).hexdigest()[:12]
        return folder / f"{self.arm}-seed{self.seed}-{digest}{suffix}"

    def save(self, folder: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.inner.state_dict(),
            "generator": self.generator.get_state(),
            "count": self.count,
            "seconds": self.seconds,
            "losses": self.losses,
            "top1_by_epoch": self.top1_by_epoch,
        }
        path = self.path(folder, ".pt")
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def resume(self, folder: Path) -> int:
        """Go on from the checkpoint, if there is one; return the epochs done."""
        path = self.path(folder, ".pt")
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.inner.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.count, self.seconds, self.losses = state["count"], state["seconds"], state["losses"]
        self.top1_by_epoch = state["top1_by_epoch"]
        return len(self.losses)


def train_together(runs: list[Run], *, deadline: float, checkpoints: Path) -> list[dict[str, Any]] | None:
    """Train runs of one arm in turns, a step each on streams of their own; None where the deadline passed."""
    device, epochs, args = runs[0].device, runs[0].epochs, runs[0].args
    done = runs[0].resume(checkpoints) if len(runs) == 1 else 0  # several lose at most the minutes of one call
    seconds = sum(runs[0].seconds.values())
    held_out = views(runs[0].data, [args.cells])[args.cells]
    for epoch in range(done, epochs):
        begun = time.monotonic()
        for run in runs:
            run.begin_epoch()
        if device.type == "cuda":
            torch.cuda.synchronize()
        augmented = time.monotonic()
        for i in range(runs[0].steps):
            for run in runs:
                with torch.cuda.stream(run.stream):
                    run.step(i)
            if i % 16 == 0 and time.monotonic() > deadline:
                return None
        for run in runs:
            with torch.cuda.stream(run.stream):
                run.end_epoch()
        if device.type == "cuda":
            torch.cuda.synchronize()
        ended = time.monotonic()
        seconds += ended - begun
        text = ""
        for run in runs:
            run.seconds["train"] += ended - augmented
            if args.validate_every and (epoch + 1) % args.validate_every == 0:
                run.top1_by_epoch[epoch + 1] = run.accuracy(held_out)
                text += f", {run.top1_by_epoch[epoch + 1]:.2f} %"
        if len(runs) == 1:
            runs[0].save(checkpoints)
        print(f"  epoch {epoch}: loss {runs[0].losses[-1]:.3f}, {seconds:.1f} s{text}", flush=True)
    results = [run.result(seconds=seconds, together=len(runs)) for run in runs]
    for run in runs:
        run.path(checkpoints, ".pt").unlink(missing_ok=True)
        if args.keep_weights:
            checkpoints.mkdir(parents=True, exist_ok=True)
            torch.save(run.model.state_dict(), run.path(checkpoints, ".weights.pt"))
    return results
