"""Downscaling of latents: prediction of the latents of a smaller picture from those of the picture.

Downscaling by p/q is nearly linear in latents; enlarging is not. Every q x q cells give p x p cells, each from a window
of 3 q / p cells, rounded up, by one convolution of stride q and a shuffle. Rows and columns have separate factors. A
mirrored map also flips, with little additional error.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from walloc_data.errors import TransformError
from walloc_data.regression import WindowMap, WindowRegression

__all__ = ["FACTORS", "RescalingMap", "RescalingSums", "rescaled", "rescaled_crops"]

Encode = Callable[[Tensor], Tensor]

# Between 1/2 and 1: more of them would fill gaps for twice the weights.
FACTORS = tuple(Fraction(p, q) for p, q in ((1, 2), (3, 5), (2, 3), (3, 4), (4, 5)))
LARGEST_TERM = 16  # of a factor's numerator and denominator
# Windows for each weight of a map: fewer do not determine it, more do not improve it.
_FEWEST_WINDOWS, _ENOUGH_WINDOWS = 3, 40
_SIDE_PX = 320  # of a picture's middle, which is what maps are fitted on


@dataclass(frozen=True)
class RescalingMap:
    """Map from the cells of a picture to those of the downscaled picture.

    Example:
        >>> from fractions import Fraction
        >>> import torch
        >>> from walloc_data.transforms import LatentOperators
        >>> halve = LatentOperators.load("my-latents").rescaling(Fraction(1, 2), Fraction(2, 3))
        >>> halve(torch.zeros(8, 12, 24, 24, dtype=torch.int8)).shape  # rows, columns
        torch.Size([8, 12, 12, 16])
    """

    rows: Fraction
    columns: Fraction
    weight: Tensor  # (py, px, C, C, ky, kx) float16: of each of the py x px cells, its own window
    bias: Tensor  # (py, px, C) float32
    mirrored: bool = False  # takes z.flip(-1), gives the latents of the mirrored shrunk picture

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.rows} x {self.columns}{', mirrored' if self.mirrored else ''})"

    def __call__(self, latents: Tensor) -> Tensor:
        """Shrink (N, C, h, w), integers or floats, to float32 (N, C, floor(h * rows), floor(w * columns)), not
        rounded.
        """
        return rescaled(self.window_map(), latents, (self.rows, self.columns))

    def window_map(self) -> WindowMap:
        """Return the same map as one convolution with C * py * px outputs, in this order."""
        (py, px, c, _, ky, kx), qy, qx = self.weight.shape, self.rows.denominator, self.columns.denominator
        (tops, height), (lefts, width) = _placed(self.rows), _placed(self.columns)
        kernel = torch.zeros(c, py, px, self.weight.shape[3], height, width)
        for i, top in enumerate(tops):
            for j, left in enumerate(lefts):
                kernel[:, i, j, :, top : top + ky, left : left + kx] = self.weight[i, j].float()
        return WindowMap(kernel.flatten(0, 2), self.bias.permute(2, 0, 1).flatten().float(), (qy, qx))


def window_cells(factor: Fraction) -> int:
    """Return the side, in cells, of the window for one cell of the result."""
    return math.ceil(3 / factor)


def _placed(factor: Fraction) -> tuple[list[int], int]:
    """Return the offsets of the windows of the p cells in the window that contains them all, and the side of that."""
    p, q, k = factor.numerator, factor.denominator, window_cells(factor)
    starts = [0] * p
    for i in range((p + 1) // 2):
        starts[i] = math.floor((i + Fraction(1, 2)) / factor - Fraction(k - 1, 2))
        starts[p - 1 - i] = q - k - starts[i]  # the same from the other end
    halo = max(0, -min(starts))
    return [start + halo for start in starts], q + 2 * halo


def rescaled(fitted: WindowMap, latents: Tensor, factors: tuple[Fraction, Fraction]) -> Tensor:
    """Shrink whole latents (N, C, h, w) to (N, C, floor(h * rows), floor(w * columns)) float32.

    Plain tensor operations where the factors' denominators divide h and w: these can be exported.
    """
    (n, _, h, w), ((py, qy), (px, qx)) = latents.shape, (factor.as_integer_ratio() for factor in factors)
    if h % qy or w % qx:
        start = torch.zeros(n, dtype=torch.long)
        size = (math.floor(h * factors[0]), math.floor(w * factors[1]))
        return rescaled_crops(fitted, latents, factors, start, start, size)
    return _shuffled(fitted(latents), py, px)


def _shuffled(y: Tensor, py: int, px: int) -> Tensor:
    """Rearrange (N, C * py * px, h, w) to (N, C, h * py, w * px)."""
    _, channels, h, w = y.shape
    c = channels // (py * px)
    y = y.reshape(-1, c, py, px, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(-1, c, h * py, w * px)


def rescaled_crops(
    fitted: WindowMap,
    latents: Tensor,
    factors: tuple[Fraction, Fraction],
    top: Tensor,
    left: Tensor,
    size: tuple[int, int],
    *,
    mirrored: bool = False,
) -> Tensor:
    """Shrink crops, from windows that see the cells around each crop; borders of the picture wrap around.

    Args:
        fitted: `RescalingMap.window_map`, on the latents' device.
        latents: (N, C, h, w).
        factors: of rows and columns.
        top, left: (N,) where each sample's crop begins, on the CPU; of the mirrored latents where `mirrored`.
        size: of the result; the crop is size / factors.
        mirrored: reverse the columns first.
    """
    n, c, h, w = latents.shape
    device = latents.device
    (py, qy), (px, qx) = (factor.as_integer_ratio() for factor in factors)
    ky, kx = int(fitted.weight.shape[2]), int(fitted.weight.shape[3])
    num_rows, num_columns = -(-size[0] // py), -(-size[1] // px)
    rows = (top[:, None] - (ky - qy) // 2 + torch.arange(num_rows * qy + ky - qy)) % h
    columns = (left[:, None] - (kx - qx) // 2 + torch.arange(num_columns * qx + kx - qx)) % w
    columns = w - 1 - columns if mirrored else columns
    samples, channels = torch.arange(n, device=device), torch.arange(c, device=device)
    x = latents[
        samples[:, None, None, None],
        channels[None, :, None, None],
        rows.to(device)[:, None, :, None],
        columns.to(device)[:, None, None, :],
    ].float()
    y = fitted.map_padded(x)
    return _shuffled(y, py, px)[:, :, : size[0], : size[1]]


class RescalingSums:
    """Running sums of the regressions that a set of factors needs, over one set of pictures."""

    def __init__(self, latent_dim: int, *, factors: Iterable[Fraction]) -> None:
        axis = sorted({Fraction(1), *factors})
        for factor in axis:
            if not 0 < factor <= 1 or factor.denominator > LARGEST_TERM:
                raise TransformError(
                    f"latents can be shrunk by factors p/q with p < q <= {LARGEST_TERM}, not rescaled by {factor}"
                )
        self.latent_dim = latent_dim
        self.sums = {
            (rows, columns, mirrored): WindowRegression(
                latent_dim,
                num_targets=latent_dim * rows.numerator * columns.numerator,
                window_cells=(_placed(rows)[1], _placed(columns)[1]),
                stride_cells=(rows.denominator, columns.denominator),
            )
            for rows in axis
            for columns in axis
            if min(rows, columns) < 1
            for mirrored in (False, True)
        }

    def update(self, encode: Encode, pictures: Tensor, *, cell_px: int) -> None:
        """Add (N, 3, H, W) uint8 pictures, of which the middle is taken."""
        cells = [min(side, _SIDE_PX) // cell_px for side in pictures.shape[2:]]
        for (rows, columns, mirrored), sums in self.sums.items():
            if mirrored or sums.num_windows > _ENOUGH_WINDOWS * self._inputs(rows, columns):
                continue
            size = [n // f.denominator * f.denominator for n, f in zip(cells, (rows, columns), strict=True)]
            if not all(size):
                continue
            top, left = ((n - s * cell_px) // 2 for n, s in zip(pictures.shape[2:], size, strict=True))
            x = pictures[:, :, top : top + size[0] * cell_px, left : left + size[1] * cell_px].contiguous()
            small_px = [int(n * f) * cell_px for n, f in zip(size, (rows, columns), strict=True)]
            small = F.interpolate(x.float(), size=small_px, mode="bicubic", antialias=True).round().clamp(0, 255)
            small, z = small.to(torch.uint8), encode(x)
            sums.update(z, _split(encode(small), rows, columns))
            self.sums[rows, columns, True].update(z.flip(-1), _split(encode(small.flip(-1)), rows, columns))

    def solve(self) -> list[RescalingMap]:
        """Return the fitted maps, leaving out those for which too few pictures were seen."""
        maps = []
        for (rows, columns, mirrored), sums in self.sums.items():
            if sums.num_windows < _FEWEST_WINDOWS * self._inputs(rows, columns):
                continue
            k = window_cells(rows), window_cells(columns)
            py, px = rows.numerator, columns.numerator
            weight = torch.zeros(py, px, self.latent_dim, self.latent_dim, *k, dtype=torch.float16)
            bias = torch.zeros(py, px, self.latent_dim)
            for i, top in enumerate(_placed(rows)[0]):
                for j, left in enumerate(_placed(columns)[0]):
                    targets = [(c * py + i) * px + j for c in range(self.latent_dim)]
                    near = (range(top, top + k[0]), range(left, left + k[1]))
                    solved = sums.solve_within(targets, rows=near[0], columns=near[1])
                    weight[i, j], bias[i, j] = solved[0].half(), solved[1].float()
            maps.append(RescalingMap(rows, columns, weight, bias, mirrored))
        return maps

    def _inputs(self, rows: Fraction, columns: Fraction) -> int:
        """Return the number of values in the window of one cell."""
        return self.latent_dim * window_cells(rows) * window_cells(columns)

    def errors(self, maps: Sequence[RescalingMap]) -> dict[str, float]:
        """Return each map's squared error on the pictures seen, relative to the variance, mean over channels."""
        found = {}
        for fitted in maps:
            sums = self.sums[fitted.rows, fitted.columns, fitted.mirrored]
            if sums.num_windows:
                error = float(sums.relative_error(fitted.window_map()).mean())
                found[rescaling_name(fitted.rows, fitted.columns, mirrored=fitted.mirrored)] = error
        return found


def rescaling_name(rows: Fraction, columns: Fraction, *, mirrored: bool) -> str:
    """Return what `LatentOperators.held_out_error` calls a map: rows first."""
    return f"rescale {rows} x {columns}" + ", mirrored" * mirrored


def _split(latents: Tensor, rows: Fraction, columns: Fraction) -> Tensor:
    """Rearrange (N, C, h, w) to (N, C * py * px, h / py, w / px): the cells of one window's result become channels."""
    n, c, h, w = latents.shape
    py, px = rows.numerator, columns.numerator
    blocks = latents.reshape(n, c, h // py, py, w // px, px).permute(0, 1, 3, 5, 2, 4)
    return blocks.reshape(n, c * py * px, h // py, w // px)
