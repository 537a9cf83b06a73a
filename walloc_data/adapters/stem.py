"""The first layer of a latent model: a convolution that standardises the stored integers.

It subclasses `Conv2d`, so that it sits where the pixel model's first convolution sat and keeps its parameter names:
timm's group matchers, layer decay and checkpoints go on working.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from walloc_data.errors import ModelError
from walloc_data.format import ChannelStatistics
from walloc_data.latents import expansion_table

__all__ = ["LatentConv2d", "Normalization", "TwoLayerStem", "normalization_buffers"]

# "standard": (z - mean) / std of the integers. "expand": the same for v = expand(z), by a table of 2^bits entries.
Normalization = Literal["standard", "expand"]

# uint8 is left out: it is a picture, or a latent still packed or wrapped around, and would be read with wrong values.
_LATENT_DTYPES = (
    torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


def _refusal(given: Tensor, *, channels: int) -> str:
    """Return what came instead of a latent, and the remedy."""
    what = (
        f"this model takes latents (N, {channels}, h, w) of int8 or floats, and got {given.dtype} {tuple(given.shape)}"
    )
    if given.ndim == 3 and given.shape[0] == channels and given.dtype in _LATENT_DTYPES:
        return f"{what}: add a batch dimension, latent[None]"
    if given.ndim == 4 and given.shape[1] == channels and given.dtype == torch.uint8:
        return (
            f"{what}: the integers are signed, and a reader made uint8 of them (timm's fast_collate does): batch them "
            "with LatentDataset.loader or torch's DataLoader"
        )
    if given.ndim == 4 and 3 in (given.shape[1], given.shape[3]):
        return (
            f"{what}: these are pictures, or latents still packed. Pictures go through "
            "walloc_data.serving.PictureClassifier; packed latents through walloc_data.interop.unpack_picture, which "
            "timm's create_loader replaces by a transform of its own: use LatentDataset.loader or torch's DataLoader"
        )
    return f"{what}: were they encoded by the codec that the model was made for?"


def normalization_buffers(statistics: ChannelStatistics, *, kind: Normalization) -> dict[str, Tensor]:
    """Return the buffers with which `LatentConv2d` standardises latents that have these statistics.

    Returns:
        For "standard", `latent_mean` and `latent_std`, (C,) float32. For "expand", `latent_table`, (C, 2^bits)
        float32: the standardised value of each integer of each channel. A channel that never varies gets std 1.
    """
    if kind == "standard":
        scale = torch.tensor([value if value > 0 else 1.0 for value in statistics.std])
        return {"latent_mean": torch.tensor(statistics.mean), "latent_std": scale}
    counts = torch.tensor(statistics.counts, dtype=torch.float64)  # (C, 2^bits)
    values = expansion_table((counts.shape[1] - 1).bit_length()).double()
    total = counts.sum(1, keepdim=True).clamp_min(1)
    mean = (counts * values).sum(1, keepdim=True) / total
    std = ((counts * (values - mean).square()).sum(1, keepdim=True) / total).sqrt()
    return {"latent_table": ((values - mean) / torch.where(std > 0, std, 1.0)).float()}


def _window(out_channels: int, *, kernel_cells: int, stride_cells: int, shuffle: int) -> dict[str, int]:
    """Return the arguments of the convolution over windows centred on their stride, each yielding shuffle^2
    positions.
    """
    if kernel_cells < stride_cells or (kernel_cells - stride_cells) % 2:
        raise ModelError(
            f"a stem window of {kernel_cells} cells at stride {stride_cells}: it must be the stride plus an even "
            f"number, e.g. {stride_cells} or {stride_cells + 2}"
        )
    return {
        "out_channels": out_channels * shuffle**2,
        "kernel_size": kernel_cells,
        "stride": stride_cells,
        "padding": (kernel_cells - stride_cells) // 2,
    }


class LatentConv2d(nn.Conv2d):
    """Standardise, convolve, and where asked spread each cell over a finer grid.

    Args:
        in_channels: the codec's latent_dim.
        out_channels: features after the shuffle.
        kernel_cells: side of the window, in cells; of the stride's parity, so that windows stay centred.
        stride_cells: cells between windows.
        shuffle: positions along one side that each window yields (PixelShuffle); 1 is a plain convolution.
        bias: whether the convolution has one.
        padding_mode: "circular" is what the encoder itself does at a picture's border.
        buffers: from `normalization_buffers`.

    Input: (N, C, h, w), the stored integers as int8, or in a wider signed type; or floats in the same units (after a
    mixup, say).
    Output: (N, out_channels, shuffle * h / stride, shuffle * w / stride) in the weight's dtype.

    Raises:
        ModelError: for what is not a latent: another number of channels, or uint8, which pictures are.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.adapters import LatentConv2d
        >>> from walloc_data.adapters.stem import normalization_buffers
        >>> train = LatentDataset("my-latents")
        >>> buffers = normalization_buffers(train.statistics, kind="standard")
        >>> stem = LatentConv2d(12, out_channels=64, kernel_cells=3, buffers=buffers)  # for a network of your own
        >>> latents, labels = next(iter(train.loader(batch_size=8)))
        >>> stem(latents).shape
        torch.Size([8, 64, 12, 12])
    """

    latent_mean: Tensor
    latent_std: Tensor
    latent_table: Tensor

    def __init__(
        self,
        in_channels: int,
        *,
        out_channels: int,
        kernel_cells: int,
        stride_cells: int = 1,
        shuffle: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "circular"] = "zeros",
        buffers: dict[str, Tensor],
    ) -> None:
        window = _window(out_channels, kernel_cells=kernel_cells, stride_cells=stride_cells, shuffle=shuffle)
        super().__init__(in_channels, **window, bias=bias, padding_mode=padding_mode)
        self.shuffle = shuffle
        for name, value in buffers.items():
            self.register_buffer(name, value.clone())

    def extra_repr(self) -> str:
        kind = "expand" if "latent_table" in self._buffers else "standard"
        inner: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{inner}, normalization={kind!r}" + f", shuffle={self.shuffle}" * (self.shuffle > 1)

    def normalize(self, latents: Tensor) -> Tensor:
        """Standardise (N, C, h, w) integers, or floats in their units, in the weight's dtype."""
        if "latent_table" not in self._buffers:
            mean, std = self.latent_mean[:, None, None], self.latent_std[:, None, None]
            return ((latents.to(mean.dtype) - mean) / std).to(self.weight.dtype)
        offset = self.latent_table.shape[1] // 2
        if not latents.is_floating_point():
            return self._look_up(latents.long() + offset).to(self.weight.dtype)
        # Between integers (mixup, brightness) the curve is followed by straight lines: off by 0.001 at most.
        position = (latents.float() + offset).clamp(0, 2 * offset - 1)
        below = position.floor().clamp(max=2 * offset - 2)
        low = self._look_up(below.long())
        high = self._look_up(below.long() + 1)
        return (low + (high - low) * (position - below)).to(self.weight.dtype)

    def _look_up(self, index: Tensor) -> Tensor:
        size = self.latent_table.shape[1]
        rows = torch.arange(self.latent_table.shape[0], device=index.device)[:, None, None] * size
        return self.latent_table.flatten()[index + rows]

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 4 or input.shape[1] != self.in_channels or input.dtype not in _LATENT_DTYPES:
            raise ModelError(_refusal(input, channels=self.in_channels))
        x = super().forward(self.normalize(input))
        return F.pixel_shuffle(x, self.shuffle) if self.shuffle > 1 else x

    def fold(self, weight: Tensor, bias: Tensor) -> None:
        """Set the weights from a map of the integers: y = weight * z + bias.

        Args:
            weight: (out_channels * shuffle^2, C, kernel, kernel) acting on unstandardised input: the integers for
                "standard", v = expand(z) for "expand".
            bias: (out_channels * shuffle^2,).

        Raises:
            ModelError: if the stem was made without a bias, or the shapes differ.
        """
        if self.bias is None:
            raise ModelError("this stem has no bias to fold a mean into: create the model with stem_bias=True")
        if weight.shape != self.weight.shape or bias.shape != self.bias.shape:
            raise ModelError(
                f"the folded stem is {tuple(weight.shape)}, the model's is {tuple(self.weight.shape)}: "
                "fit it for the same window and patch"
            )
        mean, std = (moment.to(weight.device) for moment in self._moments(weight.dtype))
        with torch.no_grad():
            self.weight.copy_(weight * std[:, None, None])
            self.bias.copy_(bias + (weight.sum((2, 3)) * mean).sum(1))

    def _moments(self, dtype: torch.dtype) -> Sequence[Tensor]:
        if "latent_table" not in self._buffers:
            return self.latent_mean.to(dtype), self.latent_std.to(dtype)
        # The table is (expand - mean) / std: two of its entries give both back.
        table = self.latent_table.double()
        values = expansion_table((table.shape[1] - 1).bit_length()).to(table)
        std = (values[-1] - values[0]) / (table[:, -1] - table[:, 0])
        return (values[0] - table[:, 0] * std).to(dtype), std.to(dtype)


class TwoLayerStem(nn.Sequential):
    """A first layer that learns more from a large patch: 3 x 3 cells to `hidden_channels` a cell, and then the window.

    One linear map of a patch of 4 x 4 cells sees every edge at every place anew; a convolution and a nonlinearity
    before it do not (Xiao et al., "Early convolutions help transformers see better", NeurIPS 2021). For training from
    scratch: it cannot be folded.

    Args:
        in_channels: the codec's latent_dim.
        hidden_channels: features of each cell between the layers.
        out_channels, kernel_cells, stride_cells, shuffle, bias: what one `LatentConv2d` in its place would have.
        padding_mode: of both layers.
        buffers: from `normalization_buffers`.

    Input and output: as `LatentConv2d`.

    Example:
        >>> from walloc_data import LatentDataset, create_latent_model
        >>> train = LatentDataset("my-latents")
        >>> model = create_latent_model("vit_tiny_patch16_224", dataset=train, stem_hidden_channels=48)
        >>> type(model.patch_embed.proj).__name__, model.patch_embed.proj[0].weight.shape
        ('TwoLayerStem', torch.Size([48, 12, 3, 3]))
    """

    def __init__(
        self,
        in_channels: int,
        *,
        hidden_channels: int,
        out_channels: int,
        kernel_cells: int,
        stride_cells: int = 1,
        shuffle: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "circular"] = "zeros",
        buffers: dict[str, Tensor],
    ) -> None:
        window = _window(out_channels, kernel_cells=kernel_cells, stride_cells=stride_cells, shuffle=shuffle)
        layers: list[nn.Module] = [
            LatentConv2d(
                in_channels,
                out_channels=hidden_channels,
                kernel_cells=3,
                bias=False,
                padding_mode=padding_mode,
                buffers=buffers,
            ),
            nn.BatchNorm2d(hidden_channels),
            nn.GELU(),
            nn.Conv2d(hidden_channels, **window, bias=bias, padding_mode=padding_mode),
        ]
        super().__init__(*layers, *([nn.PixelShuffle(shuffle)] if shuffle > 1 else []))
