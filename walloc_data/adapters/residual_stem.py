"""A stem with residual blocks at the resolution of latents, for models with pixel weights.

A replacement for the first stages of a pixel model must invert the codec's transform and compute the features of those
stages. A linear map of a window does the former (`fold_stem`), residual blocks learn the latter by imitation.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from walloc_data.adapters.stem import LatentConv2d

__all__ = ["ResidualStem", "StemBlock"]


class StemBlock(nn.Module):
    """Residual block, initially the identity: a depthwise 5 x 5 convolution, then two 1 x 1 layers.

    It takes 4 * channels^2 + 25 * channels multiply-accumulates per cell.

    Args:
        channels: in, out and, twice as many, between the 1 x 1 layers.
        padding_mode: of the 5 x 5 convolution.

    Input and output: (N, channels, h, w).
    """

    def __init__(self, channels: int, *, padding_mode: Literal["zeros", "circular"] = "zeros") -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False, padding_mode=padding_mode)
        self.norm = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.project = nn.Conv2d(2 * channels, channels, 1)
        nn.init.zeros_(self.project.weight)
        if self.project.bias is not None:
            nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.project(self.expand(self.norm(self.space(x))).relu_())
        return result


class ResidualStem(nn.Sequential):
    """Stem with residual blocks: a convolution to `hidden_channels`, the blocks, and the output layer.

    New blocks are the identity, so that the first and the last layer are a linear map of rank `hidden_channels` per
    cell, which `fold_stem` sets in closed form before training.

    Args:
        in_channels: the codec's latent_dim.
        hidden_channels: features of each cell.
        blocks: how many `StemBlock`s.
        out_channels, kernel_cells, stride_cells, shuffle: what one `LatentConv2d` in its place would have. The first
            layer's window has kernel_cells - stride_cells + 1 cells a side, 3 at least.
        padding_mode: of all windows.
        buffers: from `normalization_buffers`.

    Input and output: as `LatentConv2d`.

    Example:
        >>> from walloc_data import LatentDataset, create_latent_model
        >>> from walloc_data.adapters import summarize
        >>> train = LatentDataset("my-latents")
        >>> shared = {"dataset": train, "geometry": "pixel_grid", "stem_hidden_channels": 32}
        >>> for stem_blocks in (1, 3):
        ...     model = create_latent_model("test_resnet", stem_blocks=stem_blocks, **shared)
        ...     print(type(model.conv1[0]).__name__, summarize(model).num_macs)
        ResidualStem ...
        ResidualStem ...
    """

    def __init__(
        self,
        in_channels: int,
        *,
        hidden_channels: int,
        blocks: int,
        out_channels: int,
        kernel_cells: int,
        stride_cells: int = 1,
        shuffle: int = 1,
        padding_mode: Literal["zeros", "circular"] = "zeros",
        buffers: dict[str, Tensor],
    ) -> None:
        layers: list[nn.Module] = [
            LatentConv2d(
                in_channels,
                out_channels=hidden_channels,
                kernel_cells=max(3, kernel_cells - stride_cells + 1),
                padding_mode=padding_mode,
                buffers=buffers,
            ),
            *(StemBlock(hidden_channels, padding_mode=padding_mode) for _ in range(blocks)),
            nn.Conv2d(hidden_channels, out_channels * shuffle**2, stride_cells, stride=stride_cells),
        ]
        super().__init__(*layers, *([nn.PixelShuffle(shuffle)] if shuffle > 1 else []))
        self.stride_cells, self.shuffle = stride_cells, shuffle

    @property
    def first(self) -> LatentConv2d:
        """The layer that takes latents."""
        layer: LatentConv2d = self[0]  # type: ignore[assignment]
        return layer

    @property
    def last(self) -> nn.Conv2d:
        """The layer that gives the stem's output, before it is spread over a finer grid."""
        layer: nn.Conv2d = self[-2 if self.shuffle > 1 else -1]  # type: ignore[assignment]
        return layer

    def fold(self, weight: Tensor, bias: Tensor, *, covariance: Tensor) -> float:
        """Set first and last layer to the best map of their rank, measured by the outputs' squared error.

        Args:
            weight: (stride^2, outputs, C, kernel, kernel): what each cell of a patch adds to the outputs, from the
                window around that cell; acts on unstandardised input, as in `LatentConv2d.fold`.
            bias: (outputs,).
            covariance: (C * kernel^2, C * kernel^2) of the windows.

        Returns:
            The part of the linear map's power that the rank leaves out.
        """
        side, outputs = self.stride_cells, len(bias)
        flat = weight.double().reshape(side * side * outputs, -1)
        values, vectors = torch.linalg.eigh(covariance.double())
        root = values.clamp_min(0).sqrt()
        left, power, right = torch.linalg.svd(flat @ (vectors * root), full_matrices=False)
        rank = min(self.first.out_channels, int((power > power[0] * 1e-9).sum()))
        # Features of unit variance: rows of `right` are orthonormal in whitened windows.
        safe = torch.where(root > root.max() * 1e-6, 1 / root.clamp_min(1e-30), 0.0)
        down = torch.zeros(self.first.out_channels, flat.shape[1], dtype=torch.float64)
        down[:rank] = (right[:rank] * safe) @ vectors.T
        up = torch.zeros(len(flat), self.first.out_channels, dtype=torch.float64)
        up[:, :rank] = left[:, :rank] * power[:rank]
        self.first.fold(down.reshape(self.first.weight.shape), torch.zeros(len(down), dtype=torch.float64))
        with torch.no_grad():
            self.last.weight.copy_(up.reshape(side, side, outputs, -1).permute(2, 3, 0, 1))
            if self.last.bias is not None:
                self.last.bias.copy_(bias)
        return float(power[rank:].square().sum() / power.square().sum())
