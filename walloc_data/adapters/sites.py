"""Building blocks for `families.py`: the requested grid, the position of the stem, and common operations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from walloc_data.errors import ModelError

__all__ = [
    "Create", "Family", "Geometry", "Grid", "StemSite", "first_conv", "is_strided", "next_width", "resize_norm",
    "unstride",
]  # fmt: skip

Geometry = Literal["skip_early", "all_stages", "pixel_grid"]
Create = Callable[..., Any]


@dataclass(frozen=True)
class Grid:
    """Sizes that a family builds for.

    Attributes:
        geometry: which stages are fed.
        size: of a latent, (h, w) in cells.
        cell_px: pixels along one side of a cell.
        given: what the caller passes on to timm.
        residual_stem: the stem has blocks of its own (`ResidualStem`).
    """

    geometry: Geometry
    size: tuple[int, int]
    cell_px: int
    given: Mapping[str, Any]
    residual_stem: bool = False

    @property
    def stage_px(self) -> int:
        """Pixels along one side of a cell, as the stages count them: a fed stage of stride 8 takes it for 8."""
        return {"all_stages": 4, "skip_early": 8, "pixel_grid": self.cell_px}[self.geometry]

    @property
    def picture(self) -> tuple[int, int]:
        """Return the (height, width) in pixels of pictures for which the stages take latents of (h, w) cells."""
        return self.size[0] * self.stage_px, self.size[1] * self.stage_px

    def shuffle(self, *, stride_px: int) -> int:
        """Return the positions a side that a cell yields for a pixel stem of this stride; 1 but for pixel_grid."""
        if self.geometry != "pixel_grid":
            return 1
        if self.cell_px < stride_px:
            raise ModelError(
                f"cells of {self.cell_px} px are smaller than the stride of its pixel stem, {stride_px} px: use "
                "geometry 'all_stages' or 'skip_early'"
            )
        return self.cell_px // stride_px


@dataclass(frozen=True)
class StemSite:
    """Place and shape of a model's first convolution."""

    path: str  # of the module to replace, e.g. "patch_embed.proj"
    out_channels: int
    kernel_cells: int
    stride_cells: int = 1
    shuffle: int = 1
    bias: bool = True
    fresh: tuple[str, ...] = ()  # other modules whose weights do not come from a pixel model
    skipped: tuple[str, ...] = ()  # modules that became Identity
    feeds: str | None = None  # where stages were skipped: the first that was kept


@dataclass(frozen=True)
class Family:
    """Family of timm models that are changed in the same way.

    Example:
        >>> from walloc_data.adapters import FAMILIES
        >>> [resnets] = [family for family in FAMILIES if "resnet" in family.modules]
        >>> resnets.name, resnets.geometries
        ('ResNet, ResNeXt, SE-ResNet', ('skip_early', 'all_stages', 'pixel_grid'))
    """

    name: str
    modules: tuple[str, ...]  # in timm.models
    geometries: tuple[Geometry, ...]  # the first is the default
    examples: str
    build: Callable[[Create, Grid], tuple[Any, StemSite]]
    sized: bool = False  # timm builds its pixel models for pictures of one size, img_size=

    def picture(self, geometry: Geometry, size: tuple[int, int], *, cell_px: int) -> tuple[int, int]:
        """(height, width) in pixels of the pictures whose features the stages take latents of (h, w) cells for."""
        return Grid(geometry, size, cell_px, {}).picture


def resize_norm(norm: nn.Module, channels: int) -> None:
    """Replace a batch or layer norm by one of another width, with the same activation and eps."""
    widths = {"num_features": channels, "num_channels": channels, "normalized_shape": (channels,)}
    for attribute, value in widths.items():
        if hasattr(norm, attribute):
            setattr(norm, attribute, value)
    for name, fill in (("weight", 1.0), ("bias", 0.0)):
        if getattr(norm, name, None) is not None:
            setattr(norm, name, nn.Parameter(torch.full((channels,), fill)))
    for name, fill in (("running_mean", 0.0), ("running_var", 1.0)):
        if getattr(norm, name, None) is not None:
            setattr(norm, name, torch.full((channels,), fill))


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def is_strided(module: nn.Module) -> bool:
    stride = getattr(module, "stride", 1)
    return stride is not None and max(_pair(stride)) > 1


def _is_pool(module: nn.Module) -> bool:
    kinds = (nn.AvgPool2d, nn.MaxPool2d)
    return isinstance(module, kinds) or (type(module).__name__ == "BlurPool2d" and is_strided(module))


def unstride(stage: nn.Module, *, what: str) -> None:
    """Remove the stride of a stage: set the stride of convolutions to 1, and replace pools by Identity."""
    for name, module in list(stage.named_modules()):
        if isinstance(module, nn.Conv2d) and is_strided(module):
            if any(side % 2 == 0 for side in module.kernel_size):
                raise ModelError(
                    f"{what}: {name} has an even kernel {module.kernel_size}: its stride cannot be taken out"
                )
            module.stride = (1, 1)
        elif _is_pool(module) and is_strided(module):
            parent, _, leaf = name.rpartition(".")
            setattr(stage.get_submodule(parent), leaf, nn.Identity())


def first_conv(module: nn.Module, *, what: str) -> nn.Conv2d:
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            return child
    raise ModelError(f"{what}: no convolution was found")


def next_width(*modules: nn.Module) -> int:
    """Return the channels that the first convolution of these modules takes."""
    for module in modules:
        for child in module.modules():
            if isinstance(child, nn.Conv2d):
                return child.in_channels
    raise ModelError("nothing follows the stage that the stem would stand for")
