"""Linear least squares from windows of latents to targets on their grid, by running sums.

Flips, grey levels, linear decoders and folded stems are fitted in this way: given windows of k x k cells, predict a
target per window. One pass over the pictures accumulates the sums, in float64; the solution is in closed form.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from walloc_data.errors import CodecError

__all__ = ["WindowMap", "WindowRegression", "without_autocast"]


def _wrapped(latents: Tensor, *, window_cells: tuple[int, int], stride_cells: tuple[int, int]) -> Tensor:
    """Pad latents for centred windows. Borders wrap around, like the filters of the codec."""
    (kh, kw), (sh, sw) = window_cells, stride_cells
    top, left = (kh - sh) // 2, (kw - sw) // 2
    if (kh, kw) == (sh, sw):
        return latents
    return F.pad(latents, (left, kw - sw - left, top, kh - sh - top), mode="circular")


def _windows(latents: Tensor, *, window_cells: tuple[int, int], stride_cells: tuple[int, int]) -> Tensor:
    """Unfold (N, C, h, w) to windows (N, C * kh * kw, h/sh, w/sw)."""
    (n, _, h, w), (sh, sw) = latents.shape, stride_cells
    x = _wrapped(latents, window_cells=window_cells, stride_cells=stride_cells)
    return F.unfold(x, window_cells, stride=stride_cells).reshape(n, -1, h // sh, w // sw)


def _pair(stride: int | tuple[int, int]) -> tuple[int, int]:
    return (stride, stride) if isinstance(stride, int) else stride


@dataclass(frozen=True)
class WindowMap:
    """Linear map from windows: target = weight * window + bias.

    Example:
        >>> import torch
        >>> from walloc_data.regression import WindowMap
        >>> average = WindowMap(torch.full((1, 12, 2, 2), 1 / 48), torch.zeros(1), stride_cells=2)  # of 2 x 2 cells
        >>> average(torch.full((4, 12, 20, 20), 6)).shape
        torch.Size([4, 1, 10, 10])
    """

    weight: Tensor  # (T, C, kh, kw) float32
    bias: Tensor  # (T,) float32
    stride_cells: int | tuple[int, int] = 1  # (rows, columns) where they differ

    def __repr__(self) -> str:  # not the thousands of numbers
        return f"{type(self).__name__}(weight={tuple(self.weight.shape)}, stride_cells={self.stride_cells})"

    def __call__(self, latents: Tensor) -> Tensor:
        """Map (N, C, h, w), integers or floats, to (N, T, h/stride, w/stride) float32."""
        stride = _pair(self.stride_cells)
        window = (int(self.weight.shape[2]), int(self.weight.shape[3]))
        return self.map_padded(_wrapped(latents.float(), window_cells=window, stride_cells=stride))

    def map_padded(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) floats that include the cells around the first and last windows; never in bfloat16."""
        with without_autocast(x.device):
            return F.conv2d(x, self.weight.to(x), self.bias.to(x), stride=_pair(self.stride_cells))


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off: bfloat16 has 8 bits, as latents have, and sums of them need more.

    Example:
        >>> import torch
        >>> from walloc_data.regression import without_autocast
        >>> latents = torch.full((4, 4), 101.0)
        >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(latents.device):
        ...     float((latents @ latents)[0, 0])
        40804.0
    """
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class WindowRegression:
    """Running sums for the least-squares map from latent windows to targets.

    Args:
        latent_dim: channels of the latents.
        num_targets: values to predict per window.
        window_cells: (height, width) of a window; each at least the stride. Odd differences to the stride cannot become
            a convolution with symmetric padding.
        stride_cells: cells between windows; (rows, columns) if they differ.
        interior_only: leave out windows that cross a border, for targets that do not wrap around.

    Example:
        >>> import torch
        >>> from walloc_data.regression import WindowRegression
        >>> latents = torch.randint(-128, 128, (4, 12, 20, 20))
        >>> sums = WindowRegression(12, num_targets=1, window_cells=(1, 1))
        >>> sums.update(latents, 3 * latents[:, :1] + 5)
        >>> fitted = sums.solve()
        >>> sums.num_windows, round(fitted.weight[0, 0].item(), 3), round(fitted.bias.item(), 3)
        (1600, 3.0, 5.0)
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        num_targets: int,
        window_cells: tuple[int, int],
        stride_cells: int | tuple[int, int] = 1,
        interior_only: bool = False,
    ) -> None:
        strides = _pair(stride_cells)
        if min(strides) < 1 or any(side < stride for side, stride in zip(window_cells, strides, strict=True)):
            raise CodecError(f"windows of {window_cells} cells cannot move by {stride_cells}: they would leave gaps")
        self.latent_dim, self.num_targets = latent_dim, num_targets
        self.window_cells, self.stride_cells, self.interior_only = window_cells, stride_cells, interior_only
        inputs = latent_dim * window_cells[0] * window_cells[1] + 1  # the last input is 1: the bias
        self._vv = torch.zeros(inputs, inputs, dtype=torch.float64)
        self._vt = torch.zeros(inputs, num_targets, dtype=torch.float64)
        self._tt = torch.zeros(num_targets, dtype=torch.float64)

    @property
    def num_windows(self) -> int:
        """Number of windows added so far."""
        return int(self._vv[-1, -1])

    def update(self, latents: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            latents: (N, C, h, w), integers or floats; h and w multiples of the stride.
            targets: (N, T, h/stride, w/stride).
        """
        n, c, h, w = latents.shape
        strides = _pair(self.stride_cells)
        grid = (n, self.num_targets, h // strides[0], w // strides[1])
        if c != self.latent_dim or targets.shape != grid:
            raise CodecError(
                f"latents {tuple(latents.shape)} with targets {tuple(targets.shape)}: expected "
                f"{self.latent_dim} channels and targets {grid}"
            )
        v = _windows(latents.double(), window_cells=self.window_cells, stride_cells=strides)
        t = targets.double()
        if self.interior_only:
            margins = [-(-(k - s) // (2 * s)) for k, s in zip(self.window_cells, strides, strict=True)]
            rows, columns = (slice(m, -m or None) for m in margins)
            v, t = v[:, :, rows, columns], t[:, :, rows, columns]
        v = v.permute(0, 2, 3, 1).reshape(-1, v.shape[1])
        t = t.permute(0, 2, 3, 1).reshape(-1, t.shape[1])
        v = torch.cat([v, torch.ones(len(v), 1, dtype=torch.float64)], 1)
        self._vv += v.T @ v
        self._vt += v.T @ t
        self._tt += t.square().sum(0)

    def covariance(self) -> Tensor:
        """Return the covariance of the windows added so far, (C * kh * kw, C * kh * kw) float64."""
        mean = self._vv[-1, :-1] / max(1, self.num_windows)
        return self._vv[:-1, :-1] / max(1, self.num_windows) - mean[:, None] * mean

    def solve(self, *, ridge: float = 1e-6) -> WindowMap:
        """Return the least-squares map; `ridge` is relative to the mean power of the inputs."""
        weight, bias = self._solve(torch.arange(len(self._vv)), torch.arange(self.num_targets), ridge=ridge)
        weight = weight.reshape(self.num_targets, self.latent_dim, *self.window_cells)
        return WindowMap(weight.float().contiguous(), bias.float().contiguous(), self.stride_cells)

    def solve_within(
        self, targets: Sequence[int], *, rows: range, columns: range, ridge: float = 1e-6
    ) -> tuple[Tensor, Tensor]:
        """Solve for some targets from a part of the window, which needs fewer weights.

        Args:
            targets: indices of the targets.
            rows, columns: part of the window that is used.
            ridge: regularisation, relative to the mean power of the inputs.

        Returns:
            weight (targets, C, rows, columns) and bias (targets,), float64.
        """
        grid = torch.arange(len(self._vv) - 1).reshape(self.latent_dim, *self.window_cells)
        inputs = grid[:, rows.start : rows.stop, columns.start : columns.stop].reshape(-1)
        inputs = torch.cat([inputs, torch.tensor([len(self._vv) - 1])])
        weight, bias = self._solve(inputs, torch.tensor(targets), ridge=ridge)
        return weight.reshape(len(targets), self.latent_dim, len(rows), len(columns)), bias

    def _solve(self, inputs: Tensor, targets: Tensor, *, ridge: float) -> tuple[Tensor, Tensor]:
        """Return (T, inputs - 1) weights and (T,) biases. `inputs` are indices; the last input is constantly 1."""
        if self.num_windows < len(inputs):
            raise CodecError(
                f"{self.num_windows} windows cannot determine {len(inputs)} weights: use more or larger pictures"
            )
        vv = self._vv[inputs][:, inputs]
        # At least a little, as black pictures have no power, and the matrix would be singular.
        power = max(float(vv.diagonal()[:-1].mean()), 1e-12)
        penalty = torch.full((len(inputs),), ridge * power, dtype=torch.float64)
        penalty[-1] = 0
        solution = torch.linalg.solve(vv + torch.diag(penalty), self._vt[inputs][:, targets]).T  # (T, inputs)
        return solution[:, :-1], solution[:, -1]

    def relative_error(self, fitted: WindowMap) -> Tensor:
        """Return the (T,) squared error of a map on the windows added so far, relative to the variance of each target.

        For a held-out error, add other pictures to a second object and pass it the map of the first.
        """
        solution = torch.cat([fitted.weight.double().reshape(self.num_targets, -1), fitted.bias.double()[:, None]], 1).T
        power = self._tt - 2 * (solution * self._vt).sum(0) + (solution * (self._vv @ solution)).sum(0)
        return power / self.variance().clamp_min(1e-12) / max(1, self.num_windows)

    def variance(self) -> Tensor:
        """Return the (T,) variance of each target."""
        n = max(1, self.num_windows)
        return self._tt / n - (self._vt[-1] / n).square()
