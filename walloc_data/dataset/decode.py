"""Decoding of batches of packed latents (lossless WebP) to int8 arrays.

Pillow (required) and imagecodecs (extra `fast`) give the same integers; imagecodecs takes a quarter less time and
writes directly into the batch (benchmarks/results/read_speed.json compares four decoders). Both release the GIL, so
threads help.
"""

import math
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from walloc_data.latents import check_packed_pixels, decode_webp, unpack

__all__ = ["decode_latents", "webp_size"]

Decoder = Callable[[memoryview, npt.NDArray[np.uint8]], bool]


def webp_size(data: memoryview) -> tuple[int, int] | None:
    """Return (height, width) from the header of a lossless WebP file without alpha and metadata; else None.

    The header is RIFF, one VP8L chunk, 14 bits each for width - 1 and height - 1, and one bit for alpha.
    """
    head = bytes(data[:25])
    if len(head) < 25 or head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8L" or head[20] != 0x2F:
        return None
    (bits,) = struct.unpack_from("<I", head, 21)
    if bits >> 28 & 1:
        return None
    return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)


@lru_cache(maxsize=1)
def _fast_decoder() -> Decoder | None:
    """Return a decoder by imagecodecs, which returns whether it filled `out`; None if the package is not installed.

    The picture must have the size of `out`.
    """
    try:
        import imagecodecs
    except ImportError:
        return None
    webp_decode: Any = imagecodecs.webp_decode  # accepts any buffer, unlike its type stubs

    def decode(data: memoryview, out: npt.NDArray[np.uint8]) -> bool:
        try:
            webp_decode(data, out=out)
        except Exception:
            return False
        return True

    return decode


def decode_latents(
    payloads: Sequence[memoryview],
    *,
    shape: tuple[int, int, int],
    colours: int,
    context: Callable[[int], str],
    executor: Executor | None = None,
    num_threads: int = 1,
) -> npt.NDArray[np.int8]:
    """Decode packed latents of one shape.

    Args:
        payloads: the WebP files.
        shape: expected (C, h, w) of every latent.
        colours: colour planes with channels, 1 or 3.
        context: function that describes the i-th payload in errors.
        executor: pool of `num_threads` threads.

    Returns:
        (len(payloads), C, h, w) int8.

    Raises:
        CorruptShardError: a payload is damaged or has another size; checked before memory is allocated.
    """
    fast = _fast_decoder()
    dim, h, w = shape
    tiles = math.isqrt(dim // colours)
    side = (tiles * h, tiles * w)
    sizes = [webp_size(data) for data in payloads]
    for i, size in enumerate(sizes):  # before memory is allocated
        if size not in (None, side):
            decode_webp(payloads[i], size=side, context=context(i))
    if payloads:
        check_packed_pixels(*side, context=context(0))
    pictures = np.empty((len(payloads), *side, 3), np.uint8)

    def run(first: int, last: int) -> None:
        for i in range(first, last):
            if fast is None or sizes[i] != side or not fast(payloads[i], pictures[i]):
                # Pillow decides if the fast decoder fails, so that errors do not depend on imagecodecs.
                pictures[i] = decode_webp(payloads[i], size=pictures.shape[1:3], context=context(i))

    if executor is None:
        run(0, len(payloads))
    else:
        edges = np.linspace(0, len(payloads), num_threads + 1).astype(int)
        list(executor.map(run, edges[:-1], edges[1:]))
    return unpack(pictures[..., :colours], latent_dim=dim)
