"""The bundled decoders: small residual networks at latent resolution, and decoding by overlapping tiles.

    v (N,12,h,w) --+-- 3x3 --> [ 3x3 grouped, ReLU, 1x1, + ] x blocks -- ReLU, 1x1 --+--> X^ (N,192,h,w)
                   +------------------------- 1x1 (the linear decoder) --------------+

Nothing attends and nothing normalises over the picture, so a cell of the output depends on the cells within
`halo_cells` of it and on no others. Hence memory is linear in the picture, and tiles that overlap by that much agree
with the whole picture to rounding. Grouped 3x3 kernels between full 1x1 ones hold twice the features of a plain
residual block for the same multiplications (Xie et al., Aggregated Residual Transformations, arXiv 1611.05431).
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from walloc_data.codec.wavelets import wavelet_synthesis
from walloc_data.errors import CodecError

__all__ = ["ConvDecoder", "build_decoder", "decode_tiled", "decode_tiles", "halo_cells"]

# A synthesis filter of J levels reaches fewer than this many cells to either side, whatever J is.
_SYNTHESIS_HALO_CELLS = 4

# What a codec.json may ask to be built: it is a file from anywhere.
_MAX_WIDTH, _MAX_BLOCKS = 2048, 64


class _Pointwise(nn.Conv2d):
    """A 1x1 convolution of a channels-last picture, one row a batch entry: the same numbers from a faster kernel.

    On one thread torch leaves oneDNN's kernel for one three times slower when the batch is below 16.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch * h, 1, w, -1).permute(0, 3, 1, 2)  # (N*h, C, 1, w)
        return super().forward(rows).permute(0, 2, 3, 1).reshape(batch, h, w, -1).permute(0, 3, 1, 2)


class _Block(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.mix = _Pointwise(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.space(x).relu_())  # type: ignore[no-any-return]


class ConvDecoder(nn.Module):
    """Expanded latents to wavelet-packet coefficients, (N, latent_dim, h, w) to (N, out_channels, h, w).

    Args:
        latent_dim, out_channels: channels in and out.
        width: features of the body.
        blocks: residual blocks, each of which sees one cell further.
        groups: of the 3x3 kernels; divides `width`.
    """

    def __init__(self, latent_dim: int, out_channels: int, *, width: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.config = {"kind": "conv", "width": width, "blocks": blocks, "groups": groups}
        self.halo_cells = 1 + blocks
        self.entry = nn.Conv2d(latent_dim, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width, groups) for _ in range(blocks)))
        self.exit = _Pointwise(width, out_channels)
        self.skip = _Pointwise(latent_dim, out_channels)

    def forward(self, v: Tensor) -> Tensor:
        features = self.blocks(self.entry(v.contiguous(memory_format=torch.channels_last)))
        # The linear part stays out of autocast: it carries most of the signal and costs next to nothing.
        with torch.autocast(v.device.type, enabled=False):
            linear = self.skip(v)
        return linear + self.exit(features.relu_()).to(linear.dtype)  # type: ignore[no-any-return]


def build_decoder(description: Mapping[str, Any], *, latent_dim: int, out_channels: int) -> ConvDecoder:
    """The decoder that a codec.json describes: {"kind": "conv", "width", "blocks", "groups"}.

    Raises:
        CodecError: a value is missing, or beyond what this package builds.
    """
    limits = {"width": _MAX_WIDTH, "blocks": _MAX_BLOCKS, "groups": _MAX_WIDTH}
    if unknown := sorted(set(description) - set(limits) - {"kind"}):
        raise CodecError(f"decoder: unknown settings {unknown}; made by a newer walloc_data?")
    values: dict[str, int] = {}
    for name, limit in limits.items():
        value = description.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise CodecError(f"decoder: {name} must be an integer in [1, {limit}], not {value!r}")
        values[name] = value
    if values["width"] % values["groups"]:
        raise CodecError(f"decoder: groups {values['groups']} must divide width {values['width']}")
    return ConvDecoder(latent_dim, out_channels, **values).to(memory_format=torch.channels_last)


def halo_cells(network: nn.Module) -> int | None:
    """How far a decoder sees, in cells; None if its output depends on the whole picture, so that it cannot be tiled."""
    if isinstance(network, ConvDecoder):
        return network.halo_cells
    return 0 if isinstance(network, nn.Conv2d) and network.kernel_size == (1, 1) else None


def decode_tiles(
    network: Callable[[Tensor], Tensor], latents: Tensor, *, J: int, halo: int, tile_cells: int = 128
) -> Iterator[tuple[int, int, Tensor]]:
    """Decode one picture piece by piece; memory does not grow with the picture.

    Args:
        network: from a piece of the latents (1, C, rows, columns) to its coefficients.
        latents: (1, C, h, w), integers or expanded, whatever `network` takes.
        J: wavelet levels.
        halo: cells that `network` sees to every side.
        tile_cells: of a tile's side.

    Yields:
        (top, left, pixels): the position in pixels, and (1, colours, height, width) pixels, not clamped.
    """
    h, w = latents.shape[2:]
    size = 2**J
    for top in range(0, h, tile_cells):
        for left in range(0, w, tile_cells):
            tall, wide = min(tile_cells, h - top), min(tile_cells, w - left)
            rows, columns = _segments(top, tall, h), _segments(left, wide, w)
            coefficients = torch.cat(
                [torch.cat([_piece(network, latents, r, c, halo=halo) for c in columns], dim=3) for r in rows], dim=2
            )
            # Synthesis wraps around the tile; what that spoils is the margin, which goes.
            y = 0 if tall == h else _SYNTHESIS_HALO_CELLS * size
            x = 0 if wide == w else _SYNTHESIS_HALO_CELLS * size
            pixels = wavelet_synthesis(coefficients, J)
            yield top * size, left * size, pixels[:, :, y : y + tall * size, x : x + wide * size]


def decode_tiled(
    network: Callable[[Tensor], Tensor], latents: Tensor, *, J: int, halo: int, tile_cells: int = 128
) -> Tensor:
    """Whole pictures by overlapping tiles: (N, C, h, w) to (N, colours, 2^J h, 2^J w), not clamped.

    Equal to ``wavelet_synthesis(network(latents), J)`` to rounding; beside the result it holds one tile.
    """
    batch, _, h, w = latents.shape
    result: Tensor | None = None
    for i in range(batch):
        for top, left, pixels in decode_tiles(network, latents[i : i + 1], J=J, halo=halo, tile_cells=tile_cells):
            if result is None:
                result = pixels.new_empty(batch, pixels.shape[1], h << J, w << J)
            result[i, :, top : top + pixels.shape[2], left : left + pixels.shape[3]] = pixels[0]
    if result is None:
        raise CodecError(f"no latents to decode: {tuple(latents.shape)}")
    return result


def _segments(start: int, count: int, length: int) -> list[tuple[int, int]]:
    """The cells that synthesis of [start, start + count) reads, as ranges: it wraps around the picture's ends."""
    if count == length:
        return [(0, length)]
    low, high = start - _SYNTHESIS_HALO_CELLS, start + count + _SYNTHESIS_HALO_CELLS
    cuts = [low, *(edge for edge in range((low // length + 1) * length, high, length)), high]
    return [(a % length, a % length + b - a) for a, b in pairwise(cuts)]


def _piece(
    network: Callable[[Tensor], Tensor], latents: Tensor, rows: tuple[int, int], columns: tuple[int, int], *, halo: int
) -> Tensor:
    """Coefficients of a range of cells, computed with the halo that the picture has there."""
    (top, bottom), (left, right) = rows, columns
    up, before = min(halo, top), min(halo, left)
    seen = latents[:, :, top - up : bottom + halo, left - before : right + halo]
    return network(seen)[:, :, up : up + bottom - top, before : before + right - left]
