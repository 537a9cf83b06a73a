"""Latents as integers: companding, packing into pictures, and lossless WebP files.

Nothing here depends on a codec. A latent is an integer tensor (N, C, h, w) in [-2^(bits-1), 2^(bits-1) - 1], int8 at 8
bits. Packing arranges n x n channels as tiles in each colour plane of one picture, so C = colours * n^2 (WaLLoC, arXiv
2412.09405, section 3).
"""

import io
import math
import os
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from walloc_data.errors import CodecError, CorruptShardError
from walloc_data.webp import check_sides, encode_lossless

if TYPE_CHECKING:  # verifying a data set needs no torch, whose import takes two seconds
    from torch import Tensor

__all__ = [
    "check_packed_pixels",
    "compand",
    "decode_webp",
    "encode_webp",
    "encode_webps",
    "expand",
    "expansion_table",
    "max_packed_pixels",
    "pack",
    "unpack",
]

# Largest packed latent that is read, which takes 25 bytes per pixel. With cells of 8 pixels it belongs to a picture of
# half a gigapixel, six times the converter's default limit (max_pixels).
DEFAULT_MAX_PACKED_PIXELS = 2**25
MAX_PACKED_PIXELS_NAME = "WALLOC_DATA_MAX_PACKED_PIXELS"

# Our writer needs about 300 bytes of memory per pixel. Larger latents (of 8-megapixel photographs) are left to libwebp.
OWN_WRITER_PIXELS = 2**19

# Pictures that our writer works on at once. Each takes about 60 kB for its tables of codes, beside that of its pixels.
_MAX_TOGETHER = 512

# (method, quality) of libwebp's lossless mode, for latents that our writer does not write; measured in
# benchmarks/results/encode_speed.json.
_EFFORT: dict[str, tuple[int, int]] = {"default": (4, 0), "fast": (2, 0)}


def _curve(latent_bits: int) -> tuple[float, float]:
    """Return (m, s): half the range of the companded values, and the scale of the normal distribution."""
    largest = (1 << (latent_bits - 1)) - 1
    return largest + 0.5 - 1e-3, largest / 1.85


def compand(v: "Tensor", *, latent_bits: int) -> "Tensor":
    """Compand real values into the open interval (-m, m), m = 2^(bits-1) - 0.501: u = 2 m (Phi(v / s) - 1/2).

    Takes any shape and float dtype. The inverse is `expand`.

    Example:
        >>> import torch
        >>> from walloc_data.latents import compand
        >>> compand(torch.tensor([-1000.0, 0.0, 1000.0]), latent_bits=8)
        tensor([-127.4990, 0.0000, 127.4990])
    """
    import torch

    m, s = _curve(latent_bits)
    return m * torch.erf(v / (s * math.sqrt(2)))


def expand(u: "Tensor", *, latent_bits: int) -> "Tensor":
    """Invert `compand`, for integers or real values: v = s Phi^-1(clip(u / 2m + 1/2, 1e-4, 1 - 1e-4)).

    Takes any shape; integer tensors become float32. At 8 bits, |v| < 256.

    Example:
        >>> import torch
        >>> from walloc_data.latents import compand, expand
        >>> v = torch.tensor([-100.0, 0.0, 12.5])
        >>> expand(compand(v, latent_bits=8), latent_bits=8).round(decimals=2).tolist()
        [-100.0, 0.0, 12.5]
    """
    import torch

    m, s = _curve(latent_bits)
    p = (u if u.is_floating_point() else u.float()) / (2 * m) + 0.5
    v: Tensor = s * torch.special.ndtri(p.clamp(1e-4, 1 - 1e-4))
    return v


def expansion_table(latent_bits: int) -> "Tensor":
    """Return `expand` of every integer, (2^bits,) float32: entry i belongs to the value i - 2^(bits-1).

    Example:
        >>> from walloc_data.latents import expansion_table
        >>> table = expansion_table(8)
        >>> table.shape, round(table[0].item(), 1), table[128].item()  # of -128 and of 0
        (torch.Size([256]), -255.3, 0.0)
    """
    import torch

    half = 2 ** (latent_bits - 1)
    return expand(torch.arange(-half, half, dtype=torch.float64), latent_bits=latent_bits).float()


def _tiles(latent_dim: int, colours: int) -> int:
    n = math.isqrt(latent_dim // colours) if colours in (1, 3) else 0
    if n < 1 or n * n * colours != latent_dim:
        raise CodecError(
            f"{latent_dim} channels do not pack into {colours} colour planes: "
            "the number must be colours * n^2, with 1 (L) or 3 (RGB) colours"
        )
    return n


def pack(latent: "Tensor", *, colours: int = 3) -> npt.NDArray[np.uint8]:
    """Arrange channels as pictures.

    Args:
        latent: (N, C, h, w) int8, C = colours * n^2. Channel n*n*c + n*a + b becomes tile (a, b) of colour c.

    Returns:
        (N, n*h, n*w, colours) uint8, value + 128. `unpack` is its inverse.

    Example:
        >>> import torch
        >>> from walloc_data.latents import pack
        >>> picture = pack(torch.zeros(1, 12, 20, 20, dtype=torch.int8))
        >>> picture.shape, picture[0, 0, 0].tolist()
        ((1, 40, 40, 3), [128, 128, 128])
    """
    import torch

    if latent.dtype != torch.int8 or latent.ndim != 4:
        raise CodecError(f"pack takes an int8 latent (N, C, h, w), not {latent.dtype} {tuple(latent.shape)}")
    batch, dim, h, w = latent.shape
    n = _tiles(dim, colours)
    tiles = latent.cpu().numpy().reshape(batch, colours, n, n, h, w)
    # Adding 128 to an int8 value, as uint8, flips its top bit.
    picture = tiles.transpose(0, 2, 4, 3, 5, 1).reshape(batch, n * h, n * w, colours)  # (a h) (b w) c
    return picture.view(np.uint8) ^ np.uint8(128)


def unpack(picture: npt.NDArray[np.uint8], *, latent_dim: int = 12) -> npt.NDArray[np.int8]:
    """Invert `pack`: (N, n*h, n*w, colours) or (n*h, n*w, colours) uint8 to (N, C, h, w) or (C, h, w) int8.

    Example:
        >>> import numpy as np
        >>> from walloc_data.latents import unpack
        >>> latent = unpack(np.full((40, 40, 3), 125, np.uint8))
        >>> latent.shape, latent[:, 0, 0].tolist()
        ((12, 20, 20), [-3, -3, -3, -3, -3, -3, -3, -3, -3, -3, -3, -3])
    """
    if picture.dtype != np.uint8 or picture.ndim not in (3, 4):
        raise CodecError(f"unpack takes uint8 pictures (N, H, W, colours), not {picture.dtype} {picture.shape}")
    *batch, height, width, colours = picture.shape
    n = _tiles(latent_dim, colours)
    if height % n or width % n or not height or not width:
        raise CodecError(f"a packed picture of {height} x {width} does not split into {n} x {n} tiles")
    h, w = height // n, width // n
    tiles = picture.reshape(-1, n, h, n, w, colours).transpose(0, 5, 1, 3, 2, 4)
    latent = (tiles.reshape(*batch, latent_dim, h, w) ^ np.uint8(128)).view(np.int8)
    return np.ascontiguousarray(latent)


def encode_webp(picture: npt.NDArray[np.uint8], *, effort: Literal["default", "fast"] = "default") -> bytes:
    """Encode one packed picture, (H, W, 3) or (H, W, 1) uint8, as lossless WebP without metadata.

    The effort changes the size of the file and the time, not the pixels. The writer is our own (`walloc_data.webp`),
    whose output depends only on the picture and the effort; grey and very large pictures are written by libwebp.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.latents import decode_webp, encode_webp, pack
        >>> latent, label = LatentDataset("my-latents")[0]
        >>> picture = pack(latent[None])[0]  # (24, 24, 3) uint8
        >>> (decode_webp(encode_webp(picture)) == picture).mean().item()
        1.0
    """
    return encode_webps(picture[None], effort=effort)[0]


def encode_webps(pictures: npt.NDArray[np.uint8], *, effort: Literal["default", "fast"] = "default") -> list[bytes]:
    """Encode packed pictures of one size, (N, H, W, colours), like `encode_webp`, but faster for small ones.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.latents import encode_webp, encode_webps, pack
        >>> latents, labels = next(iter(LatentDataset("my-latents").loader(batch_size=8)))
        >>> pictures = pack(latents)  # (8, 24, 24, 3) uint8
        >>> encode_webps(pictures) == [encode_webp(picture) for picture in pictures]
        True
    """
    from PIL import Image

    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] not in (1, 3):
        raise CodecError(f"packed pictures are (N, H, W, 1 or 3) uint8, not {pictures.dtype} {pictures.shape}")
    if effort not in _EFFORT:
        raise CodecError(f"effort must be one of {', '.join(_EFFORT)}, not {effort!r}")
    height, width, colours = pictures.shape[1:]
    check_sides(height, width)
    if colours == 3 and height * width <= OWN_WRITER_PIXELS:
        together = min(_MAX_TOGETHER, max(1, OWN_WRITER_PIXELS // (height * width)))
        parts = [pictures[i : i + together] for i in range(0, len(pictures), together)]
        return [data for part in parts for data in encode_lossless(part, effort=effort)]
    require_webp("writing a packed latent")
    method, quality = _EFFORT[effort]
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        image = Image.fromarray(picture if colours == 3 else np.repeat(picture, 3, axis=2))
        image.save(buffer, "WEBP", lossless=True, method=method, quality=quality)
        files.append(buffer.getvalue())
    return files


def max_packed_pixels() -> int:
    """Return the largest number of pixels of a packed latent that is read: $WALLOC_DATA_MAX_PACKED_PIXELS, or 2^25.

    A damaged or hostile WebP file of a few bytes can declare 268 million pixels, whose decoding takes gigabytes.

    Example:
        >>> from walloc_data.latents import max_packed_pixels
        >>> max_packed_pixels()
        33554432
    """
    given = os.environ.get(MAX_PACKED_PIXELS_NAME, "")
    if not given:
        return DEFAULT_MAX_PACKED_PIXELS
    if not given.isdecimal() or not 1 <= (value := int(given)) <= 2**40:
        raise CodecError(f"{MAX_PACKED_PIXELS_NAME}={given}: expected a number of pixels, such as {2**27}")
    return value


def check_packed_pixels(height: int, width: int, *, context: str) -> None:
    """Raise CorruptShardError, with `context` in the message, for a packed latent of more than `max_packed_pixels`.

    Example:
        >>> from walloc_data.latents import check_packed_pixels
        >>> check_packed_pixels(16383, 16383, context="sample 000000007")
        Traceback (most recent call last):
        walloc_data.errors.CorruptShardError: sample 000000007: a packed latent of 16383 x 16383 pixels; ...
    """
    if height * width > (limit := max_packed_pixels()):
        raise CorruptShardError(
            f"{context}: a packed latent of {width} x {height} pixels; at most {limit} are read, because decoding "
            f"takes gigabytes. If the pictures are that large, set {MAX_PACKED_PIXELS_NAME}={height * width}"
        )


def decode_webp(
    data: bytes | memoryview, *, size: tuple[int, int] | None = None, context: str = "packed latent"
) -> npt.NDArray[np.uint8]:
    """Decode one packed picture to (H, W, 3) uint8.

    Args:
        data: the WebP file.
        size: expected (H, W), if known.
        context: text that begins error messages.

    Raises:
        CorruptShardError: `data` is not an RGB WebP picture of this size.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from walloc_data.latents import decode_webp
        >>> Image.new("RGB", (64, 48)).save(file := io.BytesIO(), "WEBP", lossless=True)
        >>> decode_webp(file.getvalue(), size=(48, 64)).shape
        (48, 64, 3)
    """
    from PIL import Image

    try:
        # The size in the header is untrusted: check it before the pixels are allocated.
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
            if size is not None and size != (image.height, image.width):
                found = f"{image.height} x {image.width}"
                raise CorruptShardError(
                    f"{context}: a packed picture of {found} where {size[0]} x {size[1]} is expected"
                )
            check_packed_pixels(image.height, image.width, context=context)
            if image.mode != "RGB":
                raise CorruptShardError(f"{context}: mode {image.mode}; a packed latent is RGB without alpha")
            return np.asarray(image)
    except (CorruptShardError, CodecError):
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        require_webp(context)
        raise CorruptShardError(f"{context}: not a readable WebP picture ({error})") from error


def require_webp(context: str) -> None:
    """Raise CodecError, with `context` in the message, if Pillow was built without WebP."""
    from PIL import features

    if not features.check("webp"):
        raise CodecError(
            f"{context}: this Pillow was built without WebP. Its wheels have it: pip install --force-reinstall pillow"
        )
