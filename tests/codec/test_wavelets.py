"""The wavelet packets equal PyWavelets' and pytorch_wavelets', and come back exactly."""

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from walloc_data.codec import wavelets
from walloc_data.codec.wavelets import filter_taps, reference_analysis, wavelet_analysis, wavelet_synthesis
from walloc_data.errors import CodecError


def pywt_analysis(x: Tensor, J: int) -> Tensor:
    bands = x.numpy()
    for _ in range(J):
        low, details = pywt.dwt2(bands, "bior4.4", "periodization")
        bands = np.stack((low, *details), axis=2).reshape(len(bands), -1, *low.shape[2:])
    return torch.from_numpy(bands)


def test_taps_are_pywavelets_bior44() -> None:
    wavelet = pywt.Wavelet("bior4.4")
    assert list(wavelets.DEC_LO) == wavelet.dec_lo
    assert list(wavelets.DEC_HI) == wavelet.dec_hi
    assert list(wavelets.REC_LO) == wavelet.rec_lo
    assert list(wavelets.REC_HI) == wavelet.rec_hi


@pytest.mark.parametrize(("J", "taps"), [(1, 9), (2, 25), (3, 57), (4, 121)])
def test_an_axis_is_one_bank_of_short_filters(J: int, taps: int) -> None:
    bank = filter_taps(J)
    assert len(bank) == 2**J
    assert {len(band) for band in bank} == {taps}
    # The low-pass chain passes a constant, the others stop it.
    assert [sum(band) for band in bank] == pytest.approx([2 ** (J / 2)] + [0.0] * (2**J - 1), abs=1e-11)


@settings(max_examples=40, deadline=None)
@given(
    J=st.integers(1, 5), h=st.integers(1, 5), w=st.integers(1, 5), channels=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_any_size_equals_pywavelets_and_comes_back(J: int, h: int, w: int, channels: int, seed: int) -> None:
    # Sides from one cell on: shorter than a filter, which then wraps around several times.
    x = torch.randn(2, channels, h * 2**J, w * 2**J, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    X = wavelet_analysis(x, J)
    assert X.shape == (2, channels * 4**J, h, w)
    torch.testing.assert_close(X, pywt_analysis(x, J), rtol=0, atol=1e-12)
    torch.testing.assert_close(wavelet_synthesis(X, J), x, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("J", [1, 2, 3, 4])
def test_photographs_equal_pytorch_wavelets(kodak_pictures: list[Tensor], J: int) -> None:
    for picture in kodak_pictures[:3]:
        x = picture.float() / 255 - 0.5
        X = wavelet_analysis(x, J)
        # Values reach 2^J / 2; at J = 4 float32 itself is worth more than 1e-5 after thirty passes.
        torch.testing.assert_close(X, reference_analysis(x, J), rtol=0, atol=1e-5 if J < 4 else 2e-5)
        torch.testing.assert_close(wavelet_synthesis(X, J), x, rtol=0, atol=1e-5)


def test_half_precision_keeps_its_type_and_its_two_digits() -> None:
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    X = wavelet_analysis(x.bfloat16())
    assert X.dtype == torch.bfloat16
    torch.testing.assert_close(X.float(), wavelet_analysis(x), rtol=0, atol=0.03)
    assert wavelet_synthesis(X).dtype == torch.bfloat16
    torch.testing.assert_close(wavelet_synthesis(X).float(), x, rtol=0, atol=0.03)


def test_both_ways_have_gradients() -> None:
    x = torch.randn(1, 1, 8, 16, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    X = torch.randn(1, 64, 1, 2, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(wavelet_analysis, (x,))
    assert torch.autograd.gradcheck(wavelet_synthesis, (X,))


def test_other_sizes_are_refused_with_the_remedy() -> None:
    with pytest.raises(CodecError, match="multiples of 8, not 16 x 12: pad the picture first"):
        wavelet_analysis(torch.zeros(1, 3, 16, 12))
    with pytest.raises(CodecError, match="a multiple of 64 channels, not"):
        wavelet_synthesis(torch.zeros(1, 63, 2, 2))
    with pytest.raises(CodecError, match="float tensor"):
        wavelet_analysis(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(CodecError, match="1 or more, not 0"):
        wavelet_analysis(torch.zeros(1, 3, 16, 16), 0)
