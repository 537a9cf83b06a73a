"""Tasks of `train_timm.py`, by the target column: one class of several, several labels, or numbers."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F

from walloc_data import LatentDataset


@dataclass(frozen=True)
class Task:
    """A target column as a loss and a score.

    Attributes:
        kind: "classes", "labels" or "numbers".
        num_outputs: of the model.
        mean, std: of numbers, (num_outputs,). The model learns them in these units; see `in_units_of_the_data`.
    """

    kind: str
    num_outputs: int
    mean: Tensor = field(default_factory=lambda: torch.zeros(1))
    std: Tensor = field(default_factory=lambda: torch.ones(1))

    @property
    def score(self) -> str:
        """Return the name of what validation measures: accuracy, mean average precision, mean absolute error."""
        return {"classes": "top1", "labels": "map", "numbers": "mae"}[self.kind]

    def shown(self, score: float) -> str:
        return f"{self.score} {score:.4g}" + ("" if self.kind == "numbers" else " %")

    def prepare(self, targets: Any) -> Tensor:
        """Return what a batch's targets are to this task: (B,) int64 of classes, else (B, num_outputs) float32."""
        if self.kind == "classes":
            return targets.long()
        if isinstance(targets, list):  # the numbers of the labels that a sample has
            rows = [i for i, labels in enumerate(targets) for _ in labels or ()]
            several = torch.zeros(len(targets), self.num_outputs)
            several[rows, [label for labels in targets for label in labels or ()]] = 1
            return several
        return targets.float().reshape(len(targets), self.num_outputs)

    def soften(self, targets: Tensor, *, smoothing: float) -> Tensor:
        """Return what the loss compares with, (B, num_outputs)."""
        if self.kind == "numbers":
            return (targets - self.mean.to(targets.device)) / self.std.to(targets.device)
        if self.kind == "classes":
            targets = F.one_hot(targets, self.num_outputs).float()
        return targets * (1 - smoothing) + smoothing / (self.num_outputs if self.kind == "classes" else 2)

    def mixed(self, mixup: Mixup, latents: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch with itself in reverse, as timm does, for soft targets of any kind."""
        latents = latents.float()
        share = mixup._mix_batch(latents)  # in place
        return latents, share * targets + (1 - share) * targets.flip(0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss; targets that are NaN, which the data set does not have, count nothing."""
        if self.kind == "classes":
            return -(targets * outputs.log_softmax(-1)).sum(-1).mean()
        known = ~targets.isnan()
        given = targets.where(known, 0)
        if self.kind == "labels":
            losses = F.binary_cross_entropy_with_logits(outputs, given, reduction="none")
        else:
            losses = F.smooth_l1_loss(outputs, given, reduction="none")
        return (losses * known).sum() / known.sum().clamp_min(1)

    def in_units_of_the_data(self, model: Any) -> None:
        """Make a model of numbers give them as the data set has them: the scale goes into its last layer."""
        if self.kind != "numbers":
            return
        last = model.get_classifier()
        with torch.no_grad():
            std = self.std.to(last.weight.device)
            last.weight *= std.reshape(-1, *[1] * (last.weight.ndim - 1))
            last.bias.copy_(last.bias * std + self.mean.to(last.weight.device))


def find_task(data: LatentDataset, *, kind: str = "auto") -> Task:
    """Return the task that a data set's target is, or is said to be.

    Raises:
        SystemExit: the column does not say, or does not fit.
    """
    target = data.form.target or "label"
    dtype, shape = data.column_form(target)
    names = data.class_names if target == "label" else data.column_classes.get(target)
    several = len(shape) == 1 or dtype == "list"
    if kind == "auto":
        if several:
            kind = "numbers" if dtype.startswith("float") else "labels"
        elif names is not None:
            kind = "classes"
        elif dtype == "bool":
            kind = "labels"
        elif dtype.startswith("float"):
            kind = "numbers"
        else:
            raise SystemExit(f"--target {target}: {dtype} without class names: say --task classes or --task numbers")
    if len(shape) > 1 or (dtype == "list" and (kind != "labels" or names is None)):
        what = "text, or lists of no class names" if dtype == "list" else f"arrays of {shape}"
        raise SystemExit(f"--target {target} holds {what}, which are no {kind}")
    if kind == "classes":
        if several or dtype.startswith("float"):
            raise SystemExit(f"--target {target}: {dtype} {shape} with no class for some samples is not --task classes")
        labels = np.asarray(data.to_arrow()[target].fill_null(-1))
        if labels.min(initial=0) < 0:
            raise SystemExit(f"--target {target}: {(labels < 0).sum()} samples have no class: learn another column")
        return Task(kind, int(labels.max()) + 1 if names is None else len(names))
    num_outputs = len(names) if dtype == "list" and names is not None else shape[0] if several else 1
    if kind == "labels":
        return Task(kind, num_outputs)
    column = data.to_arrow()[target].drop_null()
    values = torch.tensor(column.to_pylist(), dtype=torch.float64).reshape(len(column), num_outputs)
    std = values.std(0, correction=0)
    return Task(kind, num_outputs, values.mean(0).float(), std.where(std > 0, 1).float())


@torch.inference_mode()
def evaluate(
    task: Task,
    model: nn.Module,
    loader: Any,
    device: torch.device,
    view: nn.Module,
    autocast: AbstractContextManager[Any],
) -> float:
    """Score a model, exactly for any number of ranks: padding is masked, buffers are rank 0's."""
    model.eval()
    if dist.is_initialized():
        for buffer in model.buffers():  # each rank's batch norms saw other batches
            dist.broadcast(buffer, src=0)
    sums = torch.zeros(2, dtype=torch.float64)
    kept: list[tuple[Tensor, Tensor]] = []
    for latents, given, valid in loader:
        seen = view(latents.to(device))  # integers, which autocast would round
        with autocast:
            outputs = model(seen).float().cpu()
        targets = task.prepare(given)
        if task.kind == "classes":
            correct = outputs.argmax(1) == targets
            sums += torch.tensor([float((correct & valid).sum()), float(valid.sum())], dtype=torch.float64)
        elif task.kind == "numbers":
            error = (outputs * task.std + task.mean - targets).abs()[valid]
            known = ~error.isnan()
            sums += torch.tensor([float(error[known].sum()), float(known.sum())], dtype=torch.float64)
        else:
            kept.append((outputs[valid], targets[valid]))
    if task.kind == "labels":
        return 100 * mean_average_precision(*_of_all_ranks(kept))
    if dist.is_initialized():
        dist.all_reduce(sums)
    return float((100 if task.kind == "classes" else 1) * sums[0] / sums[1])


def _of_all_ranks(kept: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    mine = tuple(map(torch.cat, zip(*kept, strict=True)))
    found = [mine]
    if dist.is_initialized():
        found = [mine] * dist.get_world_size()
        dist.all_gather_object(found, mine)
    outputs, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    return outputs, targets


def mean_average_precision(outputs: Tensor, targets: Tensor) -> float:
    """Average over labels the precision at each of a label's samples, best first; NaN targets are left out.

    Args:
        outputs: (n, K) scores.
        targets: (n, K) of 0 and 1. Labels that no sample has are left out.
    """
    found = []
    for scores, truth in zip(outputs.T, targets.T, strict=True):
        known = ~truth.isnan()
        scores, truth = scores[known], truth[known].double()
        if not truth.sum():
            continue
        order = scores.argsort(descending=True)
        ends = torch.cat([scores[order].diff() != 0, torch.ones(1, dtype=torch.bool)])  # of equal scores
        hits, seen = truth[order].cumsum(0)[ends], torch.arange(1, len(order) + 1)[ends]
        found.append(float((hits / seen * hits.diff(prepend=torch.zeros(1))).sum() / truth.sum()))
    return float(np.mean(found)) if found else float("nan")
