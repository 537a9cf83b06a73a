"""Reduced pixels as inputs of the same adaptation as latents: the comparison of `adapt_imagenet` at equal numbers of
values.

A picture is downscaled four times along each side, and 2 x 2 pixels of three colours become the 12 channels of a cell:
as many values at the same resolution as rgb-16x-v1's latents. From there on everything is what latents get: the same
stem, folded in closed form, the same matching and imitation, and the same crops, sizes and flips in the same order.
Crops are resized before they are downscaled, so that reduced pixels lose nothing to augmentation; latents do.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from walloc_data.adapters import create_latent_model, input_normalisation
from walloc_data.adapting import AdaptConfig, Batch, Distillation, PairedViews, Pairs
from walloc_data.adapting.checkpoint import RunFolder
from walloc_data.adapting.run import Log, train
from walloc_data.format import ChannelStatistics
from walloc_data.transforms import LatentOperators

_REDUCTION = 4
_STATISTICS_PICTURES = 500


def reduced_pixels(pictures: Tensor) -> Tensor:
    """Convert uint8 pictures (N, 3, H, W) to reduced pixels (N, 12, H / 8, W / 8), integers from -128 to 127."""
    height, width = (side // _REDUCTION for side in pictures.shape[2:])
    small = F.interpolate(pictures.float(), size=(height, width), mode="bicubic", antialias=True)
    return F.pixel_unshuffle(small.round().clamp(0, 255) - 128, 2)


class ReducedPairs(Pairs):
    """Pairs of reduced pixels and pictures."""

    def read(self, rows: npt.ArrayLike) -> Batch:
        """Read the samples of some rows, with reduced pixels for latents."""
        batch = super().read(rows)
        return batch._replace(latents=reduced_pixels(batch.pictures))


class ReducedViews(PairedViews):
    """Views of reduced pixels and pictures: the same crops, sizes and flips as `PairedViews` draws for latents."""

    def __call__(self, batch: Batch, *, generator: torch.Generator) -> Batch:
        """Augment a batch."""
        if self.crop is None:
            raise ValueError("the views of latents need operators")
        pictures = self.pictures(batch.pictures, self.crop.draw(batch.latents, generator=generator))
        return Batch(reduced_pixels(pictures), pictures, batch.labels)


def statistics_of(pairs: ReducedPairs) -> ChannelStatistics:
    """Count the values of each channel on the first pictures of a shuffled split."""
    rows = np.random.default_rng(0).permutation(len(pairs))[:_STATISTICS_PICTURES]
    counts = torch.zeros(12, 256, dtype=torch.int64)
    for batch in pairs.batches(rows, size=50):
        values = (batch.latents + 128).long().transpose(0, 1).flatten(1)
        counts += torch.stack([torch.bincount(channel, minlength=256) for channel in values])
    return ChannelStatistics(tuple(tuple(row) for row in counts.tolist()))


def adapt_reduced(
    name: str,
    *,
    pixel: Any,
    pairs: ReducedPairs,
    config: AdaptConfig,
    output: Path,
    settings: dict[str, Any],
    device: torch.device,
    log: Log,
) -> Any:
    """Adapt a pixel model to reduced pixels, as `adapt_model` does to latents; resume a run that was interrupted.

    Args:
        name: timm's name of the model.
        pixel: the pixel model.
        pairs: reduced pixels and pictures of the training split.
        config: as for `adapt_model`; `input_cells` and a residual stem must be given.
        output: folder of the checkpoint.
        settings: what the checkpoint belongs to.
        device: device for training.
        log: receives each line of progress.
    """
    if config.input_cells is None or config.stem_blocks is None:
        raise ValueError("input_cells and stem_blocks must be given")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = create_latent_model(
            name, codec=pairs.dataset.manifest.codec, statistics=statistics_of(pairs),
            input_shape=(12, config.input_cells, config.input_cells), view="crop", geometry="pixel_grid",
            stem_padding="circular", stem_bias=True, stem_kernel_cells=config.stem_kernel_cells,
            stem_blocks=config.stem_blocks, stem_hidden_channels=config.stem_channels,
            num_classes=pixel.num_classes, pretrained=pixel,
        ).to(device, memory_format=torch.channels_last)  # fmt: skip
    side = (config.input_cells,) * 2
    size_px = (config.input_cells * pairs.cell_px,) * 2
    spec, scale, flip_p = pairs.dataset.manifest.codec, config.scale, config.flip_p
    operators = LatentOperators.load(pairs.dataset.store.root, spec=spec)
    views = ReducedViews(side, size_px, cell_px=pairs.cell_px, operators=operators, scale=scale, flip_p=flip_p)
    whole = PairedViews(side, size_px, cell_px=pairs.cell_px)
    rows = np.random.default_rng((config.seed, 2**31)).permutation(len(pairs))[config.held_out :]
    mean, std = input_normalisation(pixel)
    run = Distillation(model, pixel, pairs, views, rows, mean=mean, std=std, config=config)
    train(run, whole, rows, run_folder=RunFolder(output, settings=settings, resume=True), log=log)
    return model.eval()
