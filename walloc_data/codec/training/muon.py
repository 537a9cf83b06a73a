"""Muon, an optimizer for weight matrices: momentum whose update is made orthogonal.

The update of a matrix is the nearest (semi-)orthogonal matrix to its Nesterov momentum, found by five steps of a
quintic Newton-Schulz iteration (Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024). It is
scaled to the size of an Adam update (Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982), so that one
learning rate serves both.

`torch.optim.Muon` takes two-dimensional parameters only, one at a time. This one takes convolutions, treats the groups
of a grouped one as matrices of their own, runs matrices of one shape as one batch, and can be captured in a CUDA graph.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalise"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, *, steps: int = 5) -> Tensor:
    """Return the approximate polar factors of matrices, (n, rows, columns): singular values become about 1.

    Five steps leave singular values between 0.7 and 1.2, which is close enough for an optimizer.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels (outputs, inputs / groups, height, width) and matrices.

    Args:
        params: parameter groups, each with its "groups": the number of groups of its convolutions (default 1).
        lr: learning rate, a number or a scalar tensor; that of Adam serves.
        momentum: of the gradients' running mean.
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, lr: float | Tensor = 2e-3, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "groups": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum, groups, shape = group["momentum"], group["groups"], parameters[0].shape
        means = []
        for parameter in parameters:
            state = self.state[parameter]
            if "mean" not in state:
                state["mean"] = torch.zeros(shape, device=parameter.device)
            means.append(state["mean"])
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - momentum)  # type: ignore[arg-type]
        updates = torch._foreach_lerp(gradients, means, momentum)  # type: ignore[arg-type]
        rows, columns = shape[0] // groups, math.prod(shape[1:])
        matrices = torch.stack([update.reshape(groups, rows, columns) for update in updates]).flatten(0, 1)
        scale = 0.2 * math.sqrt(max(rows, columns))  # the root mean square of an Adam update
        steps = orthogonalise(matrices).to(matrices.dtype) * (-scale * group["lr"])
        for parameter, change in zip(parameters, steps.reshape(len(parameters), *shape).unbind(), strict=True):
            parameter.add_(change)
