"""Resizing of latents, or of random crops, to a size, by the factors of a codec's operators.

Latents can only be downscaled, by the factors in `LatentOperators.factors`, separately for rows and columns. The `repr`
of a transform shows the factors, and `crops` lists the possible crops of latents of one shape.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from walloc_data.errors import TransformError
from walloc_data.regression import WindowMap
from walloc_data.transforms.base import LatentTransform, check_probability, coin, integers, uniform
from walloc_data.transforms.geometric import Size, crop_windows, pair_of_cells
from walloc_data.transforms.operators import LatentOperators
from walloc_data.transforms.rescaling import RescalingMap, rescaled, rescaled_crops

__all__ = ["DrawnCrops", "RandomResizedCrop", "Resize"]

_TRIES = 10  # as torchvision: draws of a crop that does not fit are drawn again so often
_ONE = Fraction(1)


class _Rescaling(nn.Module):
    """Map as a module, which moves with its transform."""

    weight: Tensor
    bias: Tensor

    def __init__(self, fitted: WindowMap, *, rows: Fraction, columns: Fraction, mirrored: bool) -> None:
        super().__init__()
        self.factors: tuple[Fraction, Fraction] = (rows, columns)
        self.mirrored, self.stride_cells = mirrored, fitted.stride_cells
        # Part of the codec, not of what is learned: a checkpoint has no use for them.
        self.register_buffer("weight", fitted.weight, persistent=False)
        self.register_buffer("bias", fitted.bias, persistent=False)

    @classmethod
    def of(cls, item: RescalingMap) -> "_Rescaling":
        return cls(item.window_map(), rows=item.rows, columns=item.columns, mirrored=item.mirrored)

    def forward(self, latents: Tensor) -> Tensor:
        """Resize whole latents (N, C, h, w)."""
        return rescaled(WindowMap(self.weight, self.bias, self.stride_cells), latents, self.factors)

    def crops(self, latents: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
        """Cut and resize a crop of each sample, at its own place."""
        fitted = WindowMap(self.weight, self.bias, self.stride_cells)
        return rescaled_crops(fitted, latents, self.factors, top, left, size, mirrored=self.mirrored)


class Resize(LatentTransform):
    """Downscale latents, like torchvision's Resize.

    Args:
        size_cells: an integer is the shorter side of the result, with the aspect ratio kept; a pair is (rows, columns).
            The size must be possible with the factors of the operators: 24 cells to 12, 16 or 18 (1/2, 2/3, 3/4). If a
            factor does not divide a side, the side is truncated by part of a cell.
        operators: the codec's (`LatentOperators.load`).

    Returns float32 without rounding, unless the size is that of the latents.

    Raises:
        TransformError: no factor gives this size; the message lists the possible sizes.

    Example:
        >>> import torch
        >>> from walloc_data.transforms import LatentOperators, Resize
        >>> resize = Resize(16, operators=LatentOperators.load("my-latents"))
        >>> resize
        Resize(size_cells=16, factors=(1/2, 3/5, 2/3, 3/4, 4/5, 1))
        >>> resize(torch.zeros(8, 12, 24, 24, dtype=torch.int8)).shape
        torch.Size([8, 12, 16, 16])
    """

    def __init__(self, size_cells: Size, *, operators: LatentOperators) -> None:
        super().__init__()
        _checked(operators, "Resize")
        pair_of_cells(size_cells)
        self.size_cells, self.factors = size_cells, operators.factors
        self.latent_channels = len(operators.grey)
        plain = [_Rescaling.of(item) for item in operators.rescalings if not item.mirrored]
        self.maps = nn.ModuleList(plain)
        self._by_factors = {item.factors: i for i, item in enumerate(plain)}

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        height, width = latents.shape[2:]
        if isinstance(self.size_cells, int):
            factor = self._factor(min(height, width), self.size_cells, latents)
            factors = (factor, factor)
        else:
            rows, columns = self.size_cells
            factors = (self._factor(height, rows, latents), self._factor(width, columns, latents))
        if factors == (_ONE, _ONE):
            return latents
        if factors not in self._by_factors:
            raise TransformError(f"these operators have no map for rows by {factors[0]} and columns by {factors[1]}")
        result: Tensor = self.maps[self._by_factors[factors]](latents)
        return result

    def _factor(self, have: int, want: int, latents: Tensor) -> Fraction:
        """Return the largest factor that makes `want` cells of `have`; exact divisors first."""
        found = [factor for factor in self.factors if math.floor(have * factor) == want]
        if not found:
            sizes = sorted({math.floor(have * factor) for factor in self.factors})
            raise TransformError(
                f"no factor of {_listed(self.factors)} shrinks {have} cells to {want} (latents of {latents.shape[2]} x "
                f"{latents.shape[3]}): {_listed(sizes)} can be had, or a crop of one of them"
            )
        return max(found, key=lambda factor: (have % factor.denominator == 0, factor))

    def extra_repr(self) -> str:
        return f"size_cells={self.size_cells}, factors=({_listed(self.factors)})"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


@dataclass(frozen=True)
class DrawnCrops:
    """Crops that one call of `RandomResizedCrop` has drawn, one for each sample of a batch.

    Example:
        >>> import torch
        >>> from walloc_data.transforms import LatentOperators, RandomResizedCrop
        >>> crop = RandomResizedCrop(16, operators=LatentOperators.load("my-latents"), flip_p=0.5)
        >>> latents = torch.zeros(8, 12, 24, 24, dtype=torch.int8)
        >>> drawn = crop.draw(latents)
        >>> crop.cut(latents, drawn).shape, drawn.box(0)[:2] == (float(drawn.top[0]), float(drawn.left[0]))
        (torch.Size([8, 12, 16, 16]), True)
    """

    size_cells: tuple[int, int]  # of the results
    factors: tuple[tuple[Fraction, Fraction], ...]  # of rows and columns, to choose from
    choice: Tensor  # (N,) int64, of `factors`
    top: Tensor  # (N,) int64 cells
    left: Tensor  # (N,) int64 cells, of the mirrored latents where `flipped`
    flipped: Tensor  # (N,) bool
    latent_cells: tuple[int, int]  # of the latents that they were drawn for

    def box(self, sample: int) -> tuple[float, float, float, float]:
        """Return a sample's crop, (top, left, height, width) in cells; of the mirrored latents where `flipped`."""
        rows, columns = self.factors[int(self.choice[sample])]
        height, width = self.size_cells[0] / rows, self.size_cells[1] / columns
        return float(self.top[sample]), float(self.left[sample]), float(height), float(width)


class RandomResizedCrop(LatentTransform):
    """Crop of random area and aspect ratio, downscaled to one size, like torchvision's RandomResizedCrop.

    Area and aspect ratio are drawn like in torchvision. Of the crops that the operators can downscale to `size_cells`,
    the nearest one is taken, at a random position: for 16 x 16 cells, sides of 16, 20, 21.3, 24, 26.7 and 32 cells, as
    far as the latent has them. Nothing is enlarged: the smallest crop is `size_cells`, for any `scale`. `crops` lists
    the possible crops; if none of them is within `scale` and `ratio`, a warning says so.

    Samples of a batch are grouped by factors, so large batches are faster on accelerators.

    Args:
        size_cells: size of the result; None draws one crop size per batch and returns crops without resizing, in their
            dtype; the model must then accept different sizes. Call it on batches: as the transform of a data set it
            would draw a size for each sample.
        operators: operators of the codec (`LatentOperators.load`); not needed if size_cells is None.
        scale: smallest and largest area, relative to the latents'.
        ratio: smallest and largest width / height.
        flip_p: probability of a horizontal flip, which is combined with the downscaling for a smaller error.

    Returns float32 without rounding.

    Raises:
        TransformError: the latents are smaller than `size_cells`.

    Example:
        >>> import torch
        >>> from walloc_data.transforms import LatentOperators, RandomResizedCrop
        >>> crop = RandomResizedCrop(16, operators=LatentOperators.load("my-latents"), flip_p=0.5)
        >>> crop
        RandomResizedCrop(size_cells=(16, 16), scale=(0.35, 1.0), ratio=(0.75, 1.33), flip_p=0.5, \
from sides of 32, 26.7, 24, 21.3, 20, 16 cells)
        >>> crop(torch.zeros(8, 12, 24, 24, dtype=torch.int8)).shape
        torch.Size([8, 12, 16, 16])
        >>> [round(rows, 1) for rows, columns in crop.crops(24, 24) if rows == columns]  # that 24 x 24 cells can give
        [16.0, 24.0, 21.3, 20.0]
    """

    def __init__(
        self,
        size_cells: Size | None = None,
        *,
        operators: LatentOperators | None = None,
        scale: tuple[float, float] = (0.35, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip_p: float = 0.0,
    ) -> None:
        super().__init__()
        if not (_is_range(scale) and _is_range(ratio)):
            raise TransformError(f"scale and ratio are ranges (low, high) above 0, not {scale!r} and {ratio!r}")
        self.size_cells = None if size_cells is None else pair_of_cells(size_cells)
        self.scale, self.ratio, self.flip_p = scale, ratio, check_probability(flip_p)
        self.pairs: list[tuple[Fraction, Fraction]] = [(_ONE, _ONE)]
        self.maps = nn.ModuleList()
        if self.size_cells is None:
            if flip_p:
                raise TransformError("flip_p needs a size_cells: flip crops by RandomHorizontalFlip instead")
            return
        operators = _checked(operators, "RandomResizedCrop")
        if not operators.rescalings:
            raise TransformError(
                "these operators have no maps to shrink by, as files of earlier versions: fit them again "
                "(walloc-data fit-operators), or load the bundled codec's"
            )
        self.latent_channels = len(operators.grey)
        maps = [_Rescaling(operators.flip, rows=_ONE, columns=_ONE, mirrored=True)]
        maps += [_Rescaling.of(item) for item in operators.rescalings]
        self.maps.extend(maps)
        self._by_factors = {(item.factors, item.mirrored): i for i, item in enumerate(maps)}
        # A pair is of use where both its maps are there.
        self.pairs += [item.factors for item in maps if item.mirrored and (item.factors, False) in self._by_factors]

    def crops(self, height: int, width: int) -> list[tuple[float, float]]:
        """Return the (rows, columns), in cells, of the crops that latents of this shape can give."""
        if self.size_cells is None:
            raise TransformError("without a size_cells every crop at whole cells can be had")
        return [(rows, columns) for _, (rows, columns) in self._crops(height, width, self.size_cells)]

    def _crops(
        self, height: int, width: int, size: tuple[int, int]
    ) -> list[tuple[tuple[Fraction, Fraction], tuple[float, float]]]:
        h, w = size
        fitting = [(fy, fx) for fy, fx in self.pairs if h / fy <= height and w / fx <= width]
        if not fitting:
            raise TransformError(
                f"latents of {height} x {width} cells give no crop of {h} x {w}: latents are only shrunk, so ask for "
                "less, or store larger pictures"
            )
        found = [((fy, fx), (float(h / fy), float(w / fx))) for fy, fx in fitting]
        if not any(self._asked_for(rows, columns, of=(height, width)) for _, (rows, columns) in found):
            largest = max((crop for _, crop in found), key=math.prod)
            warnings.warn(
                f"latents of {height} x {width} cells give no crop within scale={self.scale} and ratio={self.ratio}: "
                f"crops from {h} x {w} to {largest[0]:.3g} x {largest[1]:.3g} cells can be downscaled to {h} x {w}, "
                "and the nearest is taken",
                stacklevel=4,
            )
        return found

    def _asked_for(self, rows: float, columns: float, *, of: tuple[int, int]) -> bool:
        """Return whether a crop's area and aspect ratio are within the ranges, within half a cell a side."""
        small, large = (rows - 0.5, columns - 0.5), (rows + 0.5, columns + 0.5)
        least, most = (share * math.prod(of) for share in self.scale)
        return (
            math.prod(small) <= most
            and math.prod(large) >= least
            and small[1] / large[0] <= self.ratio[1]
            and large[1] / small[0] >= self.ratio[0]
        )

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        n, _, height, width = latents.shape
        shape = (height, width)
        if self.size_cells is None:
            drawn = random_crops(1, shape, self.scale, self.ratio, generator=generator)[0]
            h, w = (min(most, max(1, round(float(side)))) for side, most in zip(drawn, shape, strict=True))
            top = integers(n, 0, height - h, generator=generator)
            left = integers(n, 0, width - w, generator=generator)
            return crop_windows(latents, top, left, (h, w))
        return self.cut(latents, self.draw(latents, generator=generator))

    def draw(self, latents: Tensor, *, generator: torch.Generator | None = None) -> DrawnCrops:
        """Draw for each sample of (N, C, h, w) what `cut` then does; so that the same can be done to its picture."""
        if self.size_cells is None:
            raise TransformError("without a size_cells crops are drawn and cut at once")
        _check_batch(latents, "draw")
        n, _, height, width = latents.shape
        available = self._crops(height, width, self.size_cells)
        drawn = random_crops(n, (height, width), self.scale, self.ratio, generator=generator)
        sides = torch.tensor([crop for _, crop in available])  # (crops, 2)
        choice = (drawn.log()[:, None] - sides.log()).square().sum(2).argmin(1)  # (N,)
        taken = sides.ceil().long()[choice]
        top = integers(n, 0, height - taken[:, 0], generator=generator)
        left = integers(n, 0, width - taken[:, 1], generator=generator)
        heads = coin(n, self.flip_p, generator=generator)
        factors = tuple(factors for factors, _ in available)
        return DrawnCrops(self.size_cells, factors, choice, top, left, heads, (height, width))

    def cut(self, latents: Tensor, drawn: DrawnCrops) -> Tensor:
        """Cut, shrink and flip (N, C, h, w) as it was drawn.

        Raises:
            TransformError: it was drawn for other latents.
        """
        _check_batch(latents, "cut")
        choice, heads = drawn.choice, drawn.flipped
        if (len(latents), *latents.shape[2:]) != (len(choice), *drawn.latent_cells):
            height, width = drawn.latent_cells
            raise TransformError(
                f"crops drawn for {len(choice)} latents of {height} x {width} cells cannot be cut from "
                f"{tuple(latents.shape)}: draw for these"
            )
        result = latents.new_empty((len(latents), latents.shape[1], *drawn.size_cells), dtype=torch.float32)
        for i, flipped in {(int(i), bool(flip)) for i, flip in zip(choice, heads, strict=True)}:
            rows = ((choice == i) & (heads == flipped)).nonzero()[:, 0]
            factors, on_device = drawn.factors[i], rows.to(latents.device)
            group = latents[on_device]
            if factors == (_ONE, _ONE) and not flipped:
                part = crop_windows(group, drawn.top[rows], drawn.left[rows], drawn.size_cells).float()
            else:
                rescaling: _Rescaling = self.maps[self._by_factors[factors, flipped]]  # type: ignore[assignment]
                part = rescaling.crops(group, drawn.top[rows], drawn.left[rows], drawn.size_cells)
            result[on_device] = part
        return result

    def extra_repr(self) -> str:
        ratio = tuple(round(side, 2) for side in self.ratio)
        text = f"size_cells={self.size_cells}, scale={self.scale}, ratio={ratio}"
        if self.size_cells is None:
            return text
        (h, w), factors = self.size_cells, sorted({factor for pair in self.pairs for factor in pair})
        sides = _listed([f"{float(h / factor):.3g}" for factor in factors])
        if h != w:
            sides += " by " + _listed([f"{float(w / factor):.3g}" for factor in factors])
        return f"{text}, flip_p={self.flip_p}, from sides of {sides} cells"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _checked(operators: object, name: str) -> LatentOperators:
    if not isinstance(operators, LatentOperators):
        raise TransformError(
            f"{name} shrinks by the codec's operators: pass operators=LatentOperators.load(...), not "
            f"{type(operators).__name__}"
        )
    return operators


def _check_batch(latents: Tensor, what: str) -> None:
    if latents.ndim != 4:
        raise TransformError(f"{what} takes a batch of latents (N, C, h, w), not {tuple(latents.shape)}")


def _is_range(value: object) -> bool:
    numbers = isinstance(value, Sequence) and len(value) == 2 and all(isinstance(x, int | float) for x in value)
    return numbers and 0 < value[0] <= value[1]  # type: ignore[index]


def random_crops(
    count: int,
    shape: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    *,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw (count, 2) float heights and widths: area uniform, width / height log-uniform, the first of ten that fits.

    Where none does: the whole, cut to the nearest proportion that was asked for.
    """
    height, width = shape
    area = uniform(count * _TRIES, *scale, generator=generator) * height * width
    aspect = uniform(count * _TRIES, math.log(ratio[0]), math.log(ratio[1]), generator=generator).exp()
    crops = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], 1).reshape(count, _TRIES, 2)
    fits = (crops[..., 0] <= height + 0.5) & (crops[..., 1] <= width + 0.5)
    first = fits.int().argmax(1)  # 0 where none fits
    chosen = crops[torch.arange(count), first]
    proportion = min(max(width / height, ratio[0]), ratio[1])
    whole = torch.tensor([min(height, width / proportion), min(width, height * proportion)])
    limits = torch.tensor([float(height), float(width)])
    return torch.where(fits.any(1)[:, None], torch.minimum(chosen, limits), whole)


def _listed(items: object) -> str:
    return ", ".join(map(str, items))  # type: ignore[call-overload]
