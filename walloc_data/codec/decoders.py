"""Decoder networks: residual networks at latent resolution, and decoding large pictures by overlapping tiles.

    conv   v (N,12,h,w) --+-- 3x3 --> [ 3x3 grouped, ReLU, 1x1, + ] x blocks -- ReLU, 1x1 --+--> X^ (N,192,h,w)
                          +------------------------- 1x1 (the linear decoder) --------------+

    unet   the same, with a branch at half and quarter resolution around the middle of the blocks:

           blocks / 3 --+---------------------------------------- + --> the other blocks
                        +-- 2x2 /2 --> half -----------+-> half --^ 1x1, PixelShuffle x2
                                        +-- 2x2 /2 --> quarter --^ 1x1, PixelShuffle x2

No layer attends to or normalises over the whole picture, so a cell of the output depends only on the cells within
`halo_cells` of it. Memory is therefore linear in the picture's size, and tiles that overlap by the halo agree with
the whole picture to rounding. The branch widens the view to tens of cells for a few per cent of the multiplications
(Ronneberger et al., U-Net, arXiv 1505.04597): regular structure finer than a cell is aliased in the latents, and only
neighbours many cells away tell its direction. Grouped 3x3 kernels between full 1x1 ones hold twice the features of a
plain residual block for the same multiplications (Xie et al., ResNeXt, arXiv 1611.05431).
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from walloc_data.codec.wavelets import wavelet_synthesis
from walloc_data.errors import CodecError

__all__ = [
    "ConvDecoder", "Decoder", "UNetDecoder", "build_decoder", "decode_tiled", "decode_tiles", "halo_cells",
]  # fmt: skip

# A synthesis filter of J levels reaches fewer than this many cells to either side, whatever J is.
_SYNTHESIS_HALO_CELLS = 4

# What a codec.json may ask to be built: it is a file from anywhere.
_MAX_WIDTH, _MAX_BLOCKS = 2048, 64


class _Pointwise(nn.Conv2d):
    """Apply a 1x1 convolution to a channels-last picture, one row a batch entry: the same numbers from a faster kernel.

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


class Decoder(nn.Module):
    """Base of the decoder networks: expanded latents (N, latent_dim, h, w) to coefficients (N, out_channels, h, w).

    Attributes:
        config: what a codec.json says of the network; `build_decoder` builds it from this.
        halo_cells: an output cell depends on input cells at most this far away, along either axis.
        align_cells: a crop of the latents gives the whole picture's output only if its top and left are multiples of
            this many cells.
    """

    config: dict[str, Any]
    halo_cells: int
    align_cells: int = 1

    def __init__(self, latent_dim: int, out_channels: int, *, width: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(latent_dim, width, 3, padding=1)
        self.exit = _Pointwise(width, out_channels)
        self.skip = _Pointwise(latent_dim, out_channels)

    def features(self, x: Tensor) -> Tensor:
        """Run the network's body: (N, width, h, w) to (N, width, h, w)."""
        raise NotImplementedError

    def forward(self, v: Tensor) -> Tensor:
        features = self.features(self.entry(v.contiguous(memory_format=torch.channels_last)))
        # The linear part stays out of autocast: it carries most of the signal and costs next to nothing.
        with torch.autocast(v.device.type, enabled=False):
            linear = self.skip(v)
        return linear + self.exit(features.relu_()).to(linear.dtype)  # type: ignore[no-any-return]


class ConvDecoder(Decoder):
    """Residual blocks at the latents' resolution.

    Args:
        latent_dim, out_channels: channels in and out.
        width: channels of the body.
        blocks: residual blocks, each of which sees one cell further.
        groups: of the 3x3 kernels; divides `width`.
    """

    def __init__(self, latent_dim: int, out_channels: int, *, width: int, blocks: int, groups: int) -> None:
        super().__init__(latent_dim, out_channels, width=width)
        self.config = {"kind": "conv", "width": width, "blocks": blocks, "groups": groups}
        self.halo_cells = 1 + blocks
        self.blocks = nn.Sequential(*(_Block(width, groups) for _ in range(blocks)))

    def features(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # type: ignore[no-any-return]


class UNetDecoder(Decoder):
    """Residual blocks at the latents' resolution, with a branch at half and at quarter resolution.

    Args:
        latent_dim, out_channels: channels in and out.
        width: channels of the body, the same at every resolution.
        groups: of the 3x3 kernels; divides `width`.
        blocks: residual blocks at full resolution; a third of them come before the branch.
        half_blocks: residual blocks at half resolution; half of them come before the quarter resolution.
        quarter_blocks: residual blocks at quarter resolution.
    """

    align_cells = 4

    def __init__(
        self,
        latent_dim: int,
        out_channels: int,
        *,
        width: int,
        groups: int,
        blocks: int,
        half_blocks: int,
        quarter_blocks: int,
    ) -> None:
        super().__init__(latent_dim, out_channels, width=width)
        self.config = {
            "kind": "unet", "width": width, "groups": groups, "blocks": blocks, "half_blocks": half_blocks,
            "quarter_blocks": quarter_blocks,
        }  # fmt: skip
        # A cell's block of 4 x 4 cells begins at most 3 cells before it.
        self.halo_cells = 1 + blocks + 2 * half_blocks + 4 * quarter_blocks + 3

        def stage(count: int) -> nn.Sequential:
            return nn.Sequential(*(_Block(width, groups) for _ in range(count)))

        self.before, self.after = stage(blocks // 3), stage(blocks - blocks // 3)
        self.half_before, self.half_after = stage(half_blocks // 2), stage(half_blocks - half_blocks // 2)
        self.quarter = stage(quarter_blocks)
        self.half_down, self.quarter_down = (nn.Conv2d(width, width, 2, stride=2) for _ in range(2))
        self.half_up, self.quarter_up = (_Pointwise(width, 4 * width) for _ in range(2))

    def features(self, x: Tensor) -> Tensor:
        x = self.before(x)
        h, w = x.shape[2:]
        # Zeros beyond the right and bottom edges, as the 3x3 kernels see them there.
        half = self.half_before(self.half_down(F.pad(x, (0, -w % 4, 0, -h % 4))))
        quarter = self.quarter(self.quarter_down(half))
        half = self.half_after(half + F.pixel_shuffle(self.quarter_up(quarter), 2))
        x = x + F.pixel_shuffle(self.half_up(half), 2)[:, :, :h, :w]
        return self.after(x)  # type: ignore[no-any-return]


_KINDS: dict[str, tuple[type[Decoder], dict[str, int]]] = {
    "conv": (ConvDecoder, {"width": _MAX_WIDTH, "blocks": _MAX_BLOCKS, "groups": _MAX_WIDTH}),
    "unet": (
        UNetDecoder,
        {
            "width": _MAX_WIDTH, "groups": _MAX_WIDTH, "blocks": _MAX_BLOCKS, "half_blocks": _MAX_BLOCKS,
            "quarter_blocks": _MAX_BLOCKS,
        },
    ),
}  # fmt: skip


def build_decoder(description: Mapping[str, Any], *, latent_dim: int, out_channels: int) -> Decoder:
    """Build the decoder that a codec.json describes: {"kind": "conv" or "unet", and the arguments of its class}.

    Raises:
        CodecError: a value is missing, or beyond what this package builds.
    """
    kind = description.get("kind", "conv")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CodecError(f"decoder: kind must be one of {sorted(_KINDS)}, not {kind!r}; made by a newer walloc_data?")
    network, limits = _KINDS[kind]
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
    built: Decoder = network(latent_dim, out_channels, **values).to(memory_format=torch.channels_last)
    return built


def halo_cells(network: nn.Module) -> int | None:
    """Return how far a decoder sees, in cells; None if it sees the whole picture, so that it cannot be tiled."""
    if isinstance(network, Decoder):
        return network.halo_cells
    return 0 if isinstance(network, nn.Conv2d) and network.kernel_size == (1, 1) else None


def decode_tiles(
    network: Callable[[Tensor], Tensor],
    latents: Tensor,
    *,
    J: int,
    halo: int,
    align: int = 1,
    tile_cells: int = 128,
) -> Iterator[tuple[int, int, Tensor]]:
    """Decode one picture piece by piece; memory does not grow with the picture.

    Args:
        network: from a piece of the latents (1, C, rows, columns) to its coefficients.
        latents: (1, C, h, w), integers or expanded, whatever `network` takes.
        J: wavelet levels.
        halo: cells that `network` sees to every side.
        align: pieces start at multiples of this many cells (`Decoder.align_cells`).
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
                [
                    torch.cat([_piece(network, latents, r, c, halo=halo, align=align) for c in columns], dim=3)
                    for r in rows
                ],
                dim=2,
            )
            # Synthesis wraps around the tile, so its margins are invalid: crop them.
            y = 0 if tall == h else _SYNTHESIS_HALO_CELLS * size
            x = 0 if wide == w else _SYNTHESIS_HALO_CELLS * size
            pixels = wavelet_synthesis(coefficients, J)
            yield top * size, left * size, pixels[:, :, y : y + tall * size, x : x + wide * size]


def decode_tiled(
    network: Callable[[Tensor], Tensor],
    latents: Tensor,
    *,
    J: int,
    halo: int,
    align: int = 1,
    tile_cells: int = 128,
) -> Tensor:
    """Decode pictures by overlapping tiles: (N, C, h, w) to (N, colours, 2^J h, 2^J w), not clamped.

    Equal to ``wavelet_synthesis(network(latents), J)`` to rounding; beside the result it holds one tile.
    """
    batch, _, h, w = latents.shape
    result: Tensor | None = None
    for i in range(batch):
        for top, left, pixels in decode_tiles(
            network, latents[i : i + 1], J=J, halo=halo, align=align, tile_cells=tile_cells
        ):
            if result is None:
                result = pixels.new_empty(batch, pixels.shape[1], h << J, w << J)
            result[i, :, top : top + pixels.shape[2], left : left + pixels.shape[3]] = pixels[0]
    if result is None:
        raise CodecError(f"no latents to decode: {tuple(latents.shape)}")
    return result


def _segments(start: int, count: int, length: int) -> list[tuple[int, int]]:
    """Return the ranges of cells that synthesis of [start, start + count) reads; it wraps around the picture's ends."""
    if count == length:
        return [(0, length)]
    low, high = start - _SYNTHESIS_HALO_CELLS, start + count + _SYNTHESIS_HALO_CELLS
    cuts = [low, *(edge for edge in range((low // length + 1) * length, high, length)), high]
    return [(a % length, a % length + b - a) for a, b in pairwise(cuts)]


def _piece(
    network: Callable[[Tensor], Tensor],
    latents: Tensor,
    rows: tuple[int, int],
    columns: tuple[int, int],
    *,
    halo: int,
    align: int,
) -> Tensor:
    """Return the coefficients of a range of cells, computed with the halo that the picture has there."""
    (top, bottom), (left, right) = rows, columns
    first_row, first_column = (max(0, start - halo) // align * align for start in (top, left))
    seen = latents[:, :, first_row : bottom + halo, first_column : right + halo]
    return network(seen)[:, :, top - first_row : bottom - first_row, left - first_column : right - first_column]
