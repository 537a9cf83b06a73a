"""Reading and checking of packed latents that are adopted, not encoded.

In a plan whose source has `latents`, the samples are packed latents instead of pictures.
"""

import io
import math
import struct
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from walloc_data.dataset.decode import webp_size
from walloc_data.errors import CodecError, CorruptShardError, WallocDataError
from walloc_data.format import CodecSpec
from walloc_data.latents import check_packed_pixels, decode_webp, encode_webp
from walloc_data.pictures import PictureError
from walloc_data.webp import check_sides

__all__ = ["as_stored", "read_packed"]

_LOSSLESS = ("WEBP", "PNG", "TIFF", "BMP", "PPM")
Packed = npt.NDArray[np.uint8]


def read_packed(data: bytes, *, spec: CodecSpec) -> tuple[Packed, tuple[int, int]]:
    """Return a packed latent from a picture file, and the (width, height) in pixels of the encoded picture.

    The size includes any padding before encoding, which is not recorded.

    Returns:
        (n h, n w, colours) uint8.

    Raises:
        PictureError: the file is not a lossless picture, or cannot be a latent of this codec.
    """
    if not data:
        raise PictureError("0 bytes")
    if data[:4] == b"RIFF" and b"VP8 " in _chunks(data):
        raise PictureError("a lossy WebP file, which does not contain the exact values of a latent")
    try:
        with Image.open(io.BytesIO(data), formats=_LOSSLESS) as image:
            check_packed_pixels(image.height, image.width, context="a packed latent")
            mode = image.mode
            values = np.asarray(image)
    except UnidentifiedImageError as error:
        raise PictureError(f"not a lossless picture ({', '.join(_LOSSLESS)})") from error
    except WallocDataError as error:
        raise PictureError(str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on damaged files
        raise PictureError(f"{type(error).__name__}: {error}") from error
    if spec.channels == 1 and mode == "RGB" and (values == values[..., :1]).all():
        values = values[..., :1]
    elif mode != {1: "L", 3: "RGB"}.get(spec.channels):
        raise PictureError(f"a picture of mode {mode}, and the codec packs {spec.channels} colours without alpha")
    values = values[..., None] if values.ndim == 2 else values
    n = math.isqrt(spec.tiles)
    height, width = values.shape[:2]
    if height % n or width % n:
        raise PictureError(f"{width} x {height} values do not split into {n} x {n} tiles, as the codec packs them")
    try:
        check_sides(height, width)
    except CodecError as error:
        raise PictureError(str(error)) from error
    half = 2 ** (spec.latent_bits - 1)
    if spec.latent_bits < 8 and not (values.min() >= 128 - half and values.max() < 128 + half):
        raise PictureError(
            f"values from {values.min()} to {values.max()}; of {spec.latent_bits} bits they lie within 128 +- {half}"
        )
    return values, (width // n * spec.cell_px, height // n * spec.cell_px)


def as_stored(data: bytes, packed: Packed, *, effort: Literal["default", "fast"]) -> bytes:
    """Return the WebP file to store: the file itself if it is plain lossless WebP, else a new one with equal values."""
    if webp_size(memoryview(data)) == packed.shape[:2] and len(data) == 8 + struct.unpack("<I", data[4:8])[0]:
        return data
    stored = encode_webp(packed, effort=effort)
    if not np.array_equal(decode_webp(stored)[..., : packed.shape[2]], packed):
        raise CorruptShardError("the WebP file of a packed latent does not decode to the same values")
    return stored


def _chunks(data: bytes) -> set[bytes]:
    """Return names of a WebP file's chunks."""
    names: set[bytes] = set()
    offset = 12
    while offset + 8 <= len(data) and len(names) < 100:
        names.add(data[offset : offset + 4])
        (length,) = struct.unpack_from("<I", data, offset + 4)
        offset += 8 + length + length % 2
    return names
