"""Decoded pictures at the size that is encoded."""

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["resize_and_crop"]

RESAMPLING = Image.Resampling.BICUBIC


def resize_and_crop(image: Image.Image, *, size_px: int | None) -> npt.NDArray[np.uint8]:
    """Scale the centre square to size_px x size_px, or keep the picture as it is: (H, W, 3) uint8.

    Bicubic with antialiasing, Pillow's. Cropping before scaling gives what scaling the shorter side to `size_px` and
    cropping gives, at one scale for both axes and without scaling what is cut away: the filter still sees the pixels
    beyond the square.

    Example:
        >>> from PIL import Image
        >>> from walloc_data.pictures import resize_and_crop
        >>> resize_and_crop(Image.new("RGB", (300, 200)), size_px=96).shape
        (96, 96, 3)
    """
    if size_px is not None and image.size != (size_px, size_px):
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        box = (left, top, left + short, top + short)
        # At scale 1 the filter would copy pixels, slowly.
        image = image.crop(box) if short == size_px else image.resize((size_px, size_px), RESAMPLING, box=box)
    return np.asarray(image)
