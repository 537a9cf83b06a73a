"""Conversion of boxes in source pictures to latent cells, or to pixels of the encoded picture."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from walloc_data.errors import LoaderError
from walloc_data.format import padding_for

__all__ = ["CROP_FIELDS", "boxes_to_cells", "boxes_to_pixels"]

# The column "crop" of a sample, as six numbers.
CROP_FIELDS = ("crop_left", "crop_top", "crop_right", "crop_bottom", "width", "height")
BoxForm = Literal["xyxy", "xywh", "cxcywh"]


def boxes_to_pixels(
    boxes: Any, crop: Any, *, form: BoxForm = "xyxy", mirrored: bool = False, clip: bool = True
) -> Tensor:
    """Convert boxes in the source picture to pixels of the encoded picture.

    Args:
        boxes: (n, 4) or (4,), tensor or lists, in pixels of the source picture after its EXIF orientation is applied.
        crop: value of the column "crop": left, top, right, bottom in the source; encoded width and height.
        form: "xyxy" (corners), "xywh" (corner and size) or "cxcywh" (centre and size).
        mirrored: value of the column "mirrored", if stored mirror images are read.
        clip: clip boxes to the picture; boxes outside get an area of zero.

    Returns:
        float32 (n, 4) or (4,): left, top, right, bottom.

    Example:
        >>> from walloc_data.dataset import boxes_to_pixels
        >>> boxes_to_pixels([[40, 0, 20, 30]], (20, 0, 120, 100, 50, 50), form="xywh")
        tensor([[10.,  0., 20., 15.]])
    """
    x0, y0, x1, y1 = _corners(boxes, form).unbind(-1)
    left, top, right, bottom, width, height = (float(value) for value in crop)
    x0, x1 = ((x - left) * (width / (right - left)) for x in (x0, x1))
    y0, y1 = ((y - top) * (height / (bottom - top)) for y in (y0, y1))
    if mirrored:
        x0, x1 = width - x1, width - x0
    if clip:
        x0, x1 = x0.clamp(0, width), x1.clamp(0, width)
        y0, y1 = y0.clamp(0, height), y1.clamp(0, height)
    return torch.stack([x0, y0, x1, y1], dim=-1).float()


def boxes_to_cells(
    boxes: Any,
    crop: Any,
    *,
    form: BoxForm = "xyxy",
    mirrored: bool = False,
    clip: bool = True,
    cell_px: int = 8,
) -> Tensor:
    """Convert boxes in the source picture to cells of the latent.

    Cell (i, j) spans columns j to j + 1 and rows i to i + 1. The padding of the picture is taken into account.

    Args:
        boxes, crop, form, mirrored, clip: as for `boxes_to_pixels`.
        cell_px: side of a cell in pixels, `manifest.codec.cell_px`.

    Returns:
        float32 (n, 4) or (4,): left, top, right, bottom.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.dataset import boxes_to_cells
        >>> latent, label, crop = LatentDataset("my-latents", columns=["crop"])[0]
        >>> left, top, right, bottom = crop[:4].tolist()  # the whole of what was encoded
        >>> boxes_to_cells([[left, top, right, bottom]], crop), latent.shape
        (tensor([[ 0.,  0., 12., 12.]]), torch.Size([12, 12, 12]))
    """
    pixels = boxes_to_pixels(boxes, crop, form=form, mirrored=mirrored, clip=clip)
    width, height = (int(value) for value in crop[4:6])
    pad_left, pad_top, _, _ = padding_for(height, width, multiple=cell_px)
    # A mirrored picture is mirrored before it is padded, so its padding is on the same sides.
    return (pixels + torch.tensor([pad_left, pad_top, pad_left, pad_top], dtype=torch.float32)) / cell_px


def _corners(boxes: Any, form: BoxForm) -> Tensor:
    """Return (..., 4) float64 left, top, right, bottom."""
    found = boxes if isinstance(boxes, Tensor) else torch.tensor(_rows(boxes), dtype=torch.float64)
    found = found.double()
    if found.numel() == 0:
        return found.reshape(0, 4)
    if found.shape[-1] != 4:
        raise LoaderError(f"a box is four numbers, not {tuple(found.shape)}")
    a, b, c, d = found.unbind(-1)
    if form == "xyxy":
        return found
    if form == "xywh":
        return torch.stack([a, b, a + c, b + d], dim=-1)
    if form == "cxcywh":
        return torch.stack([a - c / 2, b - d / 2, a + c / 2, b + d / 2], dim=-1)
    raise LoaderError(f"form must be 'xyxy', 'xywh' or 'cxcywh', not {form!r}")


def _rows(boxes: Any) -> Any:
    return [] if boxes is None else list(boxes) if isinstance(boxes, Sequence) else boxes
