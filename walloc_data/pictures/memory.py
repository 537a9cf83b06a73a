"""Errors while a picture is decoded that say more about the machine than about the picture."""

import io

import numpy as np
from PIL import Image

from walloc_data.pictures.formats import FORMATS

__all__ = ["is_machine_error", "lacks_memory"]

_BYTES_PER_PIXEL = 16  # more than decoding takes: a few copies as RGBA
_MARGIN_BYTES = 2**26


def is_machine_error(error: BaseException) -> bool:
    """Return whether an error that came up with a picture may say more about the machine than about the picture.

    Memory that ran out, and whatever the system itself refused: Pillow's own errors about damaged files have no number.
    """
    if isinstance(error, OSError):
        return error.errno is not None or "out of memory" in str(error)
    return isinstance(error, MemoryError) or _is_torch_memory(error)


def _is_torch_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def lacks_memory(error: BaseException, data: bytes) -> bool:
    """Return whether the machine had too little memory for a picture, rather than the picture asking for too much.

    A damaged file may ask for any amount. Where there is plenty for a picture of its width and height, it is damaged.
    """
    if not (isinstance(error, MemoryError) or "out of memory" in str(error)):
        return True
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            num_pixels = image.width * image.height
        np.empty(_BYTES_PER_PIXEL * num_pixels + _MARGIN_BYTES, np.uint8)
    except MemoryError:
        return True
    except Exception:  # its header is damaged too
        return False
    return False
