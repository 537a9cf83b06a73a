"""The pictures of the report."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from walloc_data.codec import CodecInfo, WallocCodec
from walloc_data.report.samples import OpenSplit, ReportSample, decode, drawable_rows
from walloc_data.report.sheet import channel_grid, decoders_of, packed_picture
from walloc_data.webp import MAX_SIDE

__all__ = ["Gallery", "PageImage", "Strip", "class_pictures", "walk_through"]

_THUMB_PX = 88  # heights, in CSS pixels
_STRIP_PX = 176
_NUM_STRIPS = 2
# More than this is decoded by the fast decoder, so that a report of large photographs does not take minutes.
_MAX_DECODED_PIXELS = 8_000_000


@dataclass(frozen=True)
class PageImage:
    """A WebP file, with the attributes of its <img> element."""

    width: int  # CSS pixels
    height: int
    alt: str
    webp_base64: str
    exact: bool  # stored values: enlarged without smoothing


@dataclass(frozen=True)
class Strip:
    """One sample, from its packed latent to decoded pictures."""

    title: str
    facts: str
    pictures: list[tuple[str, PageImage]]


@dataclass(frozen=True)
class Gallery:
    """Decoded pictures, in groups with a class name (empty where there is none)."""

    note: str
    groups: list[tuple[str, list[PageImage]]]


def _photo(picture: Image.Image, *, alt: str, height_px: int) -> PageImage:
    """Encode a picture with loss at up to twice `height_px`, for screens with two pixels per CSS pixel."""
    scale = min(1.0, 2 * height_px / picture.height)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return _img(picture, alt=alt, height_px=height_px, quality=86)


def _values(picture: Image.Image, *, alt: str, height_px: int) -> PageImage:
    """Encode a picture of stored values without loss."""
    if picture.height > 2 * height_px:
        size = (max(1, round(picture.width * 2 * height_px / picture.height)), 2 * height_px)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return _img(picture, alt=alt, height_px=height_px, quality=None)


def _img(picture: Image.Image, *, alt: str, height_px: int, quality: int | None) -> PageImage:
    width = max(1, round(picture.width * height_px / picture.height))
    if max(picture.size) > MAX_SIDE:  # the browser stretches it again
        picture = picture.resize((min(MAX_SIDE, picture.width), min(MAX_SIDE, picture.height)))
    buffer = io.BytesIO()
    if quality is None:
        picture.save(buffer, "WEBP", lossless=True, method=4)
    else:
        picture.save(buffer, "WEBP", quality=quality, method=4)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return PageImage(width=width, height=height_px, alt=alt, webp_base64=data, exact=quality is None)


def walk_through(opened: OpenSplit, codec: WallocCodec, info: CodecInfo) -> list[Strip]:
    """Return two samples, each as its packed latent, its channels and the decoders' pictures."""
    statistics = opened.record.statistics
    strips = []
    for sample in opened.read(opened.choose(_NUM_STRIPS, seed=1)):
        c, h, w = sample.latent.shape
        packed = packed_picture(sample.latent, colours=codec.channels)
        grid = channel_grid(sample.latent, mean=statistics.mean, std=statistics.std)
        of = f"of sample {sample.key}"
        cells = [
            ("Packed latent", _values(packed, alt=f"Packed latent {of}", height_px=_STRIP_PX)),
            (f"{c} channels", _values(grid, alt=f"{c} channels {of}", height_px=_STRIP_PX)),
        ]
        for title, how in decoders_of(codec, info):
            picture = decode(codec, sample, how=how)
            cells.append((title, _photo(picture, alt=f"{title}: picture {of}", height_px=_STRIP_PX)))
        facts = (
            f"{sample.width} × {sample.height} pixels became {c} × {h} × {w} integers, stored in {sample.num_bytes:,} "
            f"bytes ({sample.bits_per_pixel:.2f} bits per pixel)."
        )
        strips.append(Strip(title=_title(sample), facts=facts, pictures=cells))
    return strips


def _title(sample: ReportSample) -> str:
    name = (
        sample.class_name
        if sample.class_name is not None
        else f"label {sample.label}"
        if sample.label is not None
        else ""
    )
    return f"{name}, sample {sample.key}" if name else f"Sample {sample.key}"


def class_pictures(
    opened: OpenSplit, codec: WallocCodec, info: CodecInfo, *, per_class: int, max_classes: int
) -> Gallery:
    """Return pictures of as many classes as fit; of unlabelled splits, pictures of any samples."""
    drawable = drawable_rows(opened.index)
    labels = opened.index["label"][drawable]
    present = np.unique(labels).tolist()
    rng = np.random.default_rng(0)
    classes = present
    if len(present) > max_classes:
        classes = sorted(rng.choice(present, max_classes, replace=False).tolist())
    if not opened.record.labelled:
        per_class *= max_classes
    groups: dict[int, list[int]] = {}
    for label in classes:
        rows = drawable[labels == label]
        groups[label] = sorted(rng.choice(rows, min(per_class, len(rows)), replace=False).tolist())
    available = [how for _, how in decoders_of(codec, info)]
    if not available:
        return Gallery("The codec in this data set has no decoder, so no pictures are shown.", [])
    chosen = [row for group in groups.values() for row in group]
    pixels = int((opened.index["height"][chosen].astype(np.int64) * opened.index["width"][chosen]).sum())
    how = available[-1] if pixels <= _MAX_DECODED_PIXELS else available[0]
    pictures: list[tuple[str, list[PageImage]]] = []
    for label, group in groups.items():
        images, name = [], ""
        for sample in opened.read(group):
            name = sample.class_name or (f"label {label}" if label >= 0 else "")
            picture = decode(codec, sample, how=how)
            images.append(_photo(picture, alt=f"{name} {sample.key}".strip(), height_px=_THUMB_PX))
        pictures.append((name, images))
    note = "Decoded by the codec's linear decoder." if how == "linear" else "Decoded by the codec's decoder."
    if len(classes) < len(present):
        note = f"{len(classes):,} of {len(present):,} classes, chosen at random. {note}"
    return Gallery(note, pictures)
