"""Base class of the transforms of single latents or batches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from walloc_data.errors import TransformError
from walloc_data.regression import without_autocast

__all__ = ["Compose", "LatentTransform", "RandomApply"]


class LatentTransform(nn.Module):
    """Transform of latents, with the interface of `torchvision.transforms.v2`.

    Call it with (N, C, h, w) or (C, h, w), int8 or floats in the integers' units. Each sample of a batch draws its own
    parameters. Geometric transforms keep the dtype, the others return float32 without rounding: models take both.

    Random numbers are drawn on the CPU from `generator`, else from torch's global generator, so that a seed means the
    same on every device. In a loader's workers the global generator is seeded from (seed, epoch, sample).

    Attributes:
        latent_channels: number of channels of the latents; None: any.

    Raises:
        TransformError: the input is a picture or no tensor, or has another number of dimensions or channels.

    Example:
        >>> import torch
        >>> from walloc_data.transforms import LatentTransform
        >>> class Negate(LatentTransform):
        ...     def transform(self, latents, *, generator):
        ...         return -latents
        >>> Negate()(torch.full((12, 20, 20), 3, dtype=torch.int8)).unique()  # one latent, or a batch
        tensor([-3], dtype=torch.int8)
    """

    latent_channels: int | None = None

    def forward(self, latents: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        name, given = type(self).__name__, getattr(latents, "dtype", None)
        if not isinstance(latents, Tensor) or given in (torch.uint8, torch.bool):
            what = f"{given}, as pictures are" if isinstance(latents, Tensor) else type(latents).__name__
            raise TransformError(
                f"{name} takes latents as a tensor of int8 or floats, not {what}: encode pictures first, and turn "
                "arrays into tensors"
            )
        if latents.ndim not in (3, 4):
            raise TransformError(f"{name} takes latents (N, C, h, w) or (C, h, w), not {tuple(latents.shape)}")
        if self.latent_channels not in (None, latents.shape[-3]):
            raise TransformError(
                f"{name} takes latents of {self.latent_channels} channels, as its operators' codec makes them, not "
                f"{tuple(latents.shape)}"
            )
        batch = latents if latents.ndim == 4 else latents[None]
        with without_autocast(latents.device):
            result = self.transform(batch, generator=generator)
        return result if latents.ndim == 4 else result[0]

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        """Transform a batch: (N, C, h, w) to (N, C, h', w')."""
        raise NotImplementedError


class Compose(LatentTransform):
    """Sequence of transforms.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.transforms import Compose, LatentOperators, RandomCrop, RandomHorizontalFlip
        >>> latents, labels = next(iter(LatentDataset("my-latents").loader(batch_size=8)))  # (8, 12, 12, 12) int8
        >>> augment = Compose([RandomCrop(10), RandomHorizontalFlip(LatentOperators.load("my-latents").flip)])
        >>> augment(latents).shape
        torch.Size([8, 12, 10, 10])
    """

    def __init__(self, transforms: Sequence[LatentTransform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        for transform in self.transforms:
            latents = transform(latents, generator=generator)
        return latents


class RandomApply(LatentTransform):
    """Apply a transform to each sample with probability p. It must keep the shape.

    Example:
        >>> import torch
        >>> from walloc_data.transforms import QuantizationNoise, RandomApply
        >>> changed = RandomApply(QuantizationNoise(), p=0.3)(torch.zeros(1000, 12, 4, 4, dtype=torch.int8))
        >>> round(changed.flatten(1).any(1).float().mean().item(), 1)
        0.3
    """

    def __init__(self, transform: LatentTransform, *, p: float = 0.5) -> None:
        super().__init__()
        self.inner, self.p = transform, check_probability(p)

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        chosen = coin(len(latents), self.p, generator=generator).to(latents.device)
        changed = self.inner(latents, generator=generator)
        return torch.where(chosen[:, None, None, None], changed, latents.to(changed.dtype))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def coin(count: int, p: float, *, generator: torch.Generator | None) -> Tensor:
    """Draw (count,) bool, True with probability p; on the CPU."""
    return torch.rand(count, generator=generator) < p


def uniform(count: int, low: float, high: float, *, generator: torch.Generator | None) -> Tensor:
    """Draw (count,) float32 in [low, high); on the CPU."""
    return low + (high - low) * torch.rand(count, generator=generator)


def integers(count: int, low: Tensor | int, high: Tensor | int, *, generator: torch.Generator | None) -> Tensor:
    """Draw (count,) int64 in [low, high], both included; bounds may differ by sample. On the CPU."""
    span = torch.as_tensor(high) - torch.as_tensor(low) + 1
    return torch.as_tensor(low) + (torch.rand(count, generator=generator) * span).long().clamp_max(span - 1)


def check_probability(p: float) -> float:
    """Check that p is in [0, 1], and return it."""
    if not 0 <= p <= 1:
        raise TransformError(f"a probability lies in [0, 1], not {p!r}")
    return p
