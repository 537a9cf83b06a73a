"""Training crops that are cut on the device, which holds all pictures; a crop is given by three numbers.

A crop's value at row i, column j and colour c is ``pixels[start + i * row_step + j * column_step + c]``: mirrors and
quarter turns are signs and exchanges of the two steps. What a step sees is a function of (seed, step) alone.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from walloc_data.codec.training.picture_sets import Corpus
from walloc_data.errors import CodecError

__all__ = ["DeviceCrops", "change_colours", "draw_colours"]

_LUMA = (0.299, 0.587, 0.114)
_BLOCK_PX = 64  # candidates for a crop's corner lie this far apart; a random offset below this is added


class DeviceCrops:
    """Square crops of one size from the training pictures of a corpus, half of them at detailed places.

    Half of the crops are uniform over all places, half are drawn in proportion to the mean absolute difference of
    neighbouring pixels. Sets of pictures are drawn from by their weights.

    Args:
        corpus: the pictures; those that are held out or smaller than a crop are not used.
        pixels: its pixels as one flat uint8 tensor, on the device.
        side_px: of a crop.

    Attributes:
        left_out: sets of which no picture is large enough.
    """

    def __init__(self, corpus: Corpus, pixels: Tensor, *, side_px: int) -> None:
        self.pixels, self.side_px = pixels, side_px
        self.left_out: list[str] = []
        starts, widths, slack, probabilities = [], [], [], []
        for number, weight in enumerate(corpus.weights):
            detail: list[npt.NDArray[np.float64]] = []
            for i in corpus.members(number):
                height, width = (int(side) for side in corpus.shapes[i])
                if min(height, width) < side_px:
                    continue
                tops, lefts = _corners(height - side_px), _corners(width - side_px)
                start = corpus.first_pixel(i) + 3 * (tops[:, None] * width + lefts)
                starts.append(start.ravel())
                widths.append(np.full(start.size, width))
                room = np.broadcast_arrays((height - side_px - tops)[:, None], (width - side_px - lefts)[None])
                slack.append(np.stack([side.ravel() for side in room], axis=1))
                picture = pixels[corpus.first_pixel(i) :][: 3 * height * width].reshape(height, width, 3)
                detail.append(_detail(picture, side_px=side_px).ravel())
            if weight > 0 and not detail:
                self.left_out.append(corpus.names[number])
            if detail:
                values = np.concatenate(detail) + 1e-3
                probabilities.append(weight * (0.5 / len(values) + 0.5 * values / values.sum()))
        if not starts:
            raise CodecError(f"no training picture is {side_px} pixels high and wide: use larger ones or smaller crops")
        self._starts, self._widths = np.concatenate(starts), np.concatenate(widths)
        self._slack = np.minimum(np.concatenate(slack), _BLOCK_PX - 1)
        self._cumulative = np.cumsum(np.concatenate(probabilities))

    def draw(self, count: int, *, seed: int, step: int) -> Tensor:
        """Return what `cut` needs for the crops of one step, (count, 3) int64: start, row step, column step."""
        rng = np.random.default_rng([seed, step])
        places = np.searchsorted(self._cumulative, rng.random(count) * self._cumulative[-1], side="right")
        places = np.minimum(places, len(self._starts) - 1)
        offsets = rng.integers(self._slack[places] + 1)  # (count, 2): down and to the right
        width, last = self._widths[places], self.side_px - 1
        steps = np.stack([3 * width, np.full(count, 3)])  # down the rows, along the columns
        start = self._starts[places] + (offsets * steps.T).sum(1)
        mirrored = rng.integers(2, size=(2, count)).astype(bool)
        start = start + (mirrored * steps).sum(0) * last
        steps = np.where(mirrored, -steps, steps)
        turned = rng.integers(2, size=count).astype(bool)
        steps = np.where(turned, steps[::-1], steps)
        return torch.from_numpy(np.stack([start, *steps], axis=1).astype(np.int64))

    def cut(self, crops: Tensor) -> Tensor:
        """Return crops that were drawn, (count, 3, side_px, side_px) uint8."""
        along = torch.arange(self.side_px, device=crops.device)
        start, down, right = (crops[:, k, None, None, None] for k in range(3))
        colours = torch.arange(3, device=crops.device)[:, None, None]
        return self.pixels[start + down * along[:, None] + right * along + colours]


def draw_colours(count: int, *, part: float, seed: int, step: int) -> Tensor:
    """Return the colour changes of one step's crops, (count, 2) float32: factors of saturation and of contrast.

    `part` of each are drawn, log-uniform in [0.6, 1.6] and uniform in [0.7, 1.2]; the others are 1.
    """
    rng = np.random.default_rng([seed, step, 1])
    factors = np.stack([np.exp(rng.uniform(np.log(0.6), np.log(1.6), count)), rng.uniform(0.7, 1.2, count)], axis=1)
    return torch.from_numpy(np.where(rng.random((count, 2)) < part, factors, 1.0)).float()


def change_colours(x: Tensor, factors: Tensor) -> Tensor:
    """Change saturation and contrast of pictures (N, 3, H, W) in [0, 255] by `draw_colours`' factors; clamped."""
    saturation, contrast = (factors[:, k, None, None, None] for k in range(2))
    red, green, blue = (weight * x[:, k : k + 1] for k, weight in enumerate(_LUMA))
    grey = red + green + blue
    return (127.5 + contrast * (grey + saturation * (x - grey) - 127.5)).clamp(0, 255)


def _corners(room_px: int) -> npt.NDArray[np.int64]:
    return np.arange(0, room_px + 1, _BLOCK_PX)


def _detail(picture: Tensor, *, side_px: int) -> npt.NDArray[np.float64]:
    """Return the mean absolute difference of neighbouring pixels of a picture's crops (H, W, 3), in steps of a block.

    The mean is over whole blocks, the last of which can end beyond the crop.
    """
    green = picture[..., 1].float()
    total = (green[1:, 1:] - green[1:, :-1]).abs() + (green[1:, 1:] - green[:-1, 1:]).abs()
    blocks = F.avg_pool2d(total[None], _BLOCK_PX, ceil_mode=True)
    height, width = (len(range(0, side - side_px + 1, _BLOCK_PX)) for side in picture.shape[:2])
    means = F.avg_pool2d(blocks, min(-(-side_px // _BLOCK_PX), *blocks.shape[1:]), stride=1)[0]
    padded = F.pad(means[None], (0, max(0, width - means.shape[1]), 0, max(0, height - means.shape[0])), "replicate")
    found: npt.NDArray[np.float64] = padded[0, :height, :width].cpu().numpy().astype(np.float64)
    return found
