"""The contact sheet of samples: packed latents, channels and reconstructions."""

import math
import os
import tempfile
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from walloc_data.card import PREVIEW_NAME, show_preview
from walloc_data.codec import CodecInfo, WallocCodec
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import FormatError, StorageError
from walloc_data.files import atomic_file
from walloc_data.format import ChannelStatistics, SplitRecord
from walloc_data.latents import pack
from walloc_data.report.samples import OpenSplit, ReportSample, decode, open_split, psnr
from walloc_data.storage import DatasetLocation, open_store
from walloc_data.webp import MAX_SIDE

__all__ = ["add_preview", "channel_grid", "decoders_of", "draw_sheet", "packed_picture", "preview", "save_picture"]

_BACKGROUND = (19, 21, 26)
_INK = (236, 238, 242)
_MUTED = (158, 165, 177)
_RULE = (44, 48, 57)
_FAINT = (30, 33, 40)  # between the channels
# Below, at and above the mean of the channel; distinguishable by colour-blind readers and in print.
_BELOW, _AT, _ABOVE = (72, 168, 255), (26, 29, 35), (255, 176, 66)

_MARGIN = 28
_GAP = 14
_CAPTION = 30
_MAX_CHARACTERS = 1000  # of a line: more are wider than any sheet
MAX_SAMPLES = 200

Decoders = list[tuple[str, Literal["own", "linear"]]]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@renamed_arguments(out="dataset")
def preview(
    dataset: DatasetLocation,
    target: str | os.PathLike[str],
    *,
    split: str | None = None,
    keys: Sequence[str] | None = None,
    num_samples: int = 8,
    original: Callable[[int], npt.NDArray[np.uint8]] | None = None,
    height_px: int = 224,
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Draw a contact sheet of a split's samples.

    Each row shows one sample: the packed latent, enlarged; its channels; and the reconstructions by the linear decoder
    and, if there is one, by the other decoder of the codec.

    Args:
        dataset: the data set.
        target: file to write, with the suffix .png, .webp or .jpg.
        split: name of the split; None: "train", else the first by name.
        keys: keys of the samples; None chooses `num_samples` of as many classes as possible.
        original: function of a position in the source that returns the picture as it was encoded, (H, W, 3) uint8, as
            made by `walloc_data.pictures.original_pictures`. The pictures are drawn, too, with the PSNR of the
            reconstructions.
        height_px: height of the largest picture in the sheet.

    Raises:
        FormatError: no such data set, split or key.
        CodecError: the codec in the data set is not the one that made the latents.

    Example:
        >>> from walloc_data.report import preview
        >>> preview("my-latents", "preview.png", num_samples=2)
        PosixPath('preview.png')
    """
    with open_split(open_store(dataset, storage_options), split=split) as opened:
        if keys is not None:
            rows = opened.rows_of(keys)
        else:
            if not 1 <= num_samples <= MAX_SAMPLES:
                raise FormatError(f"num_samples must be in [1, {MAX_SAMPLES}], not {num_samples}")
            rows = opened.choose(num_samples)
        if not 1 <= len(rows) <= MAX_SAMPLES:
            raise FormatError(f"{opened.store.url} split {opened.split!r}: {len(rows)} samples to show")
        codec, info = opened.load_codec()
        sheet = draw_sheet(opened, rows, codec=codec, info=info, height_px=height_px, original=original)
        return save_picture(sheet, target)


def draw_sheet(
    opened: OpenSplit,
    rows: Sequence[int],
    *,
    codec: WallocCodec,
    info: CodecInfo,
    height_px: int,
    original: Callable[[int], npt.NDArray[np.uint8]] | None = None,
) -> Image.Image:
    """Draw the contact sheet of rows of a split."""
    decoders = decoders_of(codec, info)
    strips = [_strip(sample, codec, decoders, opened.record, original) for sample in opened.read(rows)]
    return _sheet(opened, strips, height_px=height_px)


@renamed_arguments(out="dataset")
def add_preview(
    dataset: DatasetLocation,
    *,
    split: str | None = None,
    num_samples: int = 4,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Put a contact sheet into a data set, as `preview.webp`, and show it in its card (README.md).

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.report import add_preview
        >>> add_preview("my-latents", num_samples=2)
        >>> "](preview.webp)" in Path("my-latents/README.md").read_text()
        True
    """
    store = open_store(dataset, storage_options)
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as folder:
        picture = Path(folder) / PREVIEW_NAME
        preview(store, picture, split=split, num_samples=num_samples)
        store.write_bytes(PREVIEW_NAME, picture.read_bytes())
    show_preview(store)


@dataclass(frozen=True)
class _Cell:
    """Titled picture of a strip."""

    title: str
    picture: Image.Image
    kind: Literal["photograph", "values", "channels"]  # "channels": a grid of values with another aspect
    note: str = ""  # under the picture
    psnr_db: float | None = None  # against the source picture; noted under the picture


@dataclass
class _Strip:
    """Row of the sheet: a caption, and cells of one height."""

    sample: ReportSample
    cells: list[_Cell] = field(default_factory=list)


def _strip(
    sample: ReportSample,
    codec: WallocCodec,
    decoders: Decoders,
    record: SplitRecord,
    original: Callable[[int], npt.NDArray[np.uint8]] | None,
) -> _Strip:
    strip = _Strip(sample)
    source = Image.fromarray(original(sample.source_index)) if original is not None else None
    if source is not None:
        strip.cells.append(_Cell("Source picture", source, "photograph"))
    _, h, w = sample.latent.shape
    n = math.isqrt(len(sample.latent) // codec.channels)
    packed = packed_picture(sample.latent, colours=codec.channels)
    strip.cells.append(_Cell("Packed latent, as stored", packed, "values", note=f"{n * w} x {n * h} pixels, WebP"))
    channels = _channels(sample, record.statistics)
    strip.cells.append(_Cell(f"Its {len(sample.latent)} channels", channels, "channels"))
    for title, how in decoders:
        picture = decode(codec, sample, how=how)
        quality = None if source is None else psnr(picture, source)
        note = "" if quality is None else f"PSNR {quality:.2f} dB"
        strip.cells.append(_Cell(title, picture, "photograph", note=note, psnr_db=quality))
    return strip


def decoders_of(codec: WallocCodec, info: CodecInfo) -> Decoders:
    """Return (title, function) of each decoder that a codec has, the fast one first."""
    found: Decoders = []
    if codec.linear_decoder is not None:
        found.append(("Linear decoder", "linear"))
    if info.decoder not in ("linear", "none"):
        found.append(("The codec's decoder", "own"))
    return found


def packed_picture(latent: npt.NDArray[np.int8], *, colours: int = 3) -> Image.Image:
    """Return the RGB picture that stores a latent (C, h, w)."""
    packed = pack(torch.from_numpy(latent)[None], colours=colours)[0]  # (n h, n w, colours)
    return Image.fromarray(packed if colours == 3 else packed[:, :, 0]).convert("RGB")


def _grid(num_channels: int) -> tuple[int, int]:
    """Return (columns, rows) of a grid of channels, as square as possible, and wider than high: 4 x 3 for 12."""
    rows = max(n for n in range(1, int(num_channels**0.5) + 1) if num_channels % n == 0)
    return num_channels // rows, rows


def channel_grid(
    latent: npt.NDArray[np.int8], *, mean: Sequence[float], std: Sequence[float], gap_px: int = 1
) -> Image.Image:
    """Draw channels (C, h, w) side by side: blue below a channel's mean, orange above, saturated at three
    deviations.
    """
    columns, rows = _grid(len(latent))
    _, h, w = latent.shape
    centre = np.array(mean, dtype=np.float32)[:, None, None]
    scale = 3 * np.maximum(np.array(std, dtype=np.float32), 0.5)[:, None, None]
    t = np.clip((latent.astype(np.float32) - centre) / scale, -1, 1)[..., None]
    weight = np.abs(t) ** 0.8  # small values are what most channels consist of
    colour = np.where(t < 0, np.array(_BELOW, dtype=np.float32), np.array(_ABOVE, dtype=np.float32))
    tiles = (np.array(_AT, dtype=np.float32) * (1 - weight) + colour * weight).round().astype(np.uint8)
    canvas = np.empty((rows * h + (rows - 1) * gap_px, columns * w + (columns - 1) * gap_px, 3), np.uint8)
    canvas[:] = _FAINT
    for i, tile in enumerate(tiles):
        top, left = i // columns * (h + gap_px), i % columns * (w + gap_px)
        canvas[top : top + h, left : left + w] = tile
    return Image.fromarray(canvas)


def _channels(sample: ReportSample, statistics: ChannelStatistics) -> Image.Image:
    return channel_grid(sample.latent, mean=statistics.mean, std=statistics.std)


def _sheet(opened: OpenSplit, strips: Sequence[_Strip], *, height_px: int) -> Image.Image:
    # The tallest picture fills height_px, and none is wider than one and a half times that.
    sizes = [_fit(strip.sample, height_px) for strip in strips]
    cell_w = max(width for width, _ in sizes)
    columns, rows = _grid(len(strips[0].sample.latent))
    widths = [cell_w * columns // rows if cell.kind == "channels" else cell_w for cell in strips[0].cells]
    footer = 24 if any(cell.psnr_db is not None for strip in strips for cell in strip.cells) else 0
    # Captions need room, however small the pictures.
    total_w = max(2 * _MARGIN + sum(widths) + _GAP * (len(widths) - 1), 860)
    big, text, small = (ImageFont.load_default(size) for size in (26, 16, 14))
    head = 128
    total_h = head + sum(_CAPTION + height + footer + 22 for _, height in sizes) + _MARGIN
    sheet = Image.new("RGB", (total_w, total_h), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)

    spec, record = opened.manifest.codec, opened.record
    room = total_w - 2 * _MARGIN
    name = opened.store.url.rstrip("/").rpartition("/")[2]
    draw.text((_MARGIN, 22), _shorten(f"{name} · {opened.split}", big, room), _INK, font=big)
    line = (
        f"{record.num_samples:,} samples · codec {spec.name} · {spec.dimensionality_reduction:g}x fewer values · "
        f"{spec.latent_dim} channels of {spec.latent_bits} bits, a cell for {spec.cell_px} x {spec.cell_px} pixels"
    )
    draw.text((_MARGIN, 60), _shorten(line, text, room), _MUTED, font=text)
    left = _MARGIN
    for cell, width in zip(strips[0].cells, widths, strict=True):
        draw.text((left, head - 26), _shorten(cell.title, text, width), _INK, font=text)
        if cell.kind == "channels":
            _legend(draw, (left + draw.textlength(cell.title, font=text) + 14, head - 23), small, left + width)
        left += width + _GAP
    top = head
    for strip, (width, height) in zip(strips, sizes, strict=True):
        draw.line((_MARGIN, top, total_w - _MARGIN, top), _RULE)
        _caption(draw, strip.sample, (_MARGIN, top + 7), text, room)
        top += _CAPTION
        left = _MARGIN
        for cell, column_w in zip(strip.cells, widths, strict=True):
            # Where one stored value is several pixels wide, its edges are shown; photographs are smoothed.
            wide = width * columns // rows if cell.kind == "channels" else width
            enlarged = cell.kind != "photograph" and cell.picture.width <= wide
            method = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
            sheet.paste(cell.picture.resize((wide, height), method), (left, top))
            if footer and cell.note:
                colour = _MUTED if cell.psnr_db is None else _INK
                draw.text((left, top + height + 4), cell.note, colour, font=small)
            left += column_w + _GAP
        top += height + footer + 22
    return sheet


def _fit(sample: ReportSample, height_px: int) -> tuple[int, int]:
    scale = min(height_px / sample.height, 1.5 * height_px / sample.width)
    return max(1, round(sample.width * scale)), max(1, round(sample.height * scale))


def _caption(draw: ImageDraw.ImageDraw, sample: ReportSample, at: tuple[int, int], font: Font, room: int) -> None:
    c, h, w = sample.latent.shape
    label = "no label" if sample.label is None else (sample.class_name or f"label {sample.label}")
    if sample.class_name is not None:
        label = f"{_shorten(label, font, room // 3)} ({sample.label})"
    draw.text(at, label, _INK, font=font)
    rest = (
        f"{sample.width} x {sample.height} px to {c} x {h} x {w}  ·  {sample.num_bytes:,} bytes  ·  "
        f"{sample.bits_per_pixel:.2f} bits per pixel  ·  key {sample.key}"
    )
    x = at[0] + draw.textlength(label, font=font) + 16
    draw.text((x, at[1]), _shorten(rest, font, at[0] + room - x), _MUTED, font=font)


def _legend(draw: ImageDraw.ImageDraw, at: tuple[float, float], font: Font, limit: float) -> None:
    x, y = at
    for colour, text in ((_BELOW, "below"), (_ABOVE, "above mean")):
        width = draw.textlength(text, font=font)
        if x + 14 + width > limit:
            return
        draw.rectangle((x, y + 4, x + 9, y + 13), fill=colour)
        draw.text((x + 14, y), text, _MUTED, font=font)
        x += 14 + width + 12


def _shorten(text: str, font: Font, width: float) -> str:
    """Return one line that can be drawn and fits; what is too long ends in an ellipsis."""
    whole = len(text) <= _MAX_CHARACTERS
    text = "".join(_readable(c) for c in text[:_MAX_CHARACTERS])
    if whole and font.getlength(text) <= width:
        return text
    fits = bisect_right(range(1, len(text) + 1), width, key=lambda n: font.getlength(text[:n] + "…"))
    return text[:fits].rstrip() + "…"


def _readable(character: str) -> str:
    """Return the text with only characters that Pillow's own font can draw, little more than ASCII."""
    if character.isascii() or character in "·…":
        return character if character.isprintable() else " "
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def save_picture(picture: Image.Image, target: str | os.PathLike[str]) -> Path:
    """Write a picture whole or not at all, in the format of the file's suffix.

    Example:
        >>> from PIL import Image
        >>> from walloc_data.report import save_picture
        >>> save_picture(Image.new("RGB", (64, 48)), "black.webp")
        PosixPath('black.webp')
    """
    path = Path(target)
    formats = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
    if path.suffix.lower() not in formats:
        raise FormatError(f"{path}: a picture's name ends in .png, .webp or .jpg")
    if path.suffix.lower() == ".webp" and max(picture.size) > MAX_SIDE:
        raise FormatError(
            f"{path}: {picture.width} x {picture.height} pixels, and WebP's sides end at {MAX_SIDE}: show fewer, "
            "or name it .png"
        )
    options: dict[str, Any] = {"quality": 90} if path.suffix.lower() != ".png" else {"optimize": True}
    try:
        with atomic_file(path) as unfinished:
            picture.save(unfinished, formats[path.suffix.lower()], **options)
    except OSError as error:
        raise StorageError(f"{path}: the picture could not be written ({error})") from error
    return path
