"""The PyPI package `walloc` 1.2.1, value by value, on real photographs."""

import io
import warnings
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from walloc_data.codec import WallocCodec, wavelet_analysis
from walloc_data.latents import decode_webp, encode_webp, pack, unpack

WIDTH = 64  # of the reference decoder; the published one is 768 wide and twelve times slower for each factor of 3.5

pytestmark = pytest.mark.slow  # the original takes four seconds to import


@pytest.fixture(scope="module")
def reference(walloc: ModuleType, codec: WallocCodec) -> nn.Module:
    """The reference codec with the bundled encoder's weights and a random decoder."""
    torch.manual_seed(0)
    model = walloc.Codec2D(
        channels=3, J=3, Ne=None, Nd=WIDTH, latent_dim=12, latent_bits=8, lightweight_encode=True
    ).eval()
    model.encoder[0].load_state_dict(codec.encoder[0].state_dict())
    return model


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Pillow's, about how the reference calls it
        yield


@pytest.fixture(scope="module")
def photographs(kodak_pictures: list[Tensor], imagenette_pictures: list[Tensor]) -> list[Tensor]:
    return [*kodak_pictures, *imagenette_pictures[::4]]


@torch.no_grad()
def reference_latent(reference: nn.Module, picture: Tensor) -> tuple[Tensor, Tensor]:
    x = picture.contiguous().to(torch.float) / 255 - 0.5
    X = reference.wavelet_analysis(x, J=3)
    return X, reference.encoder(X)


def test_coefficients_and_latents_of_whole_photographs(
    reference: nn.Module, codec: WallocCodec, photographs: list[Tensor]
) -> None:
    different = total = 0
    for picture in photographs:
        X, z = reference_latent(reference, picture)
        torch.testing.assert_close(wavelet_analysis(picture.float() / 255 - 0.5), X, rtol=0, atol=1e-5)
        step = (codec.encode(picture).float() - z).abs()
        assert step.max() <= 1
        different += int((step > 0).sum())
        total += step.numel()
    assert different <= total * 1e-4


def test_packed_pictures_are_identical_and_each_side_reads_the_others(
    walloc: ModuleType, codec: WallocCodec, photographs: list[Tensor]
) -> None:
    for picture in photographs:
        z = codec.encode(picture)
        theirs = walloc.latent_to_pil(z.float(), 8, 3)[0]
        ours = pack(z)[0]
        assert np.array_equal(np.asarray(theirs), ours)
        buffer = io.BytesIO()
        theirs.save(buffer, format="WEBP", lossless=True)
        assert torch.equal(torch.from_numpy(unpack(decode_webp(buffer.getvalue()))), z[0])
        for effort in ("default", "fast"):
            with Image.open(io.BytesIO(encode_webp(ours, effort=effort))) as image:
                assert torch.equal(walloc.pil_to_latent([image], 12, 8, 3), z.float())


def test_modules_agree_step_by_step(reference: nn.Module, codec: WallocCodec, photographs: list[Tensor]) -> None:
    with torch.no_grad():
        X, z = reference_latent(reference, photographs[0])
        torch.testing.assert_close(codec.encoder[0:2](X), reference.encoder[0:2](X), rtol=0, atol=1e-4)
        assert torch.equal(codec.encoder[2](codec.encoder[0:2](X)), codec.encoder(X))
        torch.testing.assert_close(codec.decoder[0](z), reference.decoder[0](z), rtol=0, atol=1e-4)
        torch.testing.assert_close(
            codec.wavelet_synthesis(X, J=3), reference.wavelet_synthesis(X, J=3), rtol=0, atol=1e-5
        )


def test_linear_codec_reconstructs_alike(walloc: ModuleType, codec: WallocCodec, photographs: list[Tensor]) -> None:
    linear = walloc.LinearCodec2D(channels=3, J=3, latent_dim=12, latent_bits=8).eval()
    linear.encoder[0].load_state_dict(codec.encoder[0].state_dict())
    linear.decoder[1].load_state_dict(codec.decoder[1].state_dict())
    with torch.no_grad():
        for picture in photographs[::5]:
            x = picture.contiguous().float() / 255 - 0.5
            _, mse, tf_loss = linear(x)
            _, our_mse, our_tf_loss = codec(x)
            torch.testing.assert_close(our_mse, mse, rtol=1e-4, atol=0)
            torch.testing.assert_close(our_tf_loss, tf_loss, rtol=1e-4, atol=0)
            z = codec.encode(picture)
            decoded = linear.clamp(linear.wavelet_synthesis(linear.decoder(z.float()), J=3))
            torch.testing.assert_close(codec.decode(z), decoded, rtol=0, atol=1e-4)


def test_training_noise_is_the_references(walloc: ModuleType, codec: WallocCodec) -> None:
    rounding = WallocCodec().encoder[2].train()
    u = torch.zeros(100_000)
    torch.manual_seed(3)
    ours = rounding(u)
    torch.manual_seed(3)
    assert torch.equal(ours, walloc.Round().train()(u))
    assert ours.min() >= -0.5
    assert ours.max() <= 0.5
    assert torch.equal(rounding.eval()(torch.tensor([0.5, 1.5, -0.4])), torch.tensor([0.0, 2.0, -0.0]))


def test_padding_is_the_references(walloc: ModuleType) -> None:
    from walloc_data.format import padding_for

    for height in range(1, 40):
        for width in (1, 7, 8, 9, 23):
            left, right, top, bottom = walloc.compute_padding(height, width, min_div=8)[0]
            assert padding_for(height, width, multiple=8) == (left, top, right, bottom)
