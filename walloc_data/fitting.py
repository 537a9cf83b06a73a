"""Fit the flip, colour and rescaling operators of a codec on pictures, and write them into the codec's folder."""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from walloc_data.codec import load_codec
from walloc_data.errors import CodecError, SourceError, WallocDataError
from walloc_data.format import EncodeSettings
from walloc_data.pictures import original_pictures
from walloc_data.sources import open_source
from walloc_data.transforms import FACTORS, LatentOperators, fit_operators

__all__ = ["fit_codec_operators"]


def fit_codec_operators(
    codec: str | os.PathLike[str],
    *,
    pictures: Any,
    num_pictures: int = 400,
    num_held_out: int = 50,
    max_side_px: int = 512,
    seed: int = 0,
    factors: Iterable[Fraction] = FACTORS,
    write: bool = True,
) -> LatentOperators:
    """Fit flip, colour and rescaling operators for a codec and write `operators.safetensors` beside its weights.

    Args:
        codec: folder of a codec, or of an encoded data set, whose `codec/` is used. With write=False also the name of a
            bundled codec.
        pictures: source, as for `open_source`.
        num_pictures: number of pictures drawn at random to fit on; a few hundred photographs of any size suffice.
            Rescaling maps that need more pictures are left out.
        num_held_out: number of other pictures for the reported errors; at most an eighth of the source.
        max_side_px: larger pictures are cropped to their centre.
        seed: seed of the drawing.
        factors: rescaling factors, as for `fit_operators`.
        write: write the file; False only returns the operators.

    Raises:
        SourceError: too few pictures can be read.

    Example:
        >>> from walloc_data.fitting import fit_codec_operators
        >>> operators = fit_codec_operators("my-latents", pictures="pictures")  # a few hundred, better
        >>> sorted(operators.held_out_error)[:3]
        ['flip', 'flip_naive', 'grayscale']
    """
    folder = Path(codec)
    if (folder / "codec" / "codec.json").is_file():
        folder = folder / "codec"
    loaded, _ = load_codec(folder if folder.is_dir() else str(codec), decoder=False)
    if write and not folder.is_dir():
        raise CodecError(f"{codec}: operators are written into a codec's folder, and this is not one")
    source = open_source(pictures)
    read = original_pictures(source, settings=EncodeSettings())
    order = np.random.default_rng(seed).permutation(source.num_items or 0).tolist()
    cell = loaded.spec.cell_px
    usable = _usable(iter(order), read, max_side_px=max_side_px, cell_px=cell)
    held_out = list(islice(usable, min(num_held_out, len(order) // 8)))
    if not held_out:
        raise SourceError(f"{source.location}: {len(order)} pictures are too few to fit with and to hold some out")
    fitted = _batches(islice(usable, num_pictures))
    operators = fit_operators(loaded, fitted, held_out=_batches(held_out), factors=factors)
    if write:
        operators.save(folder)
    return operators


def _batches(pictures: Iterable[Tensor], *, size: int = 16) -> Iterator[Tensor]:
    """Yield batches (N, 3, H, W) of pictures of one shape, because small pictures are faster in batches."""
    waiting: dict[torch.Size, list[Tensor]] = {}
    for picture in pictures:
        batch = waiting.setdefault(picture.shape, [])
        batch.append(picture)
        if len(batch) == size:
            yield torch.cat(waiting.pop(picture.shape))
    yield from (torch.cat(batch) for batch in waiting.values())


def _usable(order: Iterator[int], read: Any, *, max_side_px: int, cell_px: int) -> Iterator[Tensor]:
    """Yield (1, 3, H, W) uint8 with sides multiples of the cell; small and unreadable pictures are skipped."""
    for index in order:
        try:
            picture = torch.from_numpy(np.array(read(index))).permute(2, 0, 1)[None]
        except WallocDataError:
            continue
        height, width = (min(side, max_side_px) // cell_px * cell_px for side in picture.shape[2:])
        if min(height, width) < 8 * cell_px:
            continue
        top, left = (picture.shape[2] - height) // 2, (picture.shape[3] - width) // 2
        yield picture[:, :, top : top + height, left : left + width].contiguous()
