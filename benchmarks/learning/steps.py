"""Shared parts of the experiments' training loops: a step that CUDA replays, the loss, and the score."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WARM_UP_STEPS = 3  # before a graph is captured: libraries choose their kernels, the optimizer makes its state


class CapturedStep:
    """A step of training, (x, target) to a loss; after a few calls a CUDA graph, captured once and replayed.

    The loss is a scalar tensor that the next call may overwrite.
    """

    def __init__(self, learn: Callable[[Tensor, Tensor], Tensor], *, capture: bool) -> None:
        self.learn, self.capture = learn, capture
        self.num_steps = 0
        self.graph: Any = None

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        self.num_steps += 1
        if not self.capture or self.num_steps <= WARM_UP_STEPS:
            return self.learn(x, target)
        if self.graph is None:
            self.x, self.target, self.graph = x.clone(), target.clone(), torch.cuda.CUDAGraph()
            # On a stream of its own: graphs captured on one share a scratch space of cuBLAS.
            with torch.cuda.graph(self.graph, stream=torch.cuda.Stream()):
                self.loss = self.learn(self.x, self.target)
        self.x.copy_(x)
        self.target.copy_(target)
        self.graph.replay()
        return self.loss


def half_precision(device: torch.device) -> torch.autocast:
    """Return bfloat16 autocast that a graph can capture: without a cache of weights."""
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def smoothed_loss(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Compute the cross entropy with a label smoothing of 0.1, in half precision up to the logits."""
    with half_precision(x.device):
        logits = model(x)
    return F.cross_entropy(logits.float(), target, label_smoothing=0.1)


def accuracy(model: nn.Module, data: Any, labels: Tensor) -> float:
    """Score top-1 in percent; data is what `take` takes from."""
    model.eval()
    device = labels.device
    batch = 256 if device.type == "cpu" else 1024
    correct = torch.zeros((), dtype=torch.long, device=device)
    with torch.inference_mode(), half_precision(device):
        for start in range(0, len(data), batch):
            rows = np.arange(start, min(start + batch, len(data)))
            x = take(data, rows)
            correct += (model(x.float() if x.dtype == torch.half else x).argmax(1) == take(labels, rows)).sum()
    return 100 * int(correct) / len(data)


def take(array: Any, rows: np.ndarray) -> Tensor:
    """Take rows of a tensor, where it lies, or of an array that is mapped from a file."""
    if isinstance(array, Tensor):
        return array[moved(torch.from_numpy(rows), array.device)]
    return torch.from_numpy(array[rows])


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Move to the device, without waiting for what its stream still has to do."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
