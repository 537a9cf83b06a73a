"""The linear encoder: wavelet packets and the 1x1 convolution as one filter, exact on uint8 pictures.

The latent of a uint8 picture is DEFINED in integers, so it has one value: whatever the batch, the threads, the
strips, the kernel the CPU or the GPU picks, the order of its sums. Two passes:

1. A float32 filter for speed. Down the height, 2^J bands of stride 2^J; then along the width whole cells, with the
   projection, the bias and the scaling of pixels folded in. Both are products of matrices. Then companding, rounding.
2. Where the companded value lies within `margin` of a rounding boundary (thirty or so of the 73,728 values of a
   768 x 512 photograph), the value is computed again, exactly: the whole encoder is one kernel of (2R+1) x (2R+1)
   pixels and all colours; its taps are rounded to a grid 2^-grid_bits on which every partial sum of taps times pixels
   is an integer below 2^53. float64 holds such sums without rounding, in any order. The result is compared with
   the rounding boundaries, which lie on a grid too.

The grid moves a value by less than 1e-7 of a quantisation step, so the definition is the formula of the paper to
any accuracy that a float64 evaluation of it has.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from statistics import NormalDist
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from walloc_data.codec.buffers import HALO_CELLS, fill_wrapped, gather_windows, shaped, sum_neighbours, true_indices
from walloc_data.codec.precision import keep_freed_memory, plain_float32
from walloc_data.codec.wavelets import deinterleave, filter_taps
from walloc_data.errors import CodecError

__all__ = ["MAX_ENCODE_LEVELS", "LinearEncoder"]

MAX_ENCODE_LEVELS = 4  # the exact kernel has (8 * (2^J - 1) + 1)^2 taps a channel: 57^2 for J = 3, 121^2 for J = 4

# Bicubic resizing exceeds 1/2 a little, which is allowed; pixels in [0, 255] and NaN are refused.
_MAX_FLOAT = 1.0

# Pixels that pass 1 takes at once. On a CPU its buffers then stay in the caches: larger strips were up to three times
# slower (benchmarks/encode_speed.py measures the result).
_STRIP_PIXELS = {"cpu": 3 * 2**16, "cuda": 2**24}
_WINDOW_BYTES = {"cpu": 2**22, "cuda": 2**27}  # limit of float64 windows that pass 2 recomputes at once

# Pass 1 errs by rounding only: by c * 2^-24 * (gain + 2^(bits-1)) in the companded value, gain = the largest sum of
# |tap| * |pixel| through both stages times the steepest slope of the curve; the other term is companding's own. The
# proven bound on c is the number of terms in a sum, about 270 for J = 3, and is never met: roundings that behave as
# independent give a standard deviation below its square root times the share of the gain that partial sums reach
# (Higham & Mary, SIAM J. Sci. Comput. 41, 2019). Measured on photographs, noise and the worst pictures for the gain,
# c stays near 1; summed term by term and without fused multiply-adds, the worst that a library may do, below 2.5.
# tests/codec/test_encoding.py holds it to 3. Other devices choose among kernels that were not measured, and settle
# values quickly: theirs is wider.
_ROUNDING = {"cpu": 6.0, "cuda": 32.0}


class LinearEncoder:
    """Map from uint8 pictures to latents, for one set of encoder weights.

    Args:
        weight: (latent_dim, channels * 4^J) float32, columns in the order of `wavelet_analysis`.
        bias: (latent_dim,) float32.
        channels, J, latent_bits: the codec's shape.

    Example:
        >>> import torch
        >>> from walloc_data import load_codec
        >>> encoder = load_codec(decoder=False)[0].linear_encoder()
        >>> grey = torch.full((1, 3, 64, 96), 128, dtype=torch.uint8)
        >>> encoder.encode(grey).shape, encoder.values(grey).dtype
        (torch.Size([1, 12, 8, 12]), torch.float32)
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, channels: int, J: int, latent_bits: int) -> None:
        if not 1 <= J <= MAX_ENCODE_LEVELS:
            raise CodecError(f"encoding takes 1 to {MAX_ENCODE_LEVELS} wavelet levels, not J={J}")
        self.channels, self.J, self.latent_bits = channels, J, latent_bits
        self.cell_px = 2**J
        self.radius = 4 * (2**J - 1)
        self.latent_dim = weight.shape[0]
        self.weight, self.bias = weight.detach().float().cpu().clone(), bias.detach().float().cpu().clone()
        keep_freed_memory()
        weight, bias = self.weight.double(), self.bias.double()
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise CodecError("the encoder's weights hold NaN or infinity")
        taps = torch.tensor(filter_taps(J), dtype=torch.float64)  # (2^J, 2R+1)
        by_band = deinterleave(weight, channels=channels, J=J)  # (O, C, width band, height band)
        self._build_filter(by_band, taps, bias)
        self._build_exact(by_band, taps, bias)

    def _build_filter(self, by_band: Tensor, taps: Tensor, bias: Tensor) -> None:
        size, radius = self.cell_px, self.radius
        # Rows of `stack` cells are filtered by one wider kernel: 16 outputs at a time fill the CPU's vectors.
        self._stack = max(1, 16 // size)
        row_kernel = torch.zeros(size, self._stack, (self._stack - 1) * size + 2 * radius + 1, dtype=torch.float64)
        for i in range(self._stack):
            row_kernel[:, i, i * size : i * size + 2 * radius + 1] = taps
        self._row_kernel = row_kernel.flatten(0, 1).float()  # (2^J * stack, taps)
        before, after = HALO_CELLS
        along_width = torch.einsum("ocab,at->obtc", by_band, taps)  # (O, height band, 2R+1, C)
        padded = F.pad(along_width, (0, 0, before * size - radius, after * size + size - 1 - radius))
        # (O, height band, cells, 2^J pixels, C)
        cells = padded.reshape(self.latent_dim, size, before + 1 + after, size, self.channels)
        cell_kernel = cells.permute(1, 3, 4, 2, 0).reshape(size, size * self.channels, -1)
        # The filter sees p - 128: x = p / 255 - 1/2 = (p - 128) / 255 + 1/510.
        self._cell_kernel = (cell_kernel / 255).float()  # (height band, 2^J pixels * C, cells * O)
        middle = bias + torch.einsum("obtc,b->o", along_width, taps.sum(1)) / 510
        self._bias = middle.float()
        gains = torch.einsum("obtc,b->o", along_width.abs(), taps.abs().sum(1)) * (128 / 255) + middle.abs()
        slope = math.sqrt(2 / math.pi) * 1.85  # of the companding curve at 0, its steepest: m / s is about 1.857
        self._rounding_unit: float = 2.0**-24 * (gains.max().item() * slope + 2 ** (self.latent_bits - 1))
        if max(_ROUNDING.values()) * self._rounding_unit > 0.05:
            raise CodecError(
                f"the encoder's weights are too large: gain {gains.max().item():.3g}, float32 cannot filter for it"
            )

    def _build_exact(self, by_band: Tensor, taps: Tensor, bias: Tensor) -> None:
        """Round the fused kernel and the boundaries to grids. Only elementwise float64 operations: one result."""
        outputs, width = self.latent_dim, 2 * self.radius + 1
        rows = torch.zeros(outputs, self.channels, self.cell_px, width, dtype=torch.float64)
        for a in range(self.cell_px):
            rows += by_band[:, :, a, :, None] * taps[a]
        kernel = torch.zeros(outputs, self.channels, width, width, dtype=torch.float64)  # (O, C, y, x)
        for b in range(self.cell_px):
            kernel += rows[:, :, b, None, :] * taps[b][:, None]
        largest = max(math.fsum(kernel[o].abs().flatten().tolist()) for o in range(outputs))
        # Pixels enter as 2p - 255, at most 255 in size: taps of 53 - 8 - log2(sum of |taps|) bits keep sums exact.
        # One bit less allows for the rounding of the taps.
        self.grid_bits = 53 - 8 - 1 - math.frexp(max(largest, 2.0**-20))[1]
        integers = torch.round(kernel * 2.0**self.grid_bits)
        # For pixels p - 128, as 2p - 255 = 2 (p - 128) + 1: twice the taps, and the taps' own sum to add.
        self._exact_kernel = 2 * integers.permute(0, 2, 3, 1).flatten(1).t()  # ((y, x, C), O), every output contiguous
        self._exact_middle = integers.sum((1, 2, 3))  # (O,)
        unit = 2 * 255 * 2**self.grid_bits  # of a sum: v = sum / unit + bias
        self._boundaries = torch.tensor(
            [
                # An integer at or above the boundary, or a bound that no sum reaches.
                [float(max(-(2**53), min(2**53, math.ceil((edge - Fraction(shift)) * unit)))) for edge in self._edges()]
                for shift in bias.tolist()
            ],
            dtype=torch.float64,
        )  # (O, 2^bits - 2)

    def _edges(self) -> list[Fraction]:
        """Return the values of v at which the companded value is a half-integer, on a grid of 2^-32."""
        largest = 2 ** (self.latent_bits - 1) - 1
        normal = NormalDist(sigma=largest / 1.85)
        m = largest + 0.5 - 1e-3
        upper = [Fraction(round(normal.inv_cdf((k + 0.5) / (2 * m) + 0.5) * 2**32), 2**32) for k in range(largest)]
        return [-edge for edge in reversed(upper)] + upper

    @property
    def device(self) -> torch.device:
        """Device of the constants, and of the pictures that `encode` takes."""
        return self._bias.device

    @property
    def margin(self) -> float:
        """Distance to a rounding boundary below which pass 2 recomputes a value exactly."""
        return _ROUNDING.get(self.device.type, max(_ROUNDING.values())) * self._rounding_unit

    def to(self, device: torch.device) -> "LinearEncoder":
        """Return the same encoder with its constants on another device."""
        moved = object.__new__(LinearEncoder)
        for name, item in vars(self).items():
            setattr(moved, name, item.to(device) if isinstance(item, Tensor) else item)
        return moved

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents of pictures.

        Args:
            images: (N, C, H, W) uint8, or float in [-1/2, 1/2]; sides multiples of 2^J. Any strides: pictures decoded
                as (H, W, C) are fastest as a permuted view.

        Returns:
            (N, latent_dim, H / 2^J, W / 2^J) int8, contiguous. Exact for uint8; float pictures are rounded from the
            float32 values of pass 1.
        """
        self._check(images)
        batch, _, height, width = images.shape
        h, w = height // self.cell_px, width // self.cell_px
        latent = torch.empty(batch, h, w, self.latent_dim, dtype=torch.int8, device=images.device)
        with torch.no_grad(), plain_float32(images.device):
            fixups = _BoundaryFixups(self, latent)
            for block in self._filter(images):
                tall, n = block.values.shape[:2]
                u = self._compand_(block.values)
                z = torch.round(u)
                latent[block.first : block.first + n, block.top : block.top + tall] = z.transpose(0, 1)
                if images.dtype == torch.uint8:
                    fixups.add(block, u.sub_(z).abs_() > 0.5 - self.margin)
            fixups.apply()
        return latent.permute(0, 3, 1, 2).contiguous()

    def values(self, images: Tensor) -> Tensor:
        """Return the encoder's output before companding and rounding, (N, latent_dim, h, w) float32 (pass 1 alone)."""
        self._check(images)
        batch, _, height, width = images.shape
        shape = (batch, height // self.cell_px, width // self.cell_px, self.latent_dim)
        values = torch.empty(shape, dtype=torch.float32, device=images.device)
        with torch.no_grad(), plain_float32(images.device):
            for block in self._filter(images):
                tall, n = block.values.shape[:2]
                values[block.first : block.first + n, block.top : block.top + tall] = block.values.transpose(0, 1)
        return values.permute(0, 3, 1, 2)

    def _compand_(self, values: Tensor) -> Tensor:
        """Apply `walloc_data.latents.compand` in place: a new buffer for every step would cost as much as the steps."""
        largest = 2 ** (self.latent_bits - 1) - 1
        return values.mul_(1.85 / largest * math.sqrt(0.5)).erf_().mul_(largest + 0.499)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise CodecError(f"encode takes pictures (N, {self.channels}, H, W), not {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise CodecError(f"encode takes uint8 pictures, or floats in [-0.5, 0.5], not {images.dtype}")
        if images.is_floating_point() and images.numel():
            low, high = (float(value) for value in torch.aminmax(images))
            if not (low >= -_MAX_FLOAT and high <= _MAX_FLOAT):  # NaN is neither
                raise CodecError(
                    f"encode takes floats in [-0.5, 0.5], not from {low:g} to {high:g}: give uint8 pixels, or pixels "
                    "/ 255 - 0.5"
                )
        height, width = images.shape[2:]
        if height % self.cell_px or width % self.cell_px or not height or not width:
            raise CodecError(
                f"encode takes sides that are multiples of {self.cell_px}, not {height} x {width}: pad the picture "
                "first (walloc_data.format.padding_for says by how much)"
            )

    def _filter(self, images: Tensor) -> Iterator["_Block"]:
        """Yield the results of pass 1 in blocks: several small pictures at once, or one picture in strips of cell rows.

        Pictures lie side by side, so one row of pixels is one row of a matrix, whatever their number.
        """
        batch, channels, height, width = images.shape
        if not batch:
            return
        size, stack, radius = self.cell_px, self._stack, self.radius
        h, w = height // size, width // size
        pictures = images.permute(0, 2, 3, 1)  # (N, H, W, C)
        budget_cells = max(1, _STRIP_PIXELS.get(images.device.type, _STRIP_PIXELS["cpu"]) // size**2)
        together = min(batch, max(1, budget_cells // (h * w)))
        strips = max(1, min(math.ceil(h / stack), round(h * w / budget_cells)))
        strip = math.ceil(h / strips / stack) * stack  # cell rows, about as many in every strip
        halo_rows = 2 * radius + 1 - size
        most_rows, most_cells = strip * size + halo_rows, strip * together * w

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=images.device)

        whole = images.dtype == torch.uint8
        kind = torch.int8 if whole else images.dtype
        pixels_buffer = buffer(together * most_rows * (width + 2 * radius) * channels, dtype=kind)
        rows_buffer = buffer(most_rows * together * width * channels)
        bands_buffer = buffer(most_cells * size * size * channels)
        parts_buffer = buffer(most_cells, self._cell_kernel.shape[2])
        values_buffer = buffer(most_cells * self.latent_dim)
        for first in range(0, batch, together):
            group = pictures[first : first + together]
            n = len(group)
            line = n * width * channels  # values in a row of pixels
            for top in range(0, h, strip):
                tall = min(strip, math.ceil((h - top) / stack) * stack)
                steps, num_rows = tall // stack, tall * size + halo_rows
                pixels = shaped(pixels_buffer, n, num_rows, width + 2 * radius, channels)
                fill_wrapped(pixels, group, top=top * size - radius, left=radius)
                rows = shaped(rows_buffer, num_rows, line)
                rows.view(num_rows, n, width, channels)[:] = pixels[:, :, radius : radius + width].transpose(0, 1)
                if not whole:
                    rows.mul_(255).sub_(0.5)
                # Down the height. A step's rows overlap the next one's.
                windows = rows.as_strided((steps, self._row_kernel.shape[1], line), (stack * size * line, line, 1))
                bands = shaped(bands_buffer, steps, size * stack, line)
                torch.bmm(self._row_kernel.expand(steps, -1, -1), windows, out=bands)
                # Along the width: what every cell adds to the cells around it, one height band after the other.
                cells = bands.view(steps, size, stack * n * w, size * channels)
                parts = parts_buffer[: tall * n * w].view(steps, stack * n * w, -1)
                for band, kernel in enumerate(self._cell_kernel):
                    parts.baddbmm_(cells[:, band], kernel.expand(steps, -1, -1), beta=min(band, 1))
                values = shaped(values_buffer, tall, n, w, self.latent_dim)
                sum_neighbours(parts.view(tall, n, w, -1), values)
                yield _Block(first, top, pixels, values.add_(self._bias)[: h - top])

    def exact(self, windows: Tensor, outputs: Tensor) -> Tensor:
        """Return exact latents, (M,) int8, one output each, from windows of p - 128, (M, taps)."""
        order = torch.argsort(outputs)
        outputs, windows = outputs[order], windows.index_select(0, order)
        sums, start = torch.empty(len(outputs), dtype=torch.float64, device=outputs.device), 0
        for output, count in enumerate(torch.bincount(outputs, minlength=self.latent_dim).tolist()):
            part = slice(start, start + count)
            if count:  # every partial sum is an exact integer
                torch.mv(windows[part].double(), self._exact_kernel[:, output], out=sums[part])
            start += count
        sums += self._exact_middle[outputs]
        below = torch.searchsorted(self._boundaries.index_select(0, outputs), sums[:, None], right=True)[:, 0]
        latents = torch.empty(len(outputs), dtype=torch.int8, device=outputs.device)
        latents[order] = (below - self._boundaries.shape[1] // 2).to(torch.int8)
        return latents


class _Block(NamedTuple):
    """One step of pass 1: pictures from `first` on, cell rows from `top` on. Valid until the next one."""

    first: int
    top: int
    pixels: Tensor  # (n, pixel rows, pixels, C) int8 p - 128, or floats as they came; R more all around, wrapping
    values: Tensor  # (cell rows, n, w, O) float32


class _BoundaryFixups:
    """Exact recomputation (pass 2) of values of `latent`, (N, h, w, O), near a rounding boundary.

    Values of several blocks are recomputed in one batch, because the exact kernel is large.
    """

    def __init__(self, encoder: LinearEncoder, latent: Tensor) -> None:
        self._encoder, self._latent = encoder, latent
        most = _WINDOW_BYTES.get(latent.device.type, _WINDOW_BYTES["cpu"])
        self._limit = max(1, most // (8 * len(encoder._exact_kernel)))
        self._waiting: list[tuple[Tensor, tuple[Tensor, ...]]] = []  # windows, and where their values are
        self._count = 0

    def add(self, block: _Block, near: Tensor) -> None:
        """Queue a block's values near a boundary, a mask (tall, n, w, O), with the pixels that they need."""
        encoder, pixels = self._encoder, block.pixels
        size, width = encoder.cell_px, 2 * encoder.radius + 1
        tall, n, w = near.shape[:3]
        channels = pixels.shape[3]
        per_picture, per_row = pixels.stride(0), pixels.stride(1)
        windows = pixels.as_strided(
            (tall, n, w, width, width * channels), (per_row * size, per_picture, channels * size, per_row, 1)
        )
        for row, picture, column, output in zip(
            *(torch.split(i, self._limit) for i in true_indices(near)), strict=True
        ):
            if self._count + len(row) > self._limit:
                self.apply()
            window = gather_windows(windows, (row, picture, column)).flatten(1)
            self._waiting.append((window, (picture + block.first, row + block.top, column, output)))
            self._count += len(row)

    def apply(self) -> None:
        """Recompute the queued values and write them into the latent."""
        if self._count:
            windows, places = zip(*self._waiting, strict=True)
            index = tuple(torch.cat(parts) for parts in zip(*places, strict=True))
            self._latent[index] = self._encoder.exact(torch.cat(windows), index[-1])
        self._waiting, self._count = [], 0
