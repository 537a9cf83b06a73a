"""The first layer of a network for latents, for pixels in their place."""

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


class PixelConv2d(nn.Conv2d):
    """A convolution of standardised colours that sees the pixels which `like`, a convolution of cells, sees."""

    def __init__(self, like: nn.Conv2d, *, cell_px: int) -> None:
        (kernel, _), (stride, _), (padding, _) = like.kernel_size, like.stride, like.padding  # type: ignore[misc]
        super().__init__(
            3,
            like.out_channels,
            kernel * cell_px,
            stride=stride * cell_px,
            padding=padding * cell_px,
            bias=like.bias is not None,
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward((pixels.float() - self.mean) / self.std)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put another module where `path` leads."""
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
