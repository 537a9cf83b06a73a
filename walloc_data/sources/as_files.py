"""Conversion of pictures in memory to the bytes of a file with the same pixels.

bytes                          as they are
PIL, opened and not yet read   the bytes of its file
PIL, read or made in memory    its pixels, without loss; EXIF orientation applied, as for files
uint8 (H, W[, 1 | 3 | 4])      its pixels; NumPy, or whatever `numpy.asarray` takes
uint8 (C, H, W), torch         its pixels; C is 1, 3 or 4
uint16 (H, W)                  a PNG of 16 bits
bool                           0 and 255
floats                         where all values are multiples of 1/255, as torchvision's `ToTensor` makes them
"""

import io
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from walloc_data.pictures import FORMATS

__all__ = ["NoPictureError", "as_file", "is_picture"]

_TOLERANCE = 1e-3  # of a level: float32 rounds x / 255 * 255 by less than 1e-4


class NoPictureError(ValueError):
    """Error for an object that is not a readable picture; the message has the reason."""


def is_picture(value: Any) -> bool:
    """Return whether `as_file` may take a value: bytes, a PIL picture or an array of two or three axes."""
    if isinstance(value, bytes | bytearray | memoryview) or _is_pil(value):
        return True
    shape = getattr(value, "shape", None)
    return shape is not None and len(shape) in (2, 3)


def as_file(value: Any) -> bytes:
    """Return a picture file with the pixels of `value`.

    Raises:
        NoPictureError: the value is not of a kind listed above.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if _is_pil(value):
        return _unread_file(value) or _file_of_image(value)
    if not hasattr(value, "shape"):
        raise NoPictureError(f"a {type(value).__name__} is no picture: bytes, a path, a PIL picture and arrays are")
    return _file_of_array(_channels_last(value))


def _is_pil(value: Any) -> bool:
    module = sys.modules.get("PIL.Image")  # loaded if `value` is a PIL picture
    return module is not None and isinstance(value, module.Image)


def _unread_file(image: Any) -> bytes | None:
    """Return the bytes of the file of a PIL picture; None if its pixels may have changed since it was opened."""
    from PIL import Image, ImageFile

    file = getattr(image, "fp", None)
    if not isinstance(image, ImageFile.ImageFile) or not image.tile or file is None or image.tell():
        return None
    try:
        before = file.tell()
        file.seek(0)
        data: bytes = file.read()
        file.seek(before)
        with Image.open(io.BytesIO(data), formats=FORMATS) as again:  # `draft` would have made it smaller, or grey
            return data if (again.size, again.mode) == (image.size, image.mode) else None
    except (OSError, ValueError, AttributeError):
        return None


def _file_of_image(image: Any) -> bytes:
    from PIL import Image, ImageOps

    image.load()
    upright: Any = ImageOps.exif_transpose(image)
    if upright.mode in ("RGB", "L") and "transparency" not in upright.info:
        return _portable(np.asarray(upright))
    buffer = io.BytesIO()
    if upright.mode in ("1", "LA", "RGBA", "P", "RGB", "L") or upright.mode.startswith("I;16"):
        upright.save(buffer, "PNG", compress_level=1)
    elif upright.mode == "I":
        values = np.asarray(upright)
        if values.min() < 0 or values.max() > 65535:
            raise NoPictureError(f"pixels of mode I from {values.min()} to {values.max()}: at most 16 bits are read")
        Image.fromarray(values.astype(np.uint16)).save(buffer, "PNG", compress_level=1)
    elif upright.mode in ("CMYK", "F", "LAB"):
        upright.save(buffer, "TIFF")
    else:
        return _portable(np.asarray(upright.convert("RGB")))
    return buffer.getvalue()


def _channels_last(value: Any) -> npt.NDArray[Any]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        array = value.detach().cpu().numpy()
        return np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    return np.asarray(value)


def _file_of_array(array: npt.NDArray[Any]) -> bytes:
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))):
        raise NoPictureError(
            f"an array of shape {shape}: pictures are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), tensors (C, H, W)"
        )
    if array.size == 0:
        raise NoPictureError(f"an array of shape {shape} without pixels")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        array = _levels(array)
    if array.dtype == np.uint8 and not (array.ndim == 3 and shape[2] == 4):
        return _portable(array)
    if not (array.dtype == np.uint8 or (array.dtype == np.uint16 and array.ndim == 2)):
        raise NoPictureError(
            f"an array of {array.dtype} and shape {shape}: pictures are uint8, or uint16 of one channel"
        )
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _levels(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    values = array.astype(np.float64) * 255
    levels = np.rint(values)
    if not (np.abs(values - levels).max() <= _TOLERANCE and levels.min() >= 0 and levels.max() <= 255):
        raise NoPictureError(
            f"floats from {array.min():.4g} to {array.max():.4g} that are not all multiples of 1/255 in [0, 1]: pass "
            "pictures without transforms"
        )
    return levels.astype(np.uint8)


def _portable(array: npt.NDArray[np.uint8]) -> bytes:
    """Return a PGM or PPM file: the pixels behind a line of text."""
    kind = "P6" if array.ndim == 3 else "P5"
    return f"{kind}\n{array.shape[1]} {array.shape[0]}\n255\n".encode() + np.ascontiguousarray(array).tobytes()
