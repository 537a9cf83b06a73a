"""The founding page runs on our names."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import walloc_data.codec
from tests import warm
from walloc_data.codec import (
    SNAP_MULTIPLE,
    CodecInfo,
    WallocCodec,
    decode_from_blob,
    decode_from_latent,
    encode_to_latent,
    from_model_output,
    latent_to_webp_bytes,
    load_codec,
    resize_bicubic,
    snap_shape,
    to_model_input,
)
from walloc_data.errors import CodecError

ROOT = Path(__file__).resolve().parents[2]


def walkthrough(*arguments: str, folder: Path) -> str:
    environment = os.environ | {"MPLCONFIGDIR": str(folder)}
    script = ROOT / "examples" / "kodak_walkthrough.py"
    done = warm.run([script, *arguments], check=True, env=environment)
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_walkthrough_prints_the_pages_numbers_for_a_kodak_picture(kodak: list[Path], tmp_path: Path) -> None:
    out = walkthrough(str(kodak[2]), "--plots", str(tmp_path / "plots"), folder=tmp_path)
    assert "dimensionality_reduction = 16.00x" in out
    assert "input_range              = centered" in out
    assert "X         (1, 192, 64, 96)" in out
    assert "packed    (192, 128) RGB" in out
    assert float(re.search(r"([\d.]+) bpp", out)[1]) < 0.8  # type: ignore[index]
    assert float(re.search(r"PSNR +([\d.]+) dB", out)[1]) > 28  # type: ignore[index]
    assert float(re.search(r"manual decode\| = (\S+)", out)[1]) == 0  # type: ignore[index]
    assert int(re.search(r"differs from the steps in (\d+) of 73728", out)[1]) <= 7  # type: ignore[index]
    pictures = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert pictures == ["companding.png", "latent.png", "pictures.png", "wavelet_packets.png"]


@pytest.mark.slow
def test_the_walkthrough_runs_on_a_picture_that_comes_with_scikit_image(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    assert "x         (1, 3, 512, 512)" in walkthrough(folder=tmp_path)


def test_the_pages_functions_make_a_round_trip(
    bundled: tuple[WallocCodec, CodecInfo], kodak_pictures: list[Tensor]
) -> None:
    codec, info = bundled
    picture = kodak_pictures[4]
    x = to_model_input(picture.float() / 255.0)
    z_hat = encode_to_latent(codec, x)
    assert z_hat.dtype == torch.float32
    assert torch.equal(z_hat, codec.encode(picture).float())  # 8-bit pixels get their one latent, as floats too
    blob = latent_to_webp_bytes(z_hat, info.latent_bits)
    x_hat = decode_from_blob(codec, blob, info.latent_dim, info.latent_bits, "cpu", torch.float32)
    assert torch.equal(x_hat, codec.decode(z_hat))
    torch.testing.assert_close(from_model_output(x_hat), x_hat + 0.5)


def test_pictures_that_never_were_bytes_are_encoded_from_their_own_values(
    codec: WallocCodec, kodak_pictures: list[Tensor]
) -> None:
    x = torch.nn.functional.avg_pool2d(kodak_pictures[4].float() / 255 - 0.5, 2)
    with torch.no_grad():
        by_steps = codec.encoder(codec.wavelet_analysis(x, J=codec.J))
    found = encode_to_latent(codec, x)
    assert (found - by_steps).abs().max() <= 1
    assert (found != by_steps).float().mean() < 1e-4
    assert (encode_to_latent(codec, (x * 255).round() / 255) != found).float().mean() > 1e-4


def test_wrong_latents_are_refused(codec: WallocCodec) -> None:
    with pytest.raises(CodecError, match=r"takes one latent \(1, C, h, w\), not \(2, 12, 1, 1\)"):
        latent_to_webp_bytes(torch.zeros(2, 12, 1, 1))
    with pytest.raises(CodecError, match=r"takes one latent \(1, C, h, w\), not \(1, 12, 0, 1\)"):
        latent_to_webp_bytes(torch.zeros(1, 12, 0, 1))
    for value in (128.0, -129.0, 1.5, float("nan")):
        with pytest.raises(CodecError, match=r"8 bits holds whole numbers in \[-128, 127\]: round it first"):
            latent_to_webp_bytes(torch.full((1, 12, 1, 1), value))
    blob = latent_to_webp_bytes(torch.zeros(1, 12, 1, 1))
    with pytest.raises(CodecError, match="12 channels of 8 bits, the blob is said to have 48 of 8"):
        decode_from_blob(codec, blob, 48)


def test_no_pictures_have_no_latents(codec: WallocCodec) -> None:
    assert encode_to_latent(codec, torch.zeros(0, 3, 8, 16)).shape == (0, 12, 1, 2)


def test_public_names_resolve() -> None:
    names = walloc_data.codec.__all__
    assert len(names) == len(set(names))
    assert sorted(dir(walloc_data.codec)) == sorted(names)
    for name in names:
        assert getattr(walloc_data.codec, name) is not None
    with pytest.raises(AttributeError, match="attribute load_codecs"):
        _ = walloc_data.codec.load_codecs  # type: ignore[attr-defined]


def test_sizes_follow_the_share_of_pixels() -> None:
    assert SNAP_MULTIPLE == 16
    assert snap_shape(512, 768, 100) == (512, 768)
    assert snap_shape(384, 384, 25) == (192, 192)
    assert snap_shape(512, 768, 50) == (368, 544)
    assert snap_shape(16, 640, 1) == (16, 64)  # never below one multiple
    for q in (0, -1, 101):
        with pytest.raises(CodecError, match=r"per cent of the pixels in \(0, 100\]"):
            snap_shape(64, 64, q)


def test_resizing_is_antialiased() -> None:
    checks = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).float().expand(1, 3, 64, 64)
    small = resize_bicubic(checks, (16, 24))
    assert small.shape == (1, 3, 16, 24)
    assert (small - 0.5).abs().max() < 0.02  # without antialiasing 0 or 1


def test_a_decoder_can_be_tuned_through_its_latents() -> None:
    codec, _ = load_codec()
    latent = torch.randint(-30, 31, (2, 12, 6, 8), generator=torch.Generator().manual_seed(0))
    x_hat = decode_from_latent(codec, latent)
    torch.testing.assert_close(x_hat.detach().clamp(-0.5, 0.5), codec.decode(latent))
    x_hat.square().mean().backward()
    gradients = [parameter.grad for parameter in codec.decoder.parameters()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    assert codec.encoder[0].weight.grad is None


def test_an_evaluation_resizes_encodes_and_decodes(kodak: list[Path]) -> None:
    """The calls that the authors' evaluation makes of a codec, in their order."""
    codec, info = load_codec(device=torch.device("cpu"), torch_dtype=torch.float32)
    x = torch.from_numpy(np.array(Image.open(kodak[2]).convert("RGB"))[:384, :384]).permute(2, 0, 1)[None] / 255
    found = {}
    for q in (25, 100):
        snapped = resize_bicubic(x, snap_shape(384, 384, q)).clamp(0, 1)
        blob = latent_to_webp_bytes(encode_to_latent(codec, to_model_input(snapped)), info.latent_bits)
        x_hat = decode_from_blob(codec, blob, info.latent_dim, info.latent_bits, "cpu", torch.float32)
        error = (resize_bicubic(from_model_output(x_hat).clamp(0, 1), (384, 384)) - x).square().mean()
        found[q] = (8 * len(blob) / 384**2, float(-10 * error.log10()))
    assert found[25][0] < 0.5 * found[100][0]
    assert 27 < found[25][1] < found[100][1] - 2
