"""Classification of decoding errors: errors of the machine, or of the picture."""

import io

import numpy as np
from PIL import Image

from walloc_data.pictures.formats import FORMATS

__all__ = ["is_machine_error", "lacks_memory"]

_BYTES_PER_PIXEL = 16  # upper bound of decoding: a few copies as RGBA
_MARGIN_BYTES = 2**26


def is_machine_error(error: BaseException) -> bool:
    """Return whether a decoding error may be an error of the machine: out of memory, or an OSError with an errno.

    Pillow's errors for damaged files have no errno.
    """
    if isinstance(error, OSError):
        return error.errno is not None or "out of memory" in str(error)
    return isinstance(error, MemoryError) or _is_torch_memory(error)


def _is_torch_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def lacks_memory(error: BaseException, data: bytes) -> bool:
    """Return whether the machine had too little memory for a picture.

    A damaged file may request any amount: if there is enough for a picture of its size, the file is damaged.
    """
    if not (isinstance(error, MemoryError) or "out of memory" in str(error)):
        return True
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            num_pixels = image.width * image.height
        np.empty(_BYTES_PER_PIXEL * num_pixels + _MARGIN_BYTES, np.uint8)
    except MemoryError:
        return True
    except Exception:  # its header is damaged, too
        return False
    return False
