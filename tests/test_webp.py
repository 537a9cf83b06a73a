"""Our writer of lossless WebP: other people's decoders read its pixels, and its bytes are always the same."""

import hashlib
import io
import tracemalloc
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from walloc_data.errors import CodecError
from walloc_data.latents import OWN_WRITER_PIXELS, decode_webp, encode_webp, encode_webps
from walloc_data.webp import encode_lossless
from walloc_data.webp.codes import code_lengths

Pictures = npt.NDArray[np.uint8]


def laplace(shape: tuple[int, ...], *, scale: float, seed: int = 0) -> Pictures:
    """Return values like those of packed latents: around 128, with a spread that varies over the picture."""
    generator = np.random.default_rng(seed)
    spread = scale * (0.2 + np.abs(np.sin(np.arange(shape[2]) / 9)))[:, None]
    return np.clip(np.rint(128 + generator.laplace(0, spread, shape)), 0, 255).astype(np.uint8)


def assert_decodes(data: bytes, picture: Pictures) -> None:
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("WEBP", "RGB", picture.shape[1::-1])
        assert np.array_equal(np.asarray(image), picture)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    count=st.integers(1, 3),
    kind=st.sampled_from(["noise", "one", "two", "laplace", "ramp"]),
    effort=st.sampled_from(["default", "fast"]),
    seed=st.integers(0, 2**16),
)
def test_every_picture_comes_back_whatever_its_size_and_content(
    height: int, width: int, count: int, kind: str, effort: Literal["default", "fast"], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    shape = (count, height, width, 3)
    pictures = {
        "noise": generator.integers(0, 256, shape),
        "one": np.broadcast_to(generator.integers(0, 256, 3), shape),
        "two": generator.integers(0, 256, 3) + generator.integers(0, 2, shape) * 91,
        "laplace": laplace(shape, scale=float(generator.integers(1, 30)), seed=seed),
        "ramp": np.arange(height)[:, None, None] * 3 + np.arange(width)[:, None] * 7 + np.zeros(shape, dtype=int),
    }[kind].astype(np.uint8)
    for data, picture in zip(encode_lossless(pictures, effort=effort), pictures, strict=True):
        assert_decodes(data, picture)
        assert np.array_equal(decode_webp(data), picture)


def test_opencv_reads_it_too() -> None:
    cv2 = pytest.importorskip("cv2")
    picture = laplace((1, 64, 96, 3), scale=9)
    data = np.frombuffer(encode_lossless(picture)[0], dtype=np.uint8)
    assert np.array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], picture[0])


def test_skewed_counts_keep_codes_within_fifteen_bits() -> None:
    # Fibonacci's numbers are the counts that make Huffman's tree deepest.
    fibonacci = [1, 1]
    while len(fibonacci) < 22:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    counts = np.zeros((1, 280), dtype=np.int64)
    counts[0, : len(fibonacci)] = fibonacci
    lengths = code_lengths(counts, longest=15)[0]
    assert lengths.max() <= 15
    assert sum(2.0 ** -int(length) for length in lengths if length) == 1.0
    values = np.repeat(np.arange(22), fibonacci).astype(np.uint8)
    np.random.default_rng(0).shuffle(values)
    picture = np.stack([values[: 130 * 130].reshape(130, 130)] * 3, axis=-1)
    assert_decodes(encode_lossless(picture[None])[0], picture)


def test_code_lengths_are_huffmans() -> None:
    counts = np.array([[5, 9, 12, 13, 16, 45, 0], [1, 1, 0, 0, 0, 0, 0], [0, 0, 7, 0, 0, 0, 0]])
    assert code_lengths(counts, longest=15).tolist() == [[4, 4, 3, 3, 3, 1, 0], [1, 1, 0, 0, 0, 0, 0], [0] * 7]


def test_bytes_depend_on_the_picture_alone() -> None:
    pictures = laplace((5, 48, 72, 3), scale=12)
    together = encode_lossless(pictures)
    assert together == [encode_lossless(picture[None])[0] for picture in pictures]
    assert together == encode_lossless(pictures[::-1])[::-1]
    # Sums are of whole numbers, so processor, threads and numpy's version do not matter; the last place of a logarithm
    # would, where it lies within 1e-15 of a tie.
    steps = (np.arange(40 * 56 * 3, dtype=np.int64) * 2654435761 >> 20) % 23
    picture = (118 + steps).astype(np.uint8).reshape(1, 40, 56, 3)
    assert hashlib.sha256(encode_lossless(picture)[0]).hexdigest() == GOLDEN
    assert hashlib.sha256(encode_lossless(picture, effort="fast")[0]).hexdigest() == GOLDEN_FAST


GOLDEN = "f81f6be3eddebf745d8ca96fd9895e286bb0b241a9e4be6a5aa4cf1c96fd1c9a"
GOLDEN_FAST = "8d031eb805be71260fd9e85eada9c3273e698ff2a22cb1e310917b78dc672bbf"


def test_packed_photographs_take_fewer_bytes_than_libwebps_default(kodak: list[Path]) -> None:
    import torch

    from walloc_data.codec import load_codec
    from walloc_data.latents import pack

    codec, _ = load_codec("klt-16x", decoder=False)
    ours = libwebp = 0
    for path in kodak[:4]:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))[None].permute(0, 3, 1, 2)
        packed = pack(codec.encode(pixels))[0]
        buffer = io.BytesIO()
        Image.fromarray(packed).save(buffer, "WEBP", lossless=True)
        libwebp += len(buffer.getvalue())
        data = encode_webp(packed)
        assert np.array_equal(decode_webp(data), packed)
        ours += len(data)
    assert ours < libwebp


def test_grey_and_huge_pictures_are_libwebps() -> None:
    picture = laplace((1, 96, 128, 3), scale=5)[0]
    assert encode_webp(picture) == encode_lossless(picture[None])[0]
    fast = encode_webp(picture, effort="fast")
    assert fast == encode_lossless(picture[None], effort="fast")[0]
    assert len(encode_webp(picture)) < len(fast) < 1.15 * len(encode_webp(picture))
    grey = encode_webp(picture[..., :1])
    assert np.array_equal(decode_webp(grey), np.repeat(picture[..., :1], 3, axis=2))
    huge = np.full((1, OWN_WRITER_PIXELS // 4096 + 1, 3), 7, dtype=np.uint8).repeat(4096, axis=0)
    assert np.array_equal(decode_webp(encode_webp(huge)), huge)


def test_many_at_once_are_the_same_files() -> None:
    pictures = laplace((7, 16, 24, 3), scale=5)
    for effort in ("default", "fast"):
        assert encode_webps(pictures, effort=effort) == [encode_webp(picture, effort=effort) for picture in pictures]


def test_what_is_no_picture_is_refused() -> None:
    assert encode_lossless(np.zeros((0, 4, 4, 3), dtype=np.uint8)) == []
    with pytest.raises(CodecError, match=r"takes pictures \(N, H, W, 3\) uint8, not uint8 \(4, 4, 3\)"):
        encode_lossless(np.zeros((4, 4, 3), dtype=np.uint8))
    for colours in (1, 3):
        with pytest.raises(CodecError, match="sides from 1 to 16383 pixels, not 16384 x 1"):
            encode_webp(np.zeros((1, 16384, colours), dtype=np.uint8))
    with pytest.raises(CodecError, match="sides from 1 to 16383 pixels, not 1 x 16384"):
        encode_lossless(np.zeros((1, 16384, 1, 3), dtype=np.uint8))
    with pytest.raises(CodecError, match="sides from 1 to 16383 pixels, not 0 x 1"):
        encode_lossless(np.zeros((1, 1, 0, 3), dtype=np.uint8))
    for odd in (np.zeros((1, 8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 1), np.int16)):
        with pytest.raises(CodecError, match=r"packed pictures are \(N, H, W, 1 or 3\) uint8, not u?int"):
            encode_webps(odd)
    for function, colours in ((encode_lossless, 3), (encode_webps, 3), (encode_webps, 1)):
        with pytest.raises(CodecError, match="effort must be one of default, fast, not 'slow'"):
            function(np.zeros((1, 8, 8, colours), np.uint8), effort="slow")


@pytest.mark.slow
def test_tiny_pictures_take_no_more_memory_together_than_large_ones() -> None:
    pictures = laplace((4096, 2, 2, 3), scale=5)
    tracemalloc.start()
    files = encode_webps(pictures)
    assert tracemalloc.get_traced_memory()[1] < 2**27  # was 300 MB, and grew with their number
    tracemalloc.stop()
    assert files[4095] == encode_webp(pictures[4095])


@pytest.mark.parametrize("shape", [(1, 16383), (16383, 1), (35, 16383)])
def test_the_largest_sides_are_read_by_libwebp(shape: tuple[int, int]) -> None:
    """(35, 16383) is beyond what our writer takes: there libwebp writes."""
    picture = laplace((1, *shape, 3), scale=5)[0]
    assert np.array_equal(decode_webp(encode_webp(picture)), picture)
