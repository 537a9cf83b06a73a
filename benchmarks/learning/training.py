"""Augmentation and training for every arm of `benchmarks.learning.run`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from benchmarks.learning.arms import ARMS, NETWORKS, Arm, MirroredStem, make_model
from benchmarks.learning.data import Prepared
from benchmarks.learning.steps import CapturedStep, accuracy, moved, smoothed_loss, take
from benchmarks.results import machine_facts
from walloc_data.adapters import parameter_groups
from walloc_data.codec import load_codec
from walloc_data.transforms import RandomHorizontalFlip

_on_device: dict[Any, Tensor] = {}


class Augment:
    """Shifts by up to a tenth of the side and, half of the time, a mirror: pixels exactly, latents as the arm says."""

    def __init__(self, arm: Arm, prepared: Prepared, *, model: nn.Module, device: torch.device) -> None:
        self.arm = arm
        self.stems = [module for module in model.modules() if isinstance(module, MirroredStem)]
        self.flip = RandomHorizontalFlip(prepared.operators.flip, p=1.0).to(device) if arm.flip == "fitted" else None
        self.codec = (
            load_codec(prepared.codec_folder(), decoder=False, device=device)[0] if arm.flip == "encoded" else None
        )

    def __call__(self, x: Tensor, mirrored: Tensor | None, generator: torch.Generator) -> Tensor:
        heads = moved(torch.rand(len(x), generator=generator) < 0.5, x.device)[:, None, None, None]
        for stem in self.stems:
            if stem.reversed_rows is None:
                stem.reversed_rows = heads
            else:
                stem.reversed_rows.copy_(heads)  # where a captured graph reads it
        if self.arm.flip in ("exact", "naive", "encoded", "stem"):
            x = torch.where(heads, x.flip(-1), x)
        elif self.arm.flip == "stored" and mirrored is not None:
            x = torch.where(heads, mirrored, x)
        elif self.flip is not None:
            x = torch.where(heads, self.flip(x), x.float())
        most = x.shape[-1] // 10
        down, right = moved(torch.randint(-most, most + 1, (2, len(x)), generator=generator), x.device)
        rows = (torch.arange(x.shape[2], device=x.device) - down[:, None]).clamp(0, x.shape[2] - 1)
        columns = (torch.arange(x.shape[3], device=x.device) - right[:, None]).clamp(0, x.shape[3] - 1)
        n, c = torch.arange(len(x), device=x.device)[:, None, None, None], torch.arange(x.shape[1], device=x.device)
        x = x[n, c[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]  # edges repeat
        return x if self.codec is None else self.codec.encode(x)


def array_on(device: torch.device, prepared: Prepared, kind: str, split: str) -> Any:
    """Return `prepared.array` to be indexed with rows: in the accelerator's memory, else mapped from its file."""
    if device.type == "cpu":
        return prepared.array(kind, split)
    key = (device, prepared.folder, kind, split)
    if key not in _on_device:
        _on_device[key] = torch.from_numpy(np.array(prepared.array(kind, split))).to(device)
        torch.cuda.synchronize()  # other streams read it
    return _on_device[key]


class Trainer:
    """An arm's model, optimizer and augmentation: `step` trains on a batch."""

    def __init__(
        self,
        kind: str,
        arm: Arm,
        prepared: Prepared,
        *,
        patch_cells: int,
        seed: int,
        epochs: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.device = device
        self.data = array_on(device, prepared, "pixels" if arm.flip == "encoded" else arm.array, "train")
        self.mirrored = array_on(device, prepared, "mirrored", "train") if arm.flip == "stored" else None
        self.labels = prepared.labels["train"].to(device)
        self.steps_per_epoch = len(self.data) // batch_size
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        side_px = prepared.array(arm.array, "val").shape[-1]
        model: Any = make_model(kind, arm, prepared, side_px=side_px, patch_cells=patch_cells)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.augment = Augment(arm, prepared, model=model, device=device)
        groups: Any = parameter_groups(model, weight_decay=0.05) if arm.array == "latents" else model
        on_cuda = {"fused": True, "capturable": True} if device.type == "cuda" else {}
        self.optimizer: Any = create_optimizer_v2(
            groups, opt="adamw", lr=NETWORKS[kind].lr, weight_decay=0.05, **on_cuda
        )
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=epochs,
            warmup_epochs=1,
            warmup_lr=1e-5,
            step_on_epochs=False,
            updates_per_epoch=self.steps_per_epoch,
        )
        # Rates in tensors: a captured graph reads them anew.
        self.rates = [torch.tensor(group["lr"], device=device) for group in self.optimizer.param_groups]
        self.captured = CapturedStep(self._learn, capture=device.type == "cuda")

    def step(self, rows: np.ndarray) -> Tensor:
        """Train on rows of the training array; return the loss, a scalar tensor that the next step may overwrite."""
        mirrored = None if self.mirrored is None else take(self.mirrored, rows)
        x = self.augment(take(self.data, rows), mirrored, self.generator)
        target = take(self.labels, rows)
        if self.device.type == "cuda":
            for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
                group["lr"] = rate.fill_(float(group["lr"]))
        loss = self.captured(x, target)
        self.scheduler.step_update(self.captured.num_steps)
        return loss

    def _learn(self, x: Tensor, target: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = smoothed_loss(self.model, x, target)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()


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
) -> Iterator[dict[str, Any] | None]:
    """Train one run. Yields None after every step, so that several can take turns, then its result."""
    arm = ARMS[arm_name]
    trainer = Trainer(
        kind,
        arm,
        prepared,
        patch_cells=patch_cells,
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        device=device,
    )
    held_out, labels = array_on(device, prepared, arm.array, "val"), prepared.labels["val"].to(device)
    history, steps = [], trainer.steps_per_epoch
    for _ in range(epochs):
        trainer.model.train()
        order = torch.randperm(len(trainer.data), generator=trainer.generator).numpy()
        loss_sum = torch.zeros((), device=device)
        for start in range(0, steps * batch_size, batch_size):
            loss_sum += trainer.step(np.sort(order[start : start + batch_size]))
            yield None
        score = accuracy(trainer.model, held_out, labels)
        history.append({"loss": float(loss_sum) / max(1, steps), "accuracy": score})
    machine = machine_facts() | {"device": device_name(device), "threads": torch.get_num_threads()}
    yield {
        "model": kind,
        "arm": arm_name,
        "seed": seed,
        "size_px": prepared.manifest.settings.size_px,
        "patch_cells": patch_cells,
        "lr": NETWORKS[kind].lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "num_macs": trainer.model.num_macs,
        "num_parameters": sum(p.numel() for p in trainer.model.parameters()),
        "stored_bytes": prepared.stored_bytes[{"stored": "mirrored", "encoded": "pixels"}.get(arm.flip, arm.array)],
        "num_samples": len(trainer.data),
        "accuracy": history[-1]["accuracy"],
        "history": history,
        "codec": prepared.manifest.codec.name,
        "machine": machine,
    }


def device_name(device: torch.device) -> str:
    """Return what the results call a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
