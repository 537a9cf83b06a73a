"""Filling, summing and gathering of the linear encoder's buffers, by whichever library does it fastest."""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["HALO_CELLS", "fill_wrapped", "gather_windows", "shaped", "sum_neighbours", "true_indices"]

HALO_CELLS = (4, 3)  # cells before and after that a kernel of radius R < 4 * 2^J reaches


def shaped(buffer: Tensor, *shape: int) -> Tensor:
    """Return the start of a buffer in another shape."""
    return buffer[: math.prod(shape)].view(shape)


def fill_wrapped(pixels: Tensor, pictures: Tensor, *, top: int, left: int) -> None:
    """Copy pictures (n, H, W, C) into `pixels`: from row `top` on, `left` pixels in, wrapping around.

    uint8 p becomes int8 p - 128, which is flipping the top bit.
    """
    height, width = pictures.shape[1:3]
    filled, row = 0, top % height
    while filled < pixels.shape[1]:
        count = min(height - row, pixels.shape[1] - filled)
        target, source = pixels[:, filled : filled + count, left : left + width], pictures[:, row : row + count]
        if pictures.dtype == torch.uint8:
            torch.bitwise_xor(source, 128, out=target.view(torch.uint8))
        else:
            target.copy_(source)
        filled, row = filled + count, 0
    middle = pixels[:, :, left : left + width]
    # Both sides repeat the picture, as often as it takes.
    for start in range(left - width, -width, -width):
        pixels[:, :, max(start, 0) : start + width] = middle[:, :, max(-start, 0) :]
    for start in range(left + width, pixels.shape[2], width):
        pixels[:, :, start : start + width] = middle[:, :, : pixels.shape[2] - start]


def sum_neighbours(parts: Tensor, values: Tensor) -> None:
    """Sum what cells add to each other: `parts`, (tall, n, w, cells * O), which it overwrites, to `values`, (..., O).

    The part for the cell k - 4 places to the right, wrapping around, is number k of 8: halves, then quarters, then the
    last two are added, as adding long runs takes less time than adding many.
    """
    w, outputs = values.shape[2:]
    middle = HALO_CELLS[0] * outputs

    def add(left: Tensor, right: Tensor, shift: int, out: Tensor) -> None:
        shift %= w
        torch.add(left[:, :, : w - shift], right[:, :, shift:], out=out[:, :, : w - shift])
        if shift:
            torch.add(left[:, :, w - shift :], right[:, :, :shift], out=out[:, :, w - shift :])

    four = parts[..., middle:]
    add(four, parts[..., :middle], -4, four)
    two = four[..., : 2 * outputs]
    add(two, four[..., 2 * outputs :], 2, two)
    add(two[..., :outputs], two[..., outputs:], 1, values)


def true_indices(mask: Tensor) -> tuple[Tensor, ...]:
    """Return the indices where a mask is true, by dimension. On a CPU numpy is ten times faster than torch."""
    if mask.device.type == "cpu":
        flat = mask.view(-1).numpy().nonzero()[0]
        return tuple(torch.from_numpy(index) for index in np.unravel_index(flat, mask.shape))
    return mask.nonzero(as_tuple=True)


def gather_windows(windows: Tensor, index: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return copies of windows, `windows[index]`."""
    if windows.device.type == "cpu":  # numpy copies whole rows of a window where torch copies values
        return torch.from_numpy(windows.numpy()[tuple(part.numpy() for part in index)])
    return windows[index]
