"""Deterministic decoding of picture files to RGB pixels.

    EXIF orientation     applied, if it can be read
    alpha, transparency  composited over the settings' background
    palette, 1-bit, grey converted to RGB
    CMYK, YCbCr, HSV     converted to RGB by Pillow's formulas; embedded colour profiles are not applied
    16 bits, PNG, TIFF   one channel: value / 257, rounded; colour: the high byte. With the setting max_value, both:
                         255 value / max_value, rounded. TIFF of 12 bits: its range ends at 4095
    10 to 16 bits, other scaled by the range stated in the file (PPM, JPEG 2000, AVIF)
    TIFF bands           the first three (one, in grey), and alpha
    animations           the first frame, as Pillow opens it
    floats, LAB          refused: their conversion to RGB is ambiguous

Lost parts of a picture (bands, frames, low bits) are reported to the caller, who counts them. Files that Pillow cannot
read completely (truncated, empty, not a picture, larger than the limit) raise `PictureError`.
"""

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from walloc_data.errors import WallocDataError
from walloc_data.format import EncodeSettings
from walloc_data.pictures.deep import RangeError, deep_raw_mode, scaled_to_eight_bits, to_eight_bits
from walloc_data.pictures.formats import FORMATS
from walloc_data.pictures.memory import is_machine_error, lacks_memory

__all__ = ["PictureError", "decode_picture"]

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAMPLES_PER_PIXEL, _EXTRA_SAMPLES = 277, 338  # tags of TIFF
_limits = threading.Lock()  # Pillow's limits are global: concurrent uses change them only once
_num_users, _pillows_own = 0, (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, False)
_WEBP_REFUSAL = "could not create decoder object"  # Pillow's, for a WebP file that libwebp does not accept
_ADDRESS = re.compile(r"<?[\w.]* ?object at 0x[0-9a-f]+>?")


class PictureError(WallocDataError, ValueError):
    """The picture cannot be encoded; the message becomes the reason in the failures file."""


@contextmanager
def _limits_of_ours() -> Iterator[None]:
    """Context: disable Pillow's limits (`max_pixels` is checked instead) and log, and refuse truncated files.

    The previous state is restored when the last thread leaves.
    """
    global _num_users, _pillows_own
    log = logging.getLogger("PIL.TiffImagePlugin")  # it also logs errors that it raises
    with _limits:
        _num_users += 1
        if _num_users == 1:
            _pillows_own = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, log.disabled
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, log.disabled = None, False, True
    try:
        yield
    finally:
        with _limits:
            _num_users -= 1
            if _num_users == 0:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, log.disabled = _pillows_own


def decode_picture(data: bytes, *, settings: EncodeSettings, left_out: list[str] | None = None) -> Image.Image:
    """Decode one picture file to an RGB image, upright, without alpha.

    Args:
        data: bytes of the file.
        settings: `background`, `max_pixels` and `max_value` are used.
        left_out: receives a description of each lost part: bands, frames, low bits.

    Raises:
        PictureError: the picture cannot be decoded; the message is the reason.
        MemoryError, OSError: errors of the machine, not of the picture.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.format import EncodeSettings
        >>> from walloc_data.pictures import decode_picture
        >>> image = decode_picture(Path("pictures/cat/0.jpg").read_bytes(), settings=EncodeSettings())
        >>> image.mode, image.size
        ('RGB', (128, 128))
    """
    if not data:
        raise PictureError("0 bytes")
    try:
        with _limits_of_ours(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata; only the pixels matter
            return _decode(data, settings=settings, left_out=left_out if left_out is not None else [])
    except PictureError:
        raise
    except RangeError as error:
        raise PictureError(str(error)) from error
    except UnidentifiedImageError as error:
        if data[:4] in (b"II*\0", b"MM\0*"):
            raise PictureError("a TIFF with unsupported bands, bits or compression") from error
        raise PictureError("not a picture in a supported format") from error
    except Exception as error:  # Pillow's plugins raise many kinds on damaged files
        if is_machine_error(error) and lacks_memory(error, data):
            raise
        if str(error) == _WEBP_REFUSAL:
            raise PictureError("a truncated or damaged WebP file") from error
        reason = _ADDRESS.sub("", str(error)).strip()
        raise PictureError(f"{type(error).__name__}: {reason}" if reason else type(error).__name__) from error


def _decode(data: bytes, *, settings: EncodeSettings, left_out: list[str]) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > settings.max_pixels:
            raise PictureError(f"{image.width} x {image.height} pixels; at most {settings.max_pixels} are read")
        if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO derives its frames from the first
            left_out.append("frames after the first")
        if image.format == "TIFF":
            left_out.extend(_tiff_bands(image))
        raw_mode = deep_raw_mode(image)
        image.load()
        if image.width * image.height == 0:
            raise PictureError(f"{image.width} x {image.height} pixels")
        turn = _TURNS.get(_orientation(image))
        whole: Image.Image = image
        if raw_mode is not None:
            whole = to_eight_bits(image, data, raw_mode, max_value=settings.max_value, left_out=left_out)
        rgb = _to_rgb(whole, background=settings.background)
        return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata does not affect the pixels
        return 1


def _tiff_bands(image: Image.Image) -> Iterator[str]:
    """Yield descriptions of bands of a TIFF that Pillow drops or interprets without the file stating it."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    number, kept = tags.get(_SAMPLES_PER_PIXEL, 1), len(image.getbands())
    if isinstance(number, int) and number > kept:
        yield f"TIFF bands after the first {kept} of {number}"
    if number == 4 and image.mode == "RGBA" and _EXTRA_SAMPLES not in tags:
        yield "the fourth TIFF band, whose meaning the file does not state: it is treated as alpha"


def _to_rgb(image: Image.Image, *, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit PGM and JPEG 2000, which Pillow has scaled to 65535
        return Image.fromarray(scaled_to_eight_bits(np.asarray(image), max_value=65535)).convert("RGB")
    if image.mode in ("F", "LAB"):
        raise PictureError(f"pixels of mode {image.mode} have no defined conversion to RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
