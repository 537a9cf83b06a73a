"""Conversion of PNG and TIFF pictures of more than 8 bits per value to 8 bits.

Both formats store 10- and 12-bit data in 16 bits without stating the range. Interpreted as 0 to 65535, such pictures
are nearly black. So the range is a setting, `EncodeSettings.max_value`; without it, suspicious pictures are reported.
"""

import io
import sys

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["RangeError", "deep_raw_mode", "scaled_to_eight_bits", "to_eight_bits"]

_SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_SUSPICIOUS = (1023, 4095, 16383)  # largest values of 10, 12 and 14 bits
_BITS, _PLANES = 258, 284  # tags of TIFF: of each band; whether the bands are stored one after another (2)


class RangeError(ValueError):
    """The range of values is unknown, or exceeded."""


def deep_raw_mode(image: Image.Image) -> str | None:
    """Return Pillow's raw mode of an opened PNG or TIFF; None if it has at most 8 bits.

    Raises:
        RangeError: Pillow would read the file incorrectly.
    """
    if image.format not in ("PNG", "TIFF") or not image.tile:  # type: ignore[attr-defined]
        return None
    args = image.tile[0].args  # type: ignore[attr-defined]
    mode = args[0] if isinstance(args, tuple) else args
    if image.format == "TIFF" and image.tile[0].codec_name == "raw" and not image.mode.startswith(("I", "F")):  # type: ignore[attr-defined]
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(_PLANES, 1) == 2 and max(tags.get(_BITS, (1,))) > 8:  # Pillow takes every byte for a value
            raise RangeError("TIFF of 16 bits with its bands stored one after another, uncompressed, is not read")
    return mode if isinstance(mode, str) and (image.mode.startswith("I") or ";16" in mode) else None


def to_eight_bits(
    image: Image.Image, data: bytes, raw_mode: str, *, max_value: int | None, left_out: list[str]
) -> Image.Image:
    """Convert a loaded picture to 8 bits per value; alpha is unchanged.

    Args:
        image: picture loaded by Pillow; colour pictures have the high bytes only.
        data: the picture file, which is decoded again for the low bytes.
        raw_mode: result of `deep_raw_mode`.
        max_value: value of white; None: 65535.
        left_out: receives descriptions of lost parts.

    Raises:
        RangeError: values exceed the range, or Pillow cannot read them.
    """
    if image.mode.startswith("I"):
        if "transparency" in image.info:
            left_out.append("transparent value of 16-bit grey")
        values = np.asarray(image)
        stated = 4095 if raw_mode == "I;12" else None
        if stated is None and max_value is None:
            _warn(int(values.max()), left_out)
        return Image.fromarray(scaled_to_eight_bits(values, max_value=stated or max_value or 65535))
    high = np.asarray(image)  # (H, W, 3 or 4) uint8
    if max_value is None:
        _warn(int(high[..., :3].max()) * 257, left_out)
        return image
    if raw_mode.partition(";")[0] not in ("RGB", "RGBX", "RGBA") or "transparency" in image.info:
        raise RangeError(f"16 bits with transparency of this kind ({raw_mode}) are not read with max_value")
    if image.format == "TIFF" and image.tag_v2.get(_PLANES, 1) == 2:  # type: ignore[attr-defined]
        raise RangeError("TIFF of 16 bits with its bands stored one after another is not read with max_value")
    low = np.asarray(_opened_swapped(data, raw_mode, image.format or ""))
    values = high[..., :3].astype(np.uint16) << 8 | low[..., :3]
    colours = scaled_to_eight_bits(values, max_value=max_value)
    return Image.fromarray(np.concatenate([colours, high[..., 3:]], axis=2))


def scaled_to_eight_bits(values: npt.NDArray[np.generic], *, max_value: int) -> npt.NDArray[np.uint8]:
    """Return 255 value / max_value, rounded: any shape of integers in [0, max_value] to uint8."""
    largest, smallest = int(values.max()), int(values.min())
    if smallest < 0 or (largest > 65535 and max_value == 65535):
        raise RangeError("the range of integer pixels of more than 16 bits is unknown")
    if largest > max_value:
        raise RangeError(f"a value of {largest} is beyond max_value, which is {max_value}")
    scaled: npt.NDArray[np.uint8] = ((values.astype(np.uint32) * 255 + max_value // 2) // max_value).astype(np.uint8)
    return scaled


def _opened_swapped(data: bytes, raw_mode: str, kind: str) -> Image.Image:
    """Return the low bytes, by decoding the picture again with the other byte order."""
    image = Image.open(io.BytesIO(data), formats=(kind,))
    other = raw_mode[:-1] + _SWAPPED[raw_mode[-1]]
    tiles = image.tile
    image.tile = [
        tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other) for tile in tiles
    ]
    image.load()
    return image


def _warn(largest: int, left_out: list[str]) -> None:
    limit = next((limit for limit in _SUSPICIOUS if largest <= limit), None)
    if limit is None:
        left_out.append("all but 8 of 16 bits a value")
    else:
        left_out.append(
            f"all but 8 of 16 bits a value, with no value above {limit}: if that is the range, set "
            f"max_value={limit} (--max-value), or the picture is nearly black"
        )
