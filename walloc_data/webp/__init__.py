"""A writer of lossless WebP (VP8L) for packed latents: about as small as libwebp's default in a fraction of its
time (benchmarks/results/encode_speed.json), and the same bytes whatever libwebp is there. Any WebP decoder reads them.

libwebp looks for what photographs and graphics have: repeated strings, palettes, colours that move together. Packed
latents have none of it: twelve channels of noise whose strength changes from place to place. What pays is one of a
few predictors for every 4 x 4 block, and a set of prefix codes for every class of blocks, classes found by iterating
between blocks and codes (Lloyd's algorithm with code length as the distance). That vectorises, so numpy does it.

Format: RFC 9649, "WebP Image Format", section 3. Used here: the predictor transform, meta prefix codes, no colour
cache, no backward references.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from walloc_data.errors import CodecError
from walloc_data.webp.blocks import EFFORTS, classify, grid_of, predict
from walloc_data.webp.writing import write

__all__ = ["MAX_SIDE", "WRITER_VERSION", "check_sides", "encode_lossless"]

# Raised by any change of the bytes: a conversion that was begun by one version is not finished by another.
WRITER_VERSION = "2"

# libwebp's limit, and so that of nearly every decoder. The format itself could say 16384.
MAX_SIDE = 16383


def check_sides(height: int, width: int) -> None:
    """Raise CodecError unless both sides are in [1, MAX_SIDE] pixels.

    Example:
        >>> from walloc_data.webp import check_sides
        >>> check_sides(16, 16384)
        Traceback (most recent call last):
        walloc_data.errors.CodecError: WebP takes sides from 1 to 16383 pixels, not 16384 x 16
    """
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise CodecError(f"WebP takes sides from 1 to {MAX_SIDE} pixels, not {width} x {height}")


def encode_lossless(pictures: npt.NDArray[np.uint8], *, effort: Literal["default", "fast"] = "default") -> list[bytes]:
    """Write pictures as lossless WebP.

    Args:
        pictures: (N, H, W, 3) uint8, sides from 1 to 16383 pixels. Many are faster than one at a time, and take memory
            together: about 300 bytes a pixel and 60 kB a picture. `walloc_data.latents.encode_webps` bounds that.
        effort: "fast" tries fewer predictors and classes: more bytes in less time.

    Returns:
        N files, whose pixels equal the pictures'. The bytes of each depend on its picture and the effort alone.

    Raises:
        CodecError: `pictures` are of another shape or type, or `effort` is unknown.

    Example:
        >>> import io
        >>> import numpy as np
        >>> from PIL import Image
        >>> from walloc_data.webp import encode_lossless
        >>> pictures = np.random.default_rng(0).integers(256, size=(2, 32, 48, 3), dtype=np.uint8)
        >>> files = encode_lossless(pictures)
        >>> np.array_equal(Image.open(io.BytesIO(files[1])), pictures[1])
        True
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise CodecError(f"lossless WebP takes pictures (N, H, W, 3) uint8, not {pictures.dtype} {pictures.shape}")
    if effort not in EFFORTS:
        raise CodecError(f"effort must be one of {', '.join(EFFORTS)}, not {effort!r}")
    count, height, width = pictures.shape[:3]
    check_sides(height, width)
    if count == 0:
        return []
    grid = grid_of(height, width)
    tried = EFFORTS[effort]
    residuals, modes, cost = predict(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)), grid, tried)
    classes = classify(residuals, modes, cost, grid, tried)
    return write(residuals, modes, classes, grid)
