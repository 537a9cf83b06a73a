"""Wavelet packets: bior4.4 (CDF 9/7) in periodization, all J levels of an axis fused into one filter bank.

The reference applies two small filters per axis, J times, on ever more channels. The cascade is linear and
separable, so along one axis it equals a bank of 2^J filters of stride 2^J, each at most 8 * (2^J - 1) + 1 taps long
(57 for J = 3), found here by convolving the taps of the levels (the noble identities; Vaidyanathan, Multirate
Systems and Filter Banks, chapter 4). Rows, then columns, is all there is to do.

Order of the coefficients, that of the reference: channel c of the picture becomes 4^J channels, 4^J * c + f, where f
has two bits a level, first level first: the high bit tells the filter along the width, the low bit along the height.

    x[8k-28 .. 8k+28]  --(8 bands x 57 taps, stride 8)-->  X[k], 8 bands        the same along the other axis
"""

import warnings
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from walloc_data.errors import CodecError, MissingExtraError

__all__ = [
    "analysis_matrix", "bands_of", "deinterleave", "filter_taps", "interleave", "reference_analysis",
    "synthesis_matrix", "wavelet_analysis", "wavelet_synthesis",
]  # fmt: skip

# Ten taps a filter, as PyWavelets orders them. Analysis low and high pass, synthesis low and high pass.
DEC_LO = (
    0.0,
    0.03782845550726404,
    -0.023849465019556843,
    -0.11062440441843718,
    0.37740285561283066,
    0.8526986790088938,
    0.37740285561283066,
    -0.11062440441843718,
    -0.023849465019556843,
    0.03782845550726404,
)
DEC_HI = (
    0.0,
    -0.06453888262869706,
    0.04068941760916406,
    0.41809227322161724,
    -0.7884856164055829,
    0.41809227322161724,
    0.04068941760916406,
    -0.06453888262869706,
    0.0,
    0.0,
)
# A synthesis filter is the other analysis filter with alternating signs: that makes the pair biorthogonal.
REC_LO = tuple((-1.0) ** (i % 2 == 0) * tap for i, tap in enumerate(DEC_HI))
REC_HI = tuple((-1.0) ** (i % 2 == 1) * tap for i, tap in enumerate(DEC_LO))

# Levels fused at once. A bank of 2^J bands costs about 8 * 2^J multiplications a sample: past 3 levels, two banks
# in turn are cheaper than one.
MAX_FUSED_LEVELS = 3


@lru_cache
def filter_taps(J: int) -> tuple[tuple[float, ...], ...]:
    """Return the analysis filter bank of one axis: 2^J filters of 2R + 1 taps, R = 4 * (2^J - 1), in float64.

    Band b of cell k is the sum over t of ``taps[b][t] * x[2^J * k + t - R]``. The bits of b are the levels' filters,
    first level highest (0 low, 1 high). Plain Python sums in a fixed order: the same bits on every machine.
    """
    # low[k] is centred on sample 2k and high[k] on 2k + 1: offsets of the ten taps.
    level = ({i - 5: tap for i, tap in enumerate(DEC_LO) if tap}, {i - 3: tap for i, tap in enumerate(DEC_HI) if tap})
    radius = 4 * (2**J - 1)
    return tuple(tuple(band.get(t, 0.0) for t in range(-radius, radius + 1)) for band in _cascade(level, J=J))


@lru_cache
def _synthesis_bank(J: int) -> list[dict[int, float]]:
    """Return offset to tap, per band: band b of cell k adds ``bank[b][d] * X_b[k]`` to sample 2^J * k + d."""
    level = ({i - 4: tap for i, tap in enumerate(REC_LO) if tap}, {i - 4: tap for i, tap in enumerate(REC_HI) if tap})
    return _cascade(level, J=J)


def _cascade(level: tuple[dict[int, float], dict[int, float]], *, J: int) -> list[dict[int, float]]:
    bands: list[dict[int, float]] = [{0: 1.0}]
    for j in range(J):
        bands = [_convolve(band, taps, stride=2**j) for band in bands for taps in level]
    return bands


def _convolve(first: dict[int, float], second: dict[int, float], *, stride: int) -> dict[int, float]:
    """Return the taps of one filter followed by another at a sampling `stride`; every offset is a sum of two
    offsets.
    """
    taps: dict[int, float] = {}
    for q, b in second.items():
        for p, a in first.items():
            taps[p + stride * q] = taps.get(p + stride * q, 0.0) + a * b
    return taps


# Numbers are cached, tensors are not: one that torch.export or torch.compile makes while it traces is not real.
@lru_cache
def _synthesis_taps(J: int) -> tuple[list[list[list[float]]], int, int]:
    """Return the (2^J phases, 2^J bands, cells) kernel of a convolution over cells, and its reach before and after."""
    bands = _synthesis_bank(J)
    size = 2**J
    # Sample 2^J * n + r takes from band b of cell k the tap at offset 2^J * (n - k) + r.
    before = max(max(band) for band in bands) // size
    after = -(min(min(band) for band in bands) // size)
    kernel = [[[0.0] * (before + after + 1) for _ in range(size)] for _ in range(size)]
    for b, band in enumerate(bands):
        for offset, tap in band.items():
            kernel[offset % size][b][before - offset // size] = tap
    return kernel, before, after


def wrap(x: Tensor, *, before: int, after: int, dim: int) -> Tensor:
    """Pad circularly along `dim`, any number of times around: sides shorter than a filter stay exact."""
    length = x.shape[dim]
    if before > length or after > length:
        return x.index_select(dim, torch.arange(-before, length + after, device=x.device) % length)
    return torch.cat((x.narrow(dim, length - before, before), x, x.narrow(dim, 0, after)), dim=dim)


def _check_input(x: Tensor, *, J: int, what: str) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise CodecError(f"{what} takes a float tensor (N, C, H, W), not {x.dtype} {tuple(x.shape)}")
    if J < 1:
        raise CodecError(f"J is the number of wavelet levels, 1 or more, not {J}")


def wavelet_analysis(x: Tensor, J: int = 3) -> Tensor:
    """Return the wavelet-packet coefficients of pictures.

    Args:
        x: (N, C, H, W), float of any precision, H and W multiples of 2^J (pad others first). Differentiable.
        J: levels.

    Returns:
        (N, C * 4^J, H / 2^J, W / 2^J) in the reference's channel order; `wavelet_synthesis` is its inverse.

    Example:
        >>> import torch
        >>> from walloc_data.codec import wavelet_analysis
        >>> wavelet_analysis(torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 192, 8, 12])
    """
    _check_input(x, J=J, what="wavelet_analysis")
    size = 2**J
    if x.shape[2] % size or x.shape[3] % size or 0 in x.shape:
        raise CodecError(
            f"wavelet_analysis with J={J} takes sides that are multiples of {size}, not {x.shape[2]} x {x.shape[3]}: "
            "pad the picture first (walloc_data.format.padding_for says by how much)"
        )
    if J > MAX_FUSED_LEVELS:
        return wavelet_analysis(wavelet_analysis(x, MAX_FUSED_LEVELS), J - MAX_FUSED_LEVELS)
    batch, channels, height, width = x.shape
    h, w = height // size, width // size
    taps = torch.tensor(filter_taps(J), dtype=x.dtype, device=x.device)  # (2^J, 2R+1)
    radius = taps.shape[1] // 2
    x = x.reshape(batch * channels, 1, height, width)
    x = wrap(x, before=radius, after=radius, dim=2)
    x = F.conv2d(x, taps[:, None, :, None], stride=(size, 1))  # (N*C, 2^J height bands, h, W)
    x = wrap(x.reshape(batch * channels * size, 1, h, width), before=radius, after=radius, dim=3)
    x = F.conv2d(x, taps[:, None, None, :], stride=(1, size))  # (N*C*2^J, 2^J width bands, h, w)
    return interleave(x.reshape(batch, channels, size, size, h, w), J=J)


def deinterleave(weight: Tensor, *, channels: int, J: int) -> Tensor:
    """Rearrange (O, C * 4^J) coefficients to (O, C, width band, height band): width's bit comes first in each level."""
    return bands_of(weight.reshape(len(weight), channels * 4**J, 1, 1), J=J)[..., 0, 0]


def interleave(bands: Tensor, *, J: int) -> Tensor:
    """Rearrange (N, C, height band, width band, h, w) to (N, C * 4^J, h, w): the bits of the two bands alternate."""
    batch, channels, _, _, h, w = bands.shape
    bits = bands.reshape(batch, channels, *([2] * (2 * J)), h, w)
    order = [axis for j in range(J) for axis in (2 + J + j, 2 + j)]  # width's bit, then height's, level by level
    return bits.permute(0, 1, *order, 2 + 2 * J, 3 + 2 * J).reshape(batch, channels * 4**J, h, w)


def bands_of(X: Tensor, *, J: int) -> Tensor:
    """Rearrange coefficients (N, C * 4^J, h, w) to (N, C, width band, height band, h, w).

    `interleave` is the inverse, once the two axes of bands are exchanged.
    """
    batch, h, w = X.shape[0], *X.shape[2:]
    order = [2 + 2 * j for j in range(J)] + [3 + 2 * j for j in range(J)]
    bits = X.reshape(batch, -1, *([2] * (2 * J)), h, w).permute(0, 1, *order, 2 + 2 * J, 3 + 2 * J)
    return bits.reshape(batch, -1, 2**J, 2**J, h, w)


def analysis_matrix(J: int, *, cells: int) -> Tensor:
    """Return the analysis of one axis as a matrix, (2^J bands, cells, 2^J * cells samples), float64.

    Where many pictures of one size go through, two matrix products are faster than convolutions on a GPU.
    """
    size = 2**J
    radius = 4 * (size - 1)
    matrix = torch.zeros(size, cells, size * cells, dtype=torch.float64)
    for band, taps in enumerate(filter_taps(J)):
        for k in range(cells):
            for t, tap in enumerate(taps):
                matrix[band, k, (size * k + t - radius) % (size * cells)] += tap
    return matrix


def synthesis_matrix(J: int, *, cells: int) -> Tensor:
    """Return the synthesis of one axis as a matrix, (2^J * cells samples, 2^J bands, cells), float64."""
    size = 2**J
    matrix = torch.zeros(size * cells, size, cells, dtype=torch.float64)
    for band, taps in enumerate(_synthesis_bank(J)):
        for offset, tap in taps.items():
            for k in range(cells):
                matrix[(size * k + offset) % (size * cells), band, k] += tap
    return matrix


def wavelet_synthesis(X: Tensor, J: int = 3) -> Tensor:
    """Return pictures from wavelet-packet coefficients: (N, C * 4^J, h, w) to (N, C, 2^J * h, 2^J * w), exactly.

    The inverse of `wavelet_analysis`, to rounding, at any float precision. Differentiable.

    Example:
        >>> import torch
        >>> from walloc_data.codec import wavelet_analysis, wavelet_synthesis
        >>> x = torch.rand(1, 3, 64, 96, dtype=torch.float64)
        >>> x_hat = wavelet_synthesis(wavelet_analysis(x))
        >>> x_hat.shape, (x_hat - x).abs().max().item() < 1e-9
        (torch.Size([1, 3, 64, 96]), True)
    """
    _check_input(X, J=J, what="wavelet_synthesis")
    if X.shape[1] % 4**J or 0 in X.shape:
        raise CodecError(f"wavelet_synthesis with J={J} takes a multiple of {4**J} channels, not {tuple(X.shape)}")
    if X.dtype == torch.bfloat16 and X.device.type == "cpu":
        # oneDNN 3 on processors with AMX gives wrong sums for bfloat16 convolutions of 8 x 1 kernels and 8 channels.
        return wavelet_synthesis(X.float(), J).to(X.dtype)
    if J > MAX_FUSED_LEVELS:
        return wavelet_synthesis(wavelet_synthesis(X, J - MAX_FUSED_LEVELS), MAX_FUSED_LEVELS)
    batch, channels, h, w = X.shape[0], X.shape[1] // 4**J, X.shape[2], X.shape[3]
    size = 2**J
    bank, before, after = _synthesis_taps(J)
    kernel = torch.tensor(bank, dtype=X.dtype, device=X.device)
    x = bands_of(X, J=J).reshape(batch * channels * size, size, h, w)
    x = F.conv2d(wrap(x, before=before, after=after, dim=2), kernel[:, :, :, None])  # (N*C*2^J, phases, h, w)
    x = x.reshape(batch * channels, size, size, h, w).permute(0, 1, 3, 2, 4)  # (N*C, width band, h, phase, w)
    x = x.reshape(batch * channels, size, h * size, w)
    x = F.conv2d(wrap(x, before=before, after=after, dim=3), kernel[:, :, None, :])  # (N*C, phases, H, w)
    return x.permute(0, 2, 3, 1).reshape(batch, channels, h * size, w * size)


def reference_analysis(x: Tensor, J: int = 3) -> Tensor:
    """Return `wavelet_analysis` as computed by pytorch_wavelets, one level at a time: the reference for tests."""
    try:
        with warnings.catch_warnings():
            # It imports pkg_resources, whose deprecation warning is not useful here.
            warnings.simplefilter("ignore")
            from pytorch_wavelets import DWTForward
    except ImportError as error:
        raise MissingExtraError("pytorch_wavelets", extra="reference", purpose="the reference analysis") from error
    transform = DWTForward(J=1, mode="periodization", wave="bior4.4").to(x)
    for _ in range(J):
        low, (details,) = transform(x)
        x = torch.cat((low[:, :, None], details), dim=2).flatten(1, 2)
    return x
