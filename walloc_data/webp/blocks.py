"""Choice of the predictor and the class of prefix codes of each block of 4 x 4 pixels."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK_BITS", "EFFORTS", "Effort", "Grid", "classify", "grid_of", "predict"]

BLOCK_BITS = 2  # predictors and codes change every 4 x 4 pixels
_BLOCK = 1 << BLOCK_BITS
_MAX_CLASSES = 48
_GRID = 16.0  # Bits are counted in sixteenths: in whole numbers, which sum up alike on every machine

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Effort:
    """Search settings for one effort level."""

    modes: tuple[int, ...]  # of the format's 14 predictors: 0, which is none, and some of 1, 2, 5, 7, 10 and 12
    classes: float  # times the cube root of the number of blocks
    rounds: int  # of Lloyd's algorithm


EFFORTS = {
    # The most effective predictors, and the number of classes with the smallest files, for 16 to 6144 blocks.
    "default": Effort(modes=(0, 1, 2, 5, 7, 10, 12), classes=0.6, rounds=6),
    "fast": Effort(modes=(0, 1, 2, 7), classes=0.35, rounds=1),
}


@dataclass(frozen=True)
class Grid:
    """The blocks of one size of picture."""

    height: int
    width: int
    rows: int
    columns: int
    sizes: _Ints  # (rows, columns) pixels of each
    of_pixel: _Ints  # (H * W,) its block

    @property
    def blocks(self) -> int:
        return self.rows * self.columns


@lru_cache(maxsize=16)
def grid_of(height: int, width: int) -> Grid:
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    tall = np.minimum(_BLOCK, height - np.arange(rows) * _BLOCK)
    wide = np.minimum(_BLOCK, width - np.arange(columns) * _BLOCK)
    of_pixel = np.arange(height)[:, None] // _BLOCK * columns + np.arange(width) // _BLOCK
    return Grid(height, width, rows, columns, np.multiply.outer(tall, wide), of_pixel.reshape(-1))


def _average(a: _Bytes, b: _Bytes) -> _Bytes:
    return (a & b) + ((a ^ b) >> 1)  # floor((a + b) / 2) without a wider type


def predict(planes: _Bytes, grid: Grid, effort: Effort) -> tuple[_Bytes, _Bytes, npt.NDArray[np.int32]]:
    """Return residuals (N, 3, H, W), the mode of every block (N, rows, columns), and its pixels' approximate cost."""
    count, _, height, width = planes.shape
    flat = planes.reshape(count, 3, height * width)

    def shifted(distance: int) -> _Bytes:
        moved = np.zeros_like(flat)
        if distance < height * width:
            moved[:, :, distance:] = flat[:, :, : height * width - distance]
        return moved.reshape(planes.shape)

    # Neighbours in raster order, as the format has them: right of the last column lies the next row's first pixel.
    left, top, top_left, top_right = shifted(1), shifted(width), shifted(width + 1), shifted(width - 1)

    def prediction(mode: int) -> _Bytes:
        if mode == 1:
            return left
        if mode == 2:
            return top
        if mode == 5:
            return _average(_average(left, top_right), top)
        if mode == 7:
            return _average(left, top)
        if mode == 10:
            return _average(_average(left, top_left), _average(top, top_right))
        gradient = np.subtract(np.add(left, top, dtype=np.int16), top_left, dtype=np.int16)
        return np.clip(gradient, 0, 255).astype(np.uint8)

    residuals = [planes if mode == 0 else planes - prediction(mode) for mode in effort.modes]
    costs = [
        # Without a prediction, values lie around 128 and not around 0.
        _block_cost(residual ^ np.uint8(128) if mode == 0 else residual, grid)
        for mode, residual in zip(effort.modes, residuals, strict=True)
    ]
    predicted = np.stack(costs[1:])
    cost, choice = predicted.min(axis=0), predicted.argmin(axis=0) + 1
    # Residuals with and without a prediction share no code, so 2 x 2 blocks decide together whether to have one.
    bare = _each_four(costs[0]) < _each_four(cost)
    cost, choice = np.where(bare, costs[0], cost), np.where(bare, 0, choice)
    of_pixel = np.repeat(np.repeat(choice.astype(np.uint8), _BLOCK, axis=1), _BLOCK, axis=2)[:, None, :height, :width]
    result = planes.copy()
    for number in range(1, len(effort.modes)):
        np.copyto(result, residuals[number], where=of_pixel == number)
    # The format's borders: the first pixel has no prediction, the first row the left one, the first column the top one.
    result[:, :, 0, 1:] = planes[:, :, 0, 1:] - planes[:, :, 0, :-1]
    result[:, :, 1:, 0] = planes[:, :, 1:, 0] - planes[:, :, :-1, 0]
    result[:, :, 0, 0] = planes[:, :, 0, 0]
    return result, np.array(effort.modes, dtype=np.uint8)[choice], cost


@lru_cache(maxsize=1)
def _cost_of_sum() -> npt.NDArray[np.int32]:
    """Return the sixteenths of bits that a residual takes, less a constant, by the sum of 16 residuals' sizes.

    The bits of a residual follow the logarithm of its mean size; a third stands for what zero still costs.
    """
    return np.rint(_GRID * np.log2(np.arange(_BLOCK**2 * 128 + 1) / _BLOCK**2 + 0.35)).astype(np.int32)


def _block_cost(residual: _Bytes, grid: Grid) -> npt.NDArray[np.int32]:
    """Estimate the sixteenths of bits that a pixel of every block takes, (N, rows, columns), less a constant."""
    size = np.abs(residual.view(np.int8)).view(np.uint8)  # |-128| stays 128
    ragged = grid.height % _BLOCK or grid.width % _BLOCK
    if ragged:
        whole = np.zeros((*size.shape[:2], grid.rows * _BLOCK, grid.columns * _BLOCK), dtype=np.uint8)
        whole[:, :, : grid.height, : grid.width] = size
        size = whole
    pairs = np.add(size[:, :, ::2], size[:, :, 1::2], dtype=np.uint16)
    fours = pairs[:, :, ::2] + pairs[:, :, 1::2]
    fours = fours[..., ::2] + fours[..., 1::2]
    sums = fours[..., ::2] + fours[..., 1::2]  # of 4 x 4 pixels, of fewer at the borders
    if ragged:
        sums = sums.astype(np.int64) * _BLOCK**2 // grid.sizes
    cost: npt.NDArray[np.int32] = _cost_of_sum()[sums].sum(axis=1, dtype=np.int32)
    return cost


def _each_four(cost: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return sums over 2 x 2 blocks, (N, rows, columns), at the place of every one of them."""
    count, rows, columns = cost.shape
    even = np.zeros((count, rows + rows % 2, columns + columns % 2), dtype=np.int32)
    even[:, :rows, :columns] = cost
    sums = even[:, ::2] + even[:, 1::2]
    sums = sums[:, :, ::2] + sums[:, :, 1::2]
    return np.repeat(np.repeat(sums, 2, axis=1), 2, axis=2)[:, :rows, :columns]


@lru_cache(maxsize=1)
def _buckets() -> tuple[npt.NDArray[np.int64], int]:
    """Map residuals to size classes, whose width grows away from 0 and from 128."""
    edges = np.array([1, 2, 3, 5, 7, 10, 15, 23, 41])
    signed = np.abs(np.arange(256).astype(np.uint8).view(np.int8).astype(int))
    near_zero = np.searchsorted(edges, signed, side="right")
    near_middle = np.searchsorted(edges, 128 - signed, side="right")
    bucket = np.where(signed < 64, near_zero, 2 * len(edges) + 1 - near_middle)
    return bucket.astype(np.int64), 2 * len(edges) + 2


def classify(residuals: _Bytes, modes: _Bytes, cost: npt.NDArray[np.int32], grid: Grid, effort: Effort) -> _Ints:
    """Return the class of every block, (N, blocks), numbered from 0 in every picture without gaps."""
    count, blocks = len(residuals), grid.blocks
    classes = max(1, min(_MAX_CLASSES, round(effort.classes * blocks ** (1 / 3))))
    bucket, buckets = _buckets()
    features = 3 * buckets
    # Blocks last: the products below then have long rows.
    base = np.arange(count)[:, None, None] * (features * blocks) + np.arange(3)[:, None] * (buckets * blocks)
    index = (bucket * blocks).take(residuals.reshape(count, 3, -1))
    index += base + grid.of_pixel  # (N, 3, H * W)
    histogram = np.bincount(index.reshape(-1), minlength=count * features * blocks)
    histogram = histogram.reshape(count, features, blocks).astype(np.float32)
    by_block = histogram.transpose(0, 2, 1)
    # Start from classes of equal size by cost, blocks without a prediction apart.
    order = np.argsort(cost.reshape(count, blocks) + 2**16 * (modes.reshape(count, blocks) == 0), axis=1, kind="stable")
    member = np.empty((count, blocks), dtype=np.int64)
    np.put_along_axis(member, order, np.broadcast_to(np.arange(blocks) * classes // blocks, order.shape), axis=1)
    number = np.arange(classes)[:, None]
    for _ in range(effort.rounds):
        one_hot = member[:, None, :] == number  # (N, classes, blocks)
        # Products of small whole numbers: float32 holds their sums exactly, whatever the order.
        totals = (one_hot.astype(np.float32) @ by_block).reshape(count, classes, 3, buckets).astype(np.float64) + 0.02
        bits = np.rint(-_GRID * np.log2(totals / totals.sum(axis=3, keepdims=True))).astype(np.float32)
        share = np.count_nonzero(one_hot, axis=2) / blocks
        spent = bits.reshape(count, classes, features) @ histogram
        spent += np.rint(-_GRID * np.log2(share + 1e-3)).astype(np.float32)[:, :, None]
        member = spent.argmin(axis=1)
    # Number the classes that are left.
    used = np.zeros((count, classes), dtype=np.int64)
    used[np.arange(count)[:, None], member] = 1
    return np.take_along_axis(np.cumsum(used, axis=1) - 1, member, axis=1)
