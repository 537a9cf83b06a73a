"""MS-SSIM of 8-bit pictures (Wang, Simoncelli and Bovik, Asilomar 2003), as the common implementations define it.

Gaussian windows of 11 x 11 taps and deviation 1.5, without padding; five scales, each the 2 x 2 mean of the one before;
contrast at every scale and luminance at the last, with the paper's exponents; the mean over the three colours.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _blur(x: torch.Tensor) -> torch.Tensor:
    taps = torch.exp(-(torch.arange(-5, 6, dtype=x.dtype) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    return F.conv2d(F.conv2d(x, taps.view(1, 1, 11, 1)), taps.view(1, 1, 1, 11))


def ms_ssim(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    """In [0, 1], of two (H, W, 3) uint8 pictures with sides of 176 pixels or more."""
    if first.shape != second.shape or min(first.shape[:2]) < 176:
        raise ValueError(f"MS-SSIM takes two pictures of one size, 176 pixels or more: {first.shape}, {second.shape}")
    x, y = (torch.from_numpy(np.array(p)).float().permute(2, 0, 1)[:, None] for p in (first, second))
    value = torch.ones(3)
    for scale, weight in enumerate(WEIGHTS):
        mean_x, mean_y = _blur(x), _blur(y)
        var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
        covariance = _blur(x * y) - mean_x * mean_y
        factor = (2 * covariance + C2) / (var_x + var_y + C2)
        if scale == len(WEIGHTS) - 1:
            factor = factor * (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
        value = value * factor.mean((1, 2, 3)).clamp(min=0) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return float(value.mean())
