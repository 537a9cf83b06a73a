"""A codec's identity and statistics, without a codec: models need nothing more."""

import pytest
import torch

from walloc_data.format import ChannelStatistics, CodecSpec


@pytest.fixture(scope="session")
def spec() -> CodecSpec:
    return CodecSpec(
        name="test-16x", channels=3, J=3, latent_dim=12, latent_bits=8, wavelet="bior4.4", encoder_sha256="0" * 64
    )


@pytest.fixture(scope="session")
def statistics() -> ChannelStatistics:
    """Channel c is roughly normal with mean c and standard deviation 3 + c."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for channel in range(12):
        z = torch.randn(20_000, generator=generator) * (3 + channel) + channel
        rows.append(torch.bincount(z.round().clamp(-128, 127).long() + 128, minlength=256).tolist())
    return ChannelStatistics(tuple(tuple(row) for row in rows))


@pytest.fixture
def latents() -> torch.Tensor:
    """(4, 12, 20, 20) int8, over the whole range."""
    return torch.randint(-128, 128, (4, 12, 20, 20), generator=torch.Generator().manual_seed(1)).to(torch.int8)
