"""Samples of an opened data set as pictures, in a notebook or anywhere."""

import base64
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from walloc_data.codec import CodecInfo, WallocCodec
from walloc_data.dataset import LatentDataset
from walloc_data.errors import FormatError
from walloc_data.report.samples import OpenSplit, decode, drawable_rows, spread_rows
from walloc_data.report.sheet import MAX_SAMPLES, draw_sheet
from walloc_data.storage import ShardCache, Store

__all__ = ["ContactSheet", "picture", "show"]


class ContactSheet:
    """Contact sheet that a notebook displays.

    Attributes:
        picture: the sheet as a PIL picture, RGB.
        title: text of the HTML element's ``alt``.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.report import show
        >>> sheet = show(LatentDataset("my-latents"), num_samples=1)
        >>> sheet.picture.mode
        'RGB'
    """

    def __init__(self, picture: Image.Image, *, title: str) -> None:
        self.picture, self.title = picture, title

    def __repr__(self) -> str:
        return f"ContactSheet({self.title!r}, {self.picture.width} x {self.picture.height} pixels)"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.picture.save(buffer, "PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        data = base64.b64encode(self._repr_png_()).decode("ascii")
        element = Markup('<img alt="{}" style="max-width: 100%" src="data:image/png;base64,{}">')
        return element.format(self.title, data)


@lru_cache(maxsize=4)
def _opened(store: Store, split: str, folder: Path) -> tuple[OpenSplit, WallocCodec, CodecInfo]:
    opened = OpenSplit(store, split, cache=ShardCache(folder))
    return opened, *opened.load_codec()


def picture(dataset: LatentDataset, position: int) -> Image.Image:
    """Decode the picture of a sample by the data set's own codec, which is loaded once: RGB, without padding.

    Transforms and `mirror` of the data set are not applied.

    Args:
        position: as in ``dataset[position]``, of a part too.

    Raises:
        IndexError: there is no such position.
        CodecError: the codec in the data set is not the one that made the latents.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.report import picture
        >>> picture(LatentDataset("my-latents"), 0).size
        (96, 96)
    """
    opened, codec, _ = _opened(dataset.store, dataset.split_name, dataset.cache_folder)
    [sample] = opened.read([dataset.stored_row(position)])
    return decode(codec, sample)


def show(
    dataset: LatentDataset,
    *,
    positions: Sequence[int] | None = None,
    num_samples: int = 8,
    height_px: int = 224,
) -> ContactSheet:
    """Draw a contact sheet of samples, as `preview` does, of a data set that is open or a part of one.

    Args:
        positions: positions of the samples; None chooses `num_samples` of as many classes as possible, without
            pictures that are too large to draw.
        num_samples: number of samples to choose, in [1, 200].
        height_px: height of the largest picture in the sheet.

    Raises:
        FormatError: there is nothing to show, or too much.
        CodecError: the codec in the data set is not the one that made the latents.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.report import show
        >>> show(LatentDataset("my-latents").subset(classes=["cat"]), num_samples=2)
        ContactSheet('my-latents · train', ... pixels)
    """
    if positions is None:
        if not 1 <= num_samples <= MAX_SAMPLES:
            raise FormatError(f"num_samples must be in [1, {MAX_SAMPLES}], not {num_samples}")
        drawable = drawable_rows(dataset.index)
        positions = [int(drawable[i]) for i in spread_rows(dataset.labels[drawable], num_samples)]
    if not 1 <= len(positions) <= MAX_SAMPLES:
        raise FormatError(f"{dataset.url}: {len(positions)} samples to show; a sheet has 1 to {MAX_SAMPLES}")
    opened, codec, info = _opened(dataset.store, dataset.split_name, dataset.cache_folder)
    rows = [dataset.stored_row(position) for position in positions]
    name = dataset.url.rstrip("/").rpartition("/")[2]
    sheet = draw_sheet(opened, rows, codec=codec, info=info, height_px=height_px)
    return ContactSheet(sheet, title=f"{name} · {dataset.split_name}")
