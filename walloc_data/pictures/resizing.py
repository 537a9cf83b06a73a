"""Resizing and cropping of decoded pictures to the encoded size."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from walloc_data.format import EncodeSettings
from walloc_data.pictures.decode import PictureError

__all__ = ["crop_box", "encoded_size", "resize_and_crop"]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
Size = tuple[int, int]  # (width, height)
Box = tuple[int, int, int, int]  # left, top, right, bottom


def resize_and_crop(image: Image.Image, *, settings: EncodeSettings) -> npt.NDArray[np.uint8]:
    """Resize and crop a picture according to the settings: (H, W, 3) uint8.

    Pillow resizes with antialiasing. Only the crop is resized, with the surrounding pixels that the filter needs, which
    equals resizing first and cropping afterwards.

    Raises:
        PictureError: the result would have more than the settings' `max_pixels`, or a side shorter than `snap`.

    Example:
        >>> from PIL import Image
        >>> from walloc_data.format import EncodeSettings
        >>> from walloc_data.pictures import resize_and_crop
        >>> image = Image.new("RGB", (300, 200))
        >>> resize_and_crop(image, settings=EncodeSettings(size_px=96)).shape
        (96, 96, 3)
        >>> resize_and_crop(image, settings=EncodeSettings(resize="shorter:96", snap=32)).shape
        (96, 128, 3)
    """
    box, size = _placed(image.size, settings)
    if (box[2] - box[0], box[3] - box[1]) == size:  # at scale 1 resizing would be a slow copy
        return np.asarray(image if size == image.size else image.crop(box))
    return np.asarray(image.resize(size, _FILTERS[settings.filter], box=box))


def crop_box(size: Size, *, settings: EncodeSettings) -> Box:
    """Return the crop (left, top, right, bottom) that `resize_and_crop` takes of a picture of (width, height) pixels.

    Example:
        >>> from walloc_data.format import EncodeSettings
        >>> from walloc_data.pictures import crop_box
        >>> crop_box((300, 200), settings=EncodeSettings(size_px=96))
        (50, 0, 250, 200)
    """
    return _placed(size, settings)[0]


def encoded_size(size: Size, *, settings: EncodeSettings) -> Size:
    """Return the (width, height) in pixels at which a picture of (width, height) pixels is encoded.

    Example:
        >>> from walloc_data.format import EncodeSettings
        >>> from walloc_data.pictures import encoded_size
        >>> encoded_size((300, 200), settings=EncodeSettings(resize="shorter:96"))
        (144, 96)
    """
    return _placed(size, settings)[1]


def _placed(size: Size, settings: EncodeSettings) -> tuple[Box, Size]:
    """Return the crop of a picture in its own pixels, and the size to which it is resized. Integer arithmetic only."""
    (width, height), side, snap = size, settings.size_px, settings.snap or 1
    if side is not None and settings.resize == "crop":
        short = min(size)
        return _centre(size, (short, short)), (side, side)
    if side is not None and settings.resize == "square":
        return (0, 0, width, height), (side, side)
    short = min(size)
    wide, high = size if side is None else (_scaled(width, side, short), _scaled(height, side, short))
    kept = (wide // snap * snap, high // snap * snap)
    if 0 in kept:
        raise PictureError(f"{wide} x {high} pixels: a side is shorter than {snap} (--snap)")
    if kept[0] * kept[1] > settings.max_pixels:
        raise PictureError(f"{kept[0]} x {kept[1]} pixels after resizing; at most {settings.max_pixels} are encoded")
    if side is None:
        return _centre(size, kept), kept
    parts = (
        length if whole == part else min(length, max(1, _scaled(part, short, side)))
        for length, whole, part in zip(size, (wide, high), kept, strict=True)
    )
    return _centre(size, (next(parts), next(parts))), kept


def _scaled(length: int, numerator: int, denominator: int) -> int:
    """Return length * numerator / denominator, rounded half up."""
    return (2 * length * numerator + denominator) // (2 * denominator)


def _centre(size: Size, part: Size) -> Box:
    left, top = (size[0] - part[0]) // 2, (size[1] - part[1]) // 2
    return left, top, left + part[0], top + part[1]
