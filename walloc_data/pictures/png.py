"""Writing of PNG files in bands, for pictures that are too large for memory."""

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

__all__ = ["write_png"]

_COLOUR_TYPES = {1: 0, 3: 2}  # by channels: grey, RGB
_UP = 2  # the filter that stores each row as its difference from the row above


def write_png(
    file: BinaryIO, bands: Iterable[npt.NDArray[np.uint8]], *, height: int, width: int, channels: int
) -> None:
    """Write a picture of 8 bits per channel, band by band.

    Args:
        file: open for writing.
        bands: (rows, width, channels) each, from top to bottom; `height` rows in all.
        height, width: of the picture, in pixels.
        channels: 3 for RGB, 1 for grey.

    Example:
        >>> import io
        >>> import numpy as np
        >>> from PIL import Image
        >>> from walloc_data.pictures.png import write_png
        >>> file, picture = io.BytesIO(), np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
        >>> write_png(file, [picture[:3], picture[3:]], height=4, width=5, channels=3)
        >>> bool((np.asarray(Image.open(file)) == picture).all())
        True
    """
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0))
    packer, above, num_rows = zlib.compressobj(6), np.zeros((1, width * channels), np.uint8), 0
    for band in bands:
        rows = np.ascontiguousarray(band).reshape(len(band), width * channels)
        filtered = np.full((len(rows), 1 + width * channels), _UP, np.uint8)
        np.subtract(rows, np.concatenate([above, rows[:-1]]), out=filtered[:, 1:])  # modulo 256, as PNG has it
        if data := packer.compress(filtered.data):
            _chunk(file, b"IDAT", data)
        above, num_rows = rows[-1:].copy(), num_rows + len(rows)
    if num_rows != height:
        raise ValueError(f"{num_rows} rows of {height}")
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
