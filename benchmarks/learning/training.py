"""Augmentation, one training step for every arm, and its score. On CUDA a step is a graph, replayed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.learning.arms import ARMS, NETWORKS, Arm, MirroredStem, make_model
from benchmarks.learning.data import Prepared
from benchmarks.results import machine_facts
from walloc_data.adapters import parameter_groups
from walloc_data.codec import load_codec
from walloc_data.transforms import RandomHorizontalFlip

WARM_UP_STEPS = 3  # before a graph is captured: libraries choose their kernels, the optimizer makes its state
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
    """`prepared.array` as something to index with rows: in the accelerator's memory, else mapped from its file."""
    if device.type == "cpu":
        return prepared.array(kind, split)
    key = (device, prepared.folder, kind, split)
    if key not in _on_device:
        _on_device[key] = torch.from_numpy(np.array(prepared.array(kind, split))).to(device)
        torch.cuda.synchronize()  # other streams read it
    return _on_device[key]


def take(array: Any, rows: np.ndarray) -> Tensor:
    """Rows of what `array_on` gave, where it lies."""
    if isinstance(array, Tensor):
        return array[moved(torch.from_numpy(rows), array.device)]
    return torch.from_numpy(array[rows])


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for what its stream still has to do."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


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
        self.num_steps = 0
        self.graph: Any = None

    def step(self, rows: np.ndarray) -> Tensor:
        """Train on rows of the training array; returns the loss, a scalar tensor that the next step may overwrite."""
        mirrored = None if self.mirrored is None else take(self.mirrored, rows)
        x = self.augment(take(self.data, rows), mirrored, self.generator)
        target = take(self.labels, rows)
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
                group["lr"] = rate.fill_(float(group["lr"]))
        if not on_cuda or self.num_steps < WARM_UP_STEPS:
            loss = self._learn(x, target)
        else:
            if self.graph is None:
                self.x, self.target, self.graph = x, target, torch.cuda.CUDAGraph()
                # On a stream of its own: graphs captured on one share a scratch space of cuBLAS.
                with torch.cuda.graph(self.graph, stream=torch.cuda.Stream()):
                    self.loss = self._learn(self.x, self.target)
            else:
                self.x.copy_(x)
                self.target.copy_(target)
            self.graph.replay()
            loss = self.loss
        self.num_steps += 1
        self.scheduler.step_update(self.num_steps)
        return loss

    def _learn(self, x: Tensor, target: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=0.1)
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
    """One run: (model, arm, seed). Yields None after every step, so that several can take turns, then its result."""
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
    """What the results call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def accuracy(model: nn.Module, data: Any, labels: Tensor) -> float:
    """Top-1 in percent."""
    model.eval()
    device = labels.device
    batch = 256 if device.type == "cpu" else 1024
    correct = torch.zeros((), dtype=torch.long, device=device)
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
        for start in range(0, len(data), batch):
            rows = np.arange(start, min(start + batch, len(data)))
            correct += (model(take(data, rows)).argmax(1) == take(labels, rows)).sum()
    return 100 * int(correct) / len(data)
