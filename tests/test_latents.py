import io
from statistics import NormalDist

import einops
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from walloc_data.errors import CodecError, CorruptShardError
from walloc_data.latents import compand, decode_webp, encode_webp, expand, expansion_table, pack, unpack

SHAPES = st.tuples(st.integers(1, 3), st.sampled_from([3, 12, 27, 48]), st.integers(1, 9), st.integers(1, 9))


@given(SHAPES, st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_packing_is_the_published_layout_and_unpacking_its_inverse(shape: tuple[int, int, int, int], seed: int) -> None:
    latent = torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    n = int((shape[1] // 3) ** 0.5)
    picture = pack(latent)
    unsigned = (latent.short() + 128).to(torch.uint8)
    expected = einops.rearrange(unsigned, "b (c u v) h w -> b (u h) (v w) c", c=3, u=n, v=n)
    np.testing.assert_array_equal(picture, expected.numpy())
    np.testing.assert_array_equal(unpack(picture, latent_dim=shape[1]), latent.numpy())
    np.testing.assert_array_equal(unpack(picture[0], latent_dim=shape[1]), latent[0].numpy())


@pytest.mark.parametrize("effort", ["default", "fast"])
def test_webp_keeps_every_value(effort: str) -> None:
    latent = torch.randint(-128, 128, (1, 12, 7, 5), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    data = encode_webp(pack(latent)[0], effort=effort)  # type: ignore[arg-type]
    np.testing.assert_array_equal(unpack(decode_webp(data)), latent[0].numpy())
    assert b"VP8L" in data[:16], "lossless"
    assert b"EXIF" not in data
    assert b"XMP " not in data


def test_companding_follows_the_published_curve() -> None:
    # u = 2 m (Phi(v / s) - 1/2) with m = 127.499 and s = 127 / 1.85, by the standard library's normal distribution.
    values = [0.0, 1.0, -35.0, 200.0]
    expected = [2 * 127.499 * (NormalDist(0, 127 / 1.85).cdf(v) - 0.5) for v in values]
    found = compand(torch.tensor(values, dtype=torch.float64), latent_bits=8)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)
    assert compand(torch.tensor(1e9), latent_bits=8).round() == 127


def test_expanding_undoes_companding_and_clips_the_ends() -> None:
    v = torch.linspace(-150, 150, 301, dtype=torch.float64)
    torch.testing.assert_close(expand(compand(v, latent_bits=8), latent_bits=8), v, atol=1e-9, rtol=1e-9)
    ends = expand(torch.tensor([-128, 127], dtype=torch.int8), latent_bits=8)
    assert ends.dtype == torch.float32
    torch.testing.assert_close(ends, torch.tensor([-255.3055, 198.0535]), atol=1e-3, rtol=0)


def test_the_expansion_table_is_expand_of_every_integer() -> None:
    values = torch.arange(-128, 128).to(torch.int8)
    torch.testing.assert_close(expansion_table(8), expand(values, latent_bits=8), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dim", [1, 4, 11, 13, 24])
def test_channel_numbers_that_do_not_pack_are_refused(dim: int) -> None:
    with pytest.raises(CodecError, match="do not pack"):
        pack(torch.zeros(1, dim, 2, 2, dtype=torch.int8))


def test_pack_refuses_anything_but_int8() -> None:
    with pytest.raises(CodecError, match=r"int8 latent .* not torch.float32 \(1, 12, 2, 2\)"):
        pack(torch.zeros(1, 12, 2, 2))


def test_unpack_refuses_odd_pictures() -> None:
    with pytest.raises(CodecError, match="3 x 4 does not split"):
        unpack(np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(CodecError, match="0 x 4 does not split"):
        unpack(np.zeros((0, 4, 3), np.uint8))
    for latent_dim, colours in ((0, 3), (12, 0)):
        with pytest.raises(CodecError, match=f"{latent_dim} channels do not pack into {colours} colour planes"):
            unpack(np.zeros((4, 4, colours), np.uint8), latent_dim=latent_dim)


def webp(mode: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4)).save(buffer, "WEBP", **options)
    return buffer.getvalue()


def png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable WebP"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8L", "not a readable WebP"),
        (png(4), "not a readable WebP"),
        (webp("RGB", lossless=True)[:-4], "not a readable WebP"),
        (webp("RGBA", lossless=True, exact=True), "RGBA; a packed latent is RGB"),
    ],
)
def test_what_is_not_a_packed_latent_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(CorruptShardError, match=f"train-00000.tar: .*{message}"):
        decode_webp(data, context="train-00000.tar")
