"""The size of a latent as lossless WebP: a differentiable estimate, and the exact number of bytes.

WebP predicts each pixel from its neighbours by one of several rules, chosen per block for all three colours at once,
and codes what is left with Huffman tables that adapt to the region. The estimate does the same, smoothly: per block
and per tile of the packed picture, the cheapest of four rules, where a rule costs log2(2 e s) bits a value for a mean
absolute remainder s, the entropy of a Laplace distribution. Over photographs it correlates with real bytes by more
than 0.95 (tests/codec/test_training.py holds it to that); the bytes are somewhat more than the estimate.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from walloc_data.latents import encode_webp, pack

__all__ = ["estimated_bits", "measured_bytes"]

_BLOCK_CELLS = 6


def estimated_bits(u: Tensor, *, colours: int) -> Tensor:
    """Estimate the mean bits per latent value, a differentiable scalar.

    Args:
        u: (N, C, h, w) companded values with the noise of quantisation; C = colours * tiles, packed as by
            `walloc_data.latents.pack`.
    """
    batch, dim = u.shape[:2]
    padded = F.pad(u, (1, 0, 1, 0), mode="replicate")
    above, before = padded[:, :, :-1, 1:], padded[:, :, 1:, :-1]
    remainders = torch.stack([u, u - before, u - above, u - (before + above) / 2]).abs()  # (4, N, C, h, w)
    scale = F.avg_pool2d(remainders.flatten(0, 1), _BLOCK_CELLS, ceil_mode=True, count_include_pad=False)
    bits = torch.log2(2 * math.e * scale).reshape(4, batch, colours, dim // colours, *scale.shape[2:])
    return bits.sum(2).amin(0).mean() / colours


def measured_bytes(latent: Tensor, *, colours: int) -> int:
    """Return the bytes of one latent, (1, C, h, w) int8, as the packed WebP that data sets hold."""
    return len(encode_webp(pack(latent, colours=colours)[0]))
