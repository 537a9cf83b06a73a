"""Crops, shifts, flips and erasing. Crops are exact except for the outermost cells, whose filters reach outside."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from walloc_data.errors import TransformError
from walloc_data.regression import WindowMap
from walloc_data.transforms.base import LatentTransform, check_probability, coin, integers, uniform

__all__ = [
    "CenterCrop",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomTranslate",
]

Size = int | tuple[int, int]


def pair_of_cells(size: Size) -> tuple[int, int]:
    """Return (rows, columns) of a size in cells.

    Raises:
        TransformError: it is no integer and no pair of integers, or less than 1.
    """
    given: Any = size
    pair = tuple(given) if isinstance(given, tuple | list) else (given, given)
    if len(pair) != 2 or not all(isinstance(side, Integral) and not isinstance(side, bool) for side in pair):
        raise TransformError(f"a size in cells is an integer or a pair (rows, columns) of integers, not {size!r}")
    if min(pair) < 1:
        raise TransformError(f"a size in cells is at least 1, not {size!r}")
    return int(pair[0]), int(pair[1])


def _check_fits(size: tuple[int, int], latents: Tensor) -> None:
    if size[0] > latents.shape[2] or size[1] > latents.shape[3]:
        raise TransformError(
            f"a crop of {size[0]} x {size[1]} cells does not fit latents of {latents.shape[2]} x {latents.shape[3]}"
        )


def crop_windows(latents: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop a window of one size from each sample, at its own position."""
    n, c, _, _ = latents.shape
    device = latents.device
    rows = (top[:, None] + torch.arange(size[0])).to(device)[:, None, :, None]  # (N, 1, h', 1)
    columns = (left[:, None] + torch.arange(size[1])).to(device)[:, None, None, :]
    samples = torch.arange(n, device=device)[:, None, None, None]
    channels = torch.arange(c, device=device)[None, :, None, None]
    return latents[samples, channels, rows, columns]


class CenterCrop(LatentTransform):
    """Crop of `size_cells` at the centre; an odd remainder goes to the bottom and right.

    Example:
        >>> import torch
        >>> from walloc_data.transforms import CenterCrop
        >>> CenterCrop(18)(torch.zeros(16, 12, 20, 20, dtype=torch.int8)).shape
        torch.Size([16, 12, 18, 18])
    """

    def __init__(self, size_cells: Size) -> None:
        super().__init__()
        self.size_cells = pair_of_cells(size_cells)

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        _check_fits(self.size_cells, latents)
        (h, w), (height, width) = self.size_cells, latents.shape[2:]
        top, left = (height - h) // 2, (width - w) // 2
        return latents[:, :, top : top + h, left : left + w]

    def extra_repr(self) -> str:
        return f"size_cells={self.size_cells}"


class RandomCrop(LatentTransform):
    """Crop of `size_cells` at a random position of each sample.

    Example:
        >>> import torch
        >>> from walloc_data.transforms import RandomCrop
        >>> crop = RandomCrop((16, 18))  # cells high, cells wide
        >>> crop(torch.zeros(16, 12, 20, 20, dtype=torch.int8), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([16, 12, 16, 18])
    """

    def __init__(self, size_cells: Size) -> None:
        super().__init__()
        self.size_cells = pair_of_cells(size_cells)

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        _check_fits(self.size_cells, latents)
        n, _, height, width = latents.shape
        top = integers(n, 0, height - self.size_cells[0], generator=generator)
        left = integers(n, 0, width - self.size_cells[1], generator=generator)
        return crop_windows(latents, top, left, self.size_cells)

    def extra_repr(self) -> str:
        return f"size_cells={self.size_cells}"


class RandomTranslate(LatentTransform):
    """Shift each sample by up to `max_cells` in each direction, with unchanged shape.

    Args:
        max_cells: the largest shift.
        fill: (C,) values for the cells that come in, e.g. the stored integers of mid-grey; default 0.

    Example:
        >>> import torch
        >>> from walloc_data.transforms import RandomTranslate
        >>> shifted = RandomTranslate(2)(torch.ones(16, 12, 20, 20, dtype=torch.int8))
        >>> shifted.shape, shifted[:, :, 2:-2, 2:-2].unique()
        (torch.Size([16, 12, 20, 20]), tensor([1], dtype=torch.int8))
    """

    fill: Tensor | None

    def __init__(self, max_cells: int, *, fill: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        if max_cells < 0:
            raise TransformError(f"max_cells must be at least 0, not {max_cells}")
        self.max_cells = max_cells
        self.register_buffer("fill", None if fill is None else torch.as_tensor(fill, dtype=torch.float32))

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        n, c, height, width = latents.shape
        m = self.max_cells
        fill = self.fill
        if fill is None:
            canvas = F.pad(latents, (m, m, m, m))
        else:
            values = fill.round().to(latents.dtype) if not latents.is_floating_point() else fill.to(latents)
            canvas = values[None, :, None, None].expand(n, c, height + 2 * m, width + 2 * m).clone()
            canvas[:, :, m : m + height, m : m + width] = latents
        top = integers(n, 0, 2 * m, generator=generator)
        left = integers(n, 0, 2 * m, generator=generator)
        return crop_windows(canvas, top, left, (height, width))

    def extra_repr(self) -> str:
        return f"max_cells={self.max_cells}"


class RandomHorizontalFlip(LatentTransform):
    """Mirror each sample with probability p.

    Args:
        operator: the codec's fitted map (`LatentOperators.flip`), applied after the cells are reversed: float32 out.
            None reverses the cells alone, which leaves each cell's inside unmirrored: most of the latent's variance
            is then wrong, though a model may still learn from it.
        p: probability.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.transforms import LatentOperators, RandomHorizontalFlip
        >>> latents, labels = next(iter(LatentDataset("my-latents").loader(batch_size=8)))  # (8, 12, 12, 12) int8
        >>> flip = RandomHorizontalFlip(LatentOperators.load("my-latents").flip, p=1.0)
        >>> flip(latents).shape, flip(latents).dtype
        (torch.Size([8, 12, 12, 12]), torch.float32)
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, operator: WindowMap | None = None, *, p: float = 0.5) -> None:
        super().__init__()
        self.p, self.fitted = check_probability(p), operator is not None
        self.latent_channels = None if operator is None else int(operator.weight.shape[1])
        self.register_buffer("weight", None if operator is None else operator.weight)
        self.register_buffer("bias", None if operator is None else operator.bias)

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        chosen = coin(len(latents), self.p, generator=generator).to(latents.device)
        weight, bias = self.weight, self.bias
        if weight is None or bias is None:
            return torch.where(chosen[:, None, None, None], latents.flip(-1), latents)
        result = latents.float() if latents.dtype != torch.float32 else latents.clone()
        if bool(chosen.any()):  # the convolution is applied only to these
            result[chosen] = WindowMap(weight, bias)(latents[chosen].flip(-1))
        return result

    def extra_repr(self) -> str:
        return f"p={self.p}, fitted={self.fitted}"


class RandomErasing(LatentTransform):
    """Fill a random rectangle of each sample with probability p (Zhong et al., arXiv 1708.04896).

    Args:
        p: probability.
        scale: smallest and largest area, relative to the latent's.
        ratio: smallest and largest height / width.
        fill: (C,) values to fill with; default 0.

    Example:
        >>> import torch
        >>> from walloc_data.transforms import RandomErasing
        >>> erase = RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0))
        >>> erased = erase(torch.ones(16, 12, 20, 20, dtype=torch.int8))
        >>> (erased == 0).float().mean().item()
        0.25
    """

    fill: Tensor | None

    def __init__(
        self,
        *,
        p: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        fill: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        self.p, self.scale, self.ratio = check_probability(p), scale, ratio
        self.register_buffer("fill", None if fill is None else torch.as_tensor(fill, dtype=torch.float32))

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        n, _, height, width = latents.shape
        chosen = coin(n, self.p, generator=generator)
        h, w = _random_sizes(n, (height, width), self.scale, self.ratio, generator=generator)
        top = integers(n, 0, height - h, generator=generator)
        left = integers(n, 0, width - w, generator=generator)
        rows, columns = torch.arange(height)[None, :], torch.arange(width)[None, :]
        inside_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])  # (N, height)
        inside_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
        mask = (inside_rows[:, :, None] & inside_columns[:, None, :] & chosen[:, None, None])[:, None]
        fill = self.fill
        value = torch.zeros(latents.shape[1]) if fill is None else fill
        value = value.round() if not latents.is_floating_point() else value
        return torch.where(mask.to(latents.device), value.to(latents)[:, None, None], latents)

    def extra_repr(self) -> str:
        return f"p={self.p}, scale={self.scale}, ratio={self.ratio}"


def _random_sizes(
    count: int,
    shape: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    *,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Draw (count,) heights and widths in cells: area uniform, aspect log-uniform, cut to the latent."""
    height, width = shape
    area = uniform(count, *scale, generator=generator) * height * width
    aspect = uniform(count, math.log(ratio[0]), math.log(ratio[1]), generator=generator).exp()
    h = (area * aspect).sqrt().round().long().clamp(1, height)
    w = (area / aspect).sqrt().round().long().clamp(1, width)
    return h, w
