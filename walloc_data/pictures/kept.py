"""Second pictures of a sample, such as masks, cropped and resized like the first, without loss."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from walloc_data.errors import FormatError
from walloc_data.format import EncodeSettings
from walloc_data.pictures.decode import PictureError
from walloc_data.pictures.formats import FORMATS, MAX_FILE_BYTES
from walloc_data.pictures.resizing import Size, crop_box, encoded_size

__all__ = ["kept_picture", "png_size"]

_MODES = ("1", "L", "LA", "RGB", "RGBA", "I;16")


def kept_picture(data: bytes, *, size: Size, settings: EncodeSettings) -> bytes:
    """Return a second picture as PNG, cropped like the first picture and resized by nearest neighbour.

    Values are unchanged: palette indices become grey values, and colours are not converted.

    Args:
        data: bytes of the file.
        size: (width, height) of the first picture, upright, which the second must have, too.
        settings: settings of the resizing.

    Raises:
        PictureError: the picture cannot be read, or has another size.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from walloc_data.format import EncodeSettings
        >>> from walloc_data.pictures import kept_picture
        >>> Image.new("L", (300, 200), 7).save(file := io.BytesIO(), "PNG")
        >>> kept = kept_picture(file.getvalue(), size=(300, 200), settings=EncodeSettings(size_px=96))
        >>> Image.open(io.BytesIO(kept)).size, Image.open(io.BytesIO(kept)).getextrema()
        ((96, 96), (7, 7))
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > settings.max_pixels:
                    raise PictureError(f"{image.width} x {image.height} pixels; at most {settings.max_pixels} are read")
                image.load()
                upright: Image.Image = ImageOps.exif_transpose(image)
    except (PictureError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on damaged files
        raise PictureError(f"{type(error).__name__}: {error}") from error
    if upright.size != size:
        raise PictureError(f"{upright.width} x {upright.height} pixels, and the picture {size[0]} x {size[1]}")
    box, scaled = crop_box(size, settings=settings), encoded_size(size, settings=settings)
    kept = _plain(upright).resize(scaled, Image.Resampling.NEAREST, box=box)
    buffer = io.BytesIO()
    kept.save(buffer, "PNG")
    return buffer.getvalue()


def png_size(data: bytes) -> Size:
    """Return (width, height) of a PNG file, after decoding it.

    Raises:
        FormatError: the data is not a valid PNG file.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            size = image.size
            if size[0] * size[1] > MAX_FILE_BYTES:
                raise FormatError(f"a PNG of {size[0]} x {size[1]} pixels")
            image.load()
            return size
    except FormatError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise FormatError(f"not a readable PNG ({type(error).__name__}: {error})") from error


def _plain(image: Image.Image) -> Image.Image:
    """Convert an image to a mode of PNG without a palette, with unchanged values."""
    if image.mode == "P":
        return Image.fromarray(np.asarray(image))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise PictureError(f"values from {values.min()} to {values.max()}: at most 16 bits are kept")
        return Image.fromarray(values.astype(np.uint16))
    if image.mode not in _MODES:
        raise PictureError(f"pixels of mode {image.mode} are not supported")
    image.info.clear()
    return image
