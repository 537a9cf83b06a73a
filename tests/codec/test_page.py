"""The founding page runs on our names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import walloc_data.codec
from walloc_data.codec import (
    CodecInfo,
    WallocCodec,
    decode_from_blob,
    encode_to_latent,
    from_model_output,
    latent_to_webp_bytes,
    to_model_input,
)
from walloc_data.errors import CodecError

ROOT = Path(__file__).resolve().parents[2]


def walkthrough(*arguments: str, folder: Path) -> str:
    environment = os.environ | {"MPLCONFIGDIR": str(folder)}
    script = ROOT / "examples" / "kodak_walkthrough.py"
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=True, env=environment
    )
    assert "Warning" not in done.stderr
    return done.stdout


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
    with pytest.raises(CodecError, match=r"8 bits lies in \[-128, 127\]"):
        latent_to_webp_bytes(torch.full((1, 12, 1, 1), 128.0))
    blob = latent_to_webp_bytes(torch.zeros(1, 12, 1, 1))
    with pytest.raises(CodecError, match="12 channels of 8 bits, the blob is said to have 48 of 8"):
        decode_from_blob(codec, blob, 48)


def test_public_names_are_sorted_and_resolve() -> None:
    names = walloc_data.codec.__all__
    assert names == sorted(names)
    assert dir(walloc_data.codec) == names
    for name in names:
        assert getattr(walloc_data.codec, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'load_codecs'"):
        _ = walloc_data.codec.load_codecs  # type: ignore[attr-defined]
