"""Pairs of latents and their pictures, with a common augmentation."""

import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from walloc_data.codec import fetch_codec, load_codec
from walloc_data.dataset import LatentDataset
from walloc_data.errors import ModelError
from walloc_data.format import padding_for
from walloc_data.transforms import DrawnCrops, LatentOperators, RandomResizedCrop
from walloc_data.transforms.geometric import crop_windows

__all__ = ["Batch", "PairedViews", "Pairs"]

_ONE = Fraction(1)
_ANOTHER_PICTURE = 0.5  # squared error of latents, relative to their variance; a mirrored picture has more


class Batch(NamedTuple):
    """Batch of latents, their pictures, and labels.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.adapting import Pairs
        >>> from walloc_data.pictures import original_pictures
        >>> from walloc_data.sources import open_source
        >>> data = LatentDataset("my-latents")
        >>> pairs = Pairs(data, original_pictures(open_source("pictures"), settings=data.manifest.settings))
        >>> pairs.read([0, 3]).pictures.shape
        torch.Size([2, 3, 96, 96])
    """

    latents: Tensor  # (N, C, h, w) int8, or float32 after augmentation
    pictures: Tensor  # (N, 3, H, W) uint8
    labels: Tensor  # (N,) int64; -1 without a label


class Pairs:
    """Latents of a split with their pictures as they were encoded.

    Args:
        dataset: data set whose pictures have one size.
        picture: function of a position in the source that returns the picture, (H, W, 3) uint8:
            `walloc_data.pictures.original_pictures`.
        keep_bytes: keep pictures in memory if all of them together take at most this.

    Raises:
        ModelError: the latents of the data set have different shapes.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.adapting import Pairs
        >>> from walloc_data.pictures import original_pictures
        >>> from walloc_data.sources import open_source
        >>> data = LatentDataset("my-latents")
        >>> pairs = Pairs(data, original_pictures(open_source("pictures"), settings=data.manifest.settings))
        >>> for latents, pictures, labels in pairs.batches(range(len(data)), size=4):
        ...     print(latents.shape, pictures.shape, labels.dtype)
        torch.Size([4, 12, 12, 12]) torch.Size([4, 3, 96, 96]) torch.int64
        torch.Size([4, 12, 12, 12]) torch.Size([4, 3, 96, 96]) torch.int64
    """

    def __init__(
        self, dataset: LatentDataset, picture: Callable[[int], npt.NDArray[np.uint8]], *, keep_bytes: int = 2**31
    ) -> None:
        if dataset.latent_shape is None:
            raise ModelError(
                f"{dataset.url}: its pictures are of several sizes, and a batch has one: encode them with size_px="
            )
        self.dataset, self.picture, self.shape = dataset, picture, dataset.latent_shape
        self.cell_px = dataset.manifest.codec.cell_px
        self._position = dataset.index["source_index"]
        picture_bytes = 3 * self.cell_px**2 * self.shape[1] * self.shape[2]
        self._kept: dict[int, npt.NDArray[np.uint8]] | None = {} if len(dataset) * picture_bytes <= keep_bytes else None

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: npt.ArrayLike) -> Batch:
        """Read the samples of some rows of the split; pictures are padded to whole cells, as they were for encoding."""
        numbers = [int(row) for row in np.asarray(rows)]
        samples = self.dataset.__getitems__(numbers)
        pictures = []
        for row in numbers:
            pixels = None if self._kept is None else self._kept.get(row)
            if pixels is None:
                pixels = self._padded(row)
                if self._kept is not None:
                    self._kept[row] = pixels
            pictures.append(torch.from_numpy(pixels))
        labels = [-1 if label is None else int(label) for _, label in samples]
        latents = torch.stack([latent for latent, _ in samples])
        return Batch(latents, torch.stack(pictures).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))

    def check(self, *, num_pictures: int = 8) -> None:
        """Encode some pictures again, and compare them with their latents.

        Raises:
            ModelError: half of them or more are others than those that were encoded.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, num_pictures).astype(int))
        batch = self.read(rows)
        with tempfile.TemporaryDirectory() as scratch:
            folder = fetch_codec(self.dataset.store, scratch=Path(scratch), decoders=False)
            codec, _ = load_codec(folder, decoder=False)
        stored, again = batch.latents.float(), codec.encode(batch.pictures).float()
        variance = stored.var((0, 2, 3), keepdim=True).clamp_min(1.0)
        error = ((again - stored).square() / variance).mean((1, 2, 3))  # about 2 for a picture of something else
        if float(error.median()) > _ANOTHER_PICTURE:
            raise ModelError(
                f"{self.dataset.url}: its latents are not those of these pictures: of {len(rows)} that were encoded "
                f"again, {int((error > _ANOTHER_PICTURE).sum())} differ. Pass the source that split "
                f"{self.dataset.split_name!r} was encoded from"
            )

    def _padded(self, row: int) -> npt.NDArray[np.uint8]:
        pixels = self.picture(int(self._position[row]))
        left, top, right, bottom = padding_for(pixels.shape[0], pixels.shape[1], multiple=self.cell_px)
        pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="reflect")
        if pixels.shape[:2] != (self.shape[1] * self.cell_px, self.shape[2] * self.cell_px):
            raise ModelError(
                f"{self.dataset.url}: sample {row} has {self.shape[1]} x {self.shape[2]} cells, but its picture has "
                f"{pixels.shape[0]} x {pixels.shape[1]} px: pass the pictures that were encoded"
            )
        return pixels

    def batches(self, rows: npt.ArrayLike, *, size: int) -> Iterator[Batch]:
        """Yield batches of some rows, in their order; the last one may be smaller."""
        numbers = np.asarray(rows)
        for start in range(0, len(numbers), size):
            yield self.read(numbers[start : start + size])


class PairedViews:
    """Random crops, flips and sizes, identical for latents and their pictures.

    Crops are at cell boundaries. Sizes and flips of latents use the fitted operators of the codec; without operators,
    there are only crops.

    Args:
        size_cells: (h, w) of the latents that come out.
        picture_px: (H, W) of the pictures that come out.
        cell_px: pixels along one side of a cell.
        operators: the codec's.
        scale: smallest and largest area of a crop, relative to the whole.
        flip_p: probability of a horizontal flip.

    Example:
        >>> import torch
        >>> from walloc_data.adapting import Batch, PairedViews
        >>> from walloc_data.transforms import LatentOperators
        >>> views = PairedViews((10, 10), (80, 80), cell_px=8, operators=LatentOperators.load("my-latents"))
        >>> batch = Batch(torch.zeros(4, 12, 12, 12), torch.zeros(4, 3, 96, 96, dtype=torch.uint8), torch.zeros(4))
        >>> latents, pictures, _ = views(batch, generator=torch.Generator().manual_seed(0))
        >>> latents.shape, pictures.shape
        (torch.Size([4, 12, 10, 10]), torch.Size([4, 3, 80, 80]))
    """

    def __init__(
        self,
        size_cells: tuple[int, int],
        picture_px: tuple[int, int],
        *,
        cell_px: int,
        operators: LatentOperators | None = None,
        scale: tuple[float, float] = (0.35, 1.0),
        flip_p: float = 0.5,
    ) -> None:
        self.size_cells, self.picture_px, self.cell_px = size_cells, picture_px, cell_px
        self.crop: RandomResizedCrop | None = None
        if operators is not None and operators.rescalings:
            self.crop = RandomResizedCrop(size_cells, operators=operators, scale=scale, flip_p=flip_p)

    def to(self, device: torch.device) -> None:
        """Move the operators to the device of the batches to augment."""
        if self.crop is not None:
            self.crop.to(device)

    def __call__(self, batch: Batch, *, generator: torch.Generator) -> Batch:
        """Augment a batch: float32 latents, uint8 pictures."""
        if self.crop is not None:
            drawn = self.crop.draw(batch.latents, generator=generator)
            latents = self.crop.cut(batch.latents, drawn)
        else:
            drawn = self._whole_cells(batch.latents, generator=generator)
            latents = crop_windows(batch.latents, drawn.top, drawn.left, self.size_cells).float()
        return Batch(latents, self.pictures(batch.pictures, drawn), batch.labels)

    def middle(self, batch: Batch) -> Batch:
        """Crop the centre of each sample, without randomness."""
        (h, w), (height, width), n = self.size_cells, batch.latents.shape[2:], len(batch.latents)
        top, left = (torch.full((n,), (have - want) // 2) for have, want in ((height, h), (width, w)))
        drawn = self._unscaled(top, left, (height, width))
        return Batch(
            crop_windows(batch.latents, top, left, self.size_cells), self.pictures(batch.pictures, drawn), batch.labels
        )

    def _whole_cells(self, latents: Tensor, *, generator: torch.Generator) -> DrawnCrops:
        n, (h, w) = len(latents), self.size_cells
        if h > latents.shape[2] or w > latents.shape[3]:
            raise ModelError(f"views of {h} x {w} cells do not fit latents of {latents.shape[2]} x {latents.shape[3]}")
        top = torch.randint(latents.shape[2] - h + 1, (n,), generator=generator)
        left = torch.randint(latents.shape[3] - w + 1, (n,), generator=generator)
        return self._unscaled(top, left, (latents.shape[2], latents.shape[3]))

    def _unscaled(self, top: Tensor, left: Tensor, latent_cells: tuple[int, int]) -> DrawnCrops:
        zeros = torch.zeros(len(top))
        return DrawnCrops(self.size_cells, ((_ONE, _ONE),), zeros.long(), top, left, zeros.bool(), latent_cells)

    def pictures(self, pictures: Tensor, drawn: DrawnCrops) -> Tensor:
        """Crop, flip and resize (N, 3, H, W) uint8 as it was drawn for the latents."""
        result = pictures.new_empty((len(pictures), pictures.shape[1], *self.picture_px))
        for i, picture in enumerate(pictures):
            box = drawn.box(i)
            top, left, height, width = (round(side * self.cell_px) for side in box)
            seen = (picture.flip(-1) if drawn.flipped[i] else picture)[:, top : top + height, left : left + width]
            if seen.shape[1:] != self.picture_px:
                size = self.picture_px
                seen = F.interpolate(seen[None].float(), size=size, mode="bicubic", antialias=True)[0]
                seen = seen.round().clamp(0, 255)
            result[i] = seen
        return result
