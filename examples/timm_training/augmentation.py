"""Crops, shifts and flips of `train_timm.py`."""

import argparse

from torch import Tensor, nn

from walloc_data import LatentDataset
from walloc_data.transforms import LatentOperators, RandomHorizontalFlip, RandomResizedCrop, RandomTranslate


def side_of_epoch(args: argparse.Namespace, epoch: int) -> int:
    """Return the cells a side that an epoch trains on: growing evenly over the first two thirds, then size_cells."""
    if args.progressive_from is None:
        return int(args.size_cells)
    share = min(1.0, epoch / max(1, 2 * args.epochs / 3))
    return round(args.progressive_from + share * (args.size_cells - args.progressive_from))


class Augmentation(nn.Module):
    """Crops, shifts and flips of whole batches, on their device. Stored mirrors are the data set's own affair."""

    def __init__(self, args: argparse.Namespace, train: LatentDataset, *, stored_cells: int) -> None:
        super().__init__()
        operators = None
        if args.flip == "fitted" or args.size_cells != stored_cells:
            operators = LatentOperators.load(args.data, spec=train.manifest.codec)
        self.crops = nn.ModuleDict()
        self.whole: nn.Module = nn.Identity()
        flips = args.flip == "fitted"
        if args.crops == "random":
            for side in sorted({side_of_epoch(args, epoch) for epoch in range(args.epochs)}):
                self.crops[str(side)] = RandomResizedCrop(
                    side, operators=operators, scale=tuple(args.crop_scale), flip_p=0.5 * flips
                )
        elif args.size_cells != stored_cells:
            # Of the only crop there is: the whole, in the same pass as its flip.
            self.whole = RandomResizedCrop(
                args.size_cells, operators=operators, scale=(1, 1), ratio=(1, 1), flip_p=0.5 * flips
            )
        elif operators is not None:
            self.whole = RandomHorizontalFlip(operators.flip)
        self.shift = RandomTranslate(args.shift_cells, fill=train.statistics.mean)
        self.naive = RandomHorizontalFlip() if args.flip == "naive" else nn.Identity()

    def forward(self, latents: Tensor, side: int) -> Tensor:
        latents = self.crops[str(side)](latents) if len(self.crops) else self.whole(latents)
        result: Tensor = self.naive(self.shift(latents) if self.shift.max_cells else latents)
        return result
