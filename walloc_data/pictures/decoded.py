"""Conversion of decoder output to pixels."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from walloc_data.format import padding_for

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decoded_pixels"]


def decoded_pixels(decoded: "Tensor", *, height: int, width: int, cell_px: int) -> npt.NDArray[np.uint8]:
    """Round the output of `WallocCodec.decode` to 8 bits and remove the padding.

    Args:
        decoded: (C, H, W) float, from -0.5 (black) to 0.5 (white).
        height, width: size of the encoded picture.
        cell_px: side of a cell in pixels.

    Returns:
        (height, width, C) uint8.

    Example:
        >>> import torch
        >>> from walloc_data.pictures import decoded_pixels
        >>> decoded_pixels(torch.zeros(3, 48, 40), height=45, width=40, cell_px=8).shape
        (45, 40, 3)
    """
    import torch

    left, top, _, _ = padding_for(height, width, multiple=cell_px)
    cropped = decoded[:, top : top + height, left : left + width]
    pixels: npt.NDArray[np.uint8] = (
        ((cropped + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    )
    return pixels
