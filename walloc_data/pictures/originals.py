"""Access to source pictures as they were encoded: `original_pictures`."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from walloc_data.errors import SourceError
from walloc_data.format import EncodeSettings
from walloc_data.pictures.decode import decode_picture
from walloc_data.pictures.resizing import resize_and_crop

__all__ = ["original_pictures"]


class Positions(Protocol):
    """Interface of a `walloc_data.sources.Source` that is read by position."""

    location: str
    num_items: int | None

    def read(self, index: int) -> Any:
        """Return the sample at a position, with the picture file's bytes as `data`."""


def original_pictures(source: Positions, *, settings: EncodeSettings) -> Callable[[int], npt.NDArray[np.uint8]]:
    """Return a function from a position in the source to its picture, upright and resized: (H, W, 3) uint8.

    Raises:
        SourceError: the source is read in fragments, not by position; in the function: the picture does not exist.

    Example:
        >>> from walloc_data.pictures import original_pictures
        >>> from walloc_data.format import EncodeSettings
        >>> from walloc_data.sources import open_source
        >>> picture = original_pictures(open_source("pictures"), settings=EncodeSettings(size_px=96))
        >>> picture(4).shape, picture(4).dtype
        ((96, 96, 3), dtype('uint8'))
    """
    if source.num_items is None:
        raise SourceError(f"{source.location}: read in fragments, not by position; use a source with positions")
    num_items = source.num_items

    def picture(index: int) -> npt.NDArray[np.uint8]:
        if not 0 <= index < num_items:
            raise SourceError(f"{source.location}: no picture {index}; is this the source that was encoded?")
        image = decode_picture(source.read(index).data, settings=settings)
        return resize_and_crop(image, settings=settings)

    return picture
