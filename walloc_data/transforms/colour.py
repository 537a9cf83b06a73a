"""Brightness, contrast, saturation and grey, in the expanded values v, where pictures are linear in latents.

Brightness and contrast are exact up to the clipping of pixels at black and white, which latents cannot model;
saturation and grey use a fitted map. Results are companded again but not rounded.
"""

import torch
from torch import Tensor

from walloc_data.errors import TransformError
from walloc_data.latents import compand, expand
from walloc_data.transforms.base import LatentTransform, check_probability, coin, uniform
from walloc_data.transforms.operators import LatentOperators

__all__ = ["ColorJitter", "QuantizationNoise", "RandomGrayscale"]

Strength = float | tuple[float, float]


class _ColourTransform(LatentTransform):
    """Module with the colour operators of a codec as buffers."""

    grey: Tensor
    brightness_direction: Tensor
    grayscale_weight: Tensor
    grayscale_bias: Tensor
    mean_luma: Tensor

    def __init__(self, operators: LatentOperators) -> None:
        super().__init__()
        self.latent_bits, self.latent_channels = operators.latent_bits, len(operators.grey)
        self.register_buffer("grey", operators.grey[:, None, None])
        self.register_buffer("brightness_direction", operators.brightness[:, None, None])
        self.register_buffer("grayscale_weight", operators.grayscale.weight[:, :, 0, 0])
        self.register_buffer("grayscale_bias", operators.grayscale.bias[:, None, None])
        self.register_buffer("mean_luma", operators.mean_luma)

    def _expand(self, latents: Tensor) -> Tensor:
        return expand(latents, latent_bits=self.latent_bits)

    def _compand(self, v: Tensor) -> Tensor:
        return compand(v, latent_bits=self.latent_bits)

    def _to_grey(self, v: Tensor) -> Tensor:
        """Return the expanded latent (N, C, h, w) of the grey picture."""
        return torch.einsum("oc,nchw->nohw", self.grayscale_weight.to(v), v) + self.grayscale_bias

    def _mean_level(self, v: Tensor) -> Tensor:
        """Return the pictures' mean luma, (N, 1, 1, 1), in [-1/2, 1/2]."""
        return ((v - self.grey).mean((2, 3)) @ self.mean_luma.to(v))[:, None, None, None]


class ColorJitter(_ColourTransform):
    """Change brightness, contrast and saturation, in this order, by factors drawn for each sample.

    Args:
        operators: the codec's (`LatentOperators.load`).
        brightness, contrast, saturation: a factor is drawn uniformly from [max(0, 1 - s), 1 + s], or from the given
            (low, high), as in torchvision: 1 changes nothing. Brightness multiplies pixels; contrast blends with the
            picture's mean grey; saturation blends with its grey version.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.transforms import ColorJitter, LatentOperators
        >>> latents, labels = next(iter(LatentDataset("my-latents").loader(batch_size=8)))  # (8, 12, 12, 12) int8
        >>> jitter = ColorJitter(LatentOperators.load("my-latents"), brightness=0.4, contrast=(0.8, 1.2))
        >>> jitter
        ColorJitter(brightness=(0.6, 1.4), contrast=(0.8, 1.2), saturation=(1.0, 1.0))
        >>> jitter(latents).shape, jitter(latents).dtype
        (torch.Size([8, 12, 12, 12]), torch.float32)
    """

    def __init__(
        self,
        operators: LatentOperators,
        *,
        brightness: Strength = 0.0,
        contrast: Strength = 0.0,
        saturation: Strength = 0.0,
    ) -> None:
        super().__init__(operators)
        self.brightness = _range("brightness", brightness)
        self.contrast = _range("contrast", contrast)
        self.saturation = _range("saturation", saturation)

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        n = len(latents)
        factors = [
            uniform(n, *bounds, generator=generator).to(latents.device)[:, None, None, None]
            for bounds in (self.brightness, self.contrast, self.saturation)
        ]
        brightness, contrast, saturation = factors
        v = self._expand(latents)
        if self.brightness != (1.0, 1.0):
            # Pixels lie in [-1/2, 1/2]: black is at -1/2, so scaling x + 1/2 also moves the offset.
            v = brightness * (v - self.grey) + self.grey + (brightness - 1) * 0.5 * self.brightness_direction
        if self.contrast != (1.0, 1.0):
            flat = self.grey + self._mean_level(v) * self.brightness_direction
            v = contrast * v + (1 - contrast) * flat
        if self.saturation != (1.0, 1.0):
            v = saturation * v + (1 - saturation) * self._to_grey(v)
        return self._compand(v)

    def extra_repr(self) -> str:
        return f"brightness={self.brightness}, contrast={self.contrast}, saturation={self.saturation}"


class RandomGrayscale(_ColourTransform):
    """Convert each sample to grey with probability p.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.transforms import LatentOperators, RandomGrayscale
        >>> latents, labels = next(iter(LatentDataset("my-latents").loader(batch_size=8)))  # (8, 12, 12, 12) int8
        >>> RandomGrayscale(LatentOperators.load("my-latents"), p=0.5)(latents).shape
        torch.Size([8, 12, 12, 12])
    """

    def __init__(self, operators: LatentOperators, *, p: float = 0.1) -> None:
        super().__init__(operators)
        self.p = check_probability(p)

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        chosen = coin(len(latents), self.p, generator=generator).to(latents.device)
        result = latents.float() if latents.dtype != torch.float32 else latents.clone()
        if bool(chosen.any()):
            result[chosen] = self._compand(self._to_grey(self._expand(latents[chosen])))
        return result

    def extra_repr(self) -> str:
        return f"p={self.p}"


class QuantizationNoise(LatentTransform):
    """Add noise uniform in (-1/2, 1/2) steps: other values that would have been stored as the same integer.

    Example:
        >>> import torch
        >>> from walloc_data.transforms import QuantizationNoise
        >>> latents = torch.randint(-128, 128, (16, 12, 20, 20)).to(torch.int8)
        >>> noisy = QuantizationNoise()(latents)
        >>> noisy.dtype, ((noisy - latents).abs() <= 0.5).all().item()
        (torch.float32, True)
    """

    def transform(self, latents: Tensor, *, generator: torch.Generator | None) -> Tensor:
        noise = torch.rand(latents.shape, generator=generator) - 0.5
        return latents.float() + noise.to(latents.device)


def _range(name: str, strength: Strength) -> tuple[float, float]:
    low, high = strength if isinstance(strength, tuple) else (max(0.0, 1 - strength), 1 + strength)
    if not 0 <= low <= high:
        raise TransformError(
            f"{name} must be a strength of at least 0 or a range (low, high) of factors, not {strength!r}"
        )
    return float(low), float(high)
