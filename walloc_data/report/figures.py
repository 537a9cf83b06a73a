"""A strip that shows a picture, its latent and its reconstructions, for a README or a slide."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from walloc_data.codec import CodecInfo, WallocCodec
from walloc_data.format import padding_for
from walloc_data.latents import encode_webp, pack
from walloc_data.report.samples import ReportSample, decode, psnr
from walloc_data.report.sheet import channel_grid, decoders_of, packed_picture

__all__ = ["latent_strip"]

_BACKGROUND, _INK, _MUTED = (19, 21, 26), (236, 238, 242), (158, 165, 177)
_MARGIN, _GAP = 18, 12


def latent_strip(
    pixels: npt.NDArray[np.uint8], *, codec: WallocCodec, info: CodecInfo, height_px: int = 240
) -> Image.Image:
    """Draw a picture, its packed latent, the channels, and the reconstructions by the codec's decoders.

    Args:
        pixels: (H, W, 3) uint8, any size.
        height_px: height of the pictures in the strip.

    Returns:
        An RGB picture, with a caption under each part.

    Example:
        >>> import skimage
        >>> from walloc_data import load_codec
        >>> from walloc_data.report import latent_strip
        >>> codec, info = load_codec()
        >>> strip = latent_strip(skimage.data.chelsea(), codec=codec, info=info)
        >>> strip.save("strip.webp")
        >>> strip.mode, strip.height
        ('RGB', 324)
    """
    original = Image.fromarray(pixels)
    sample = _encode(pixels, codec)
    c, h, w = sample.latent.shape
    values = sample.latent.reshape(c, -1)
    # Statistics of the channels over many pictures if known, else over this one.
    mean, std = info.statistics or (values.mean(axis=1).tolist(), values.std(axis=1).tolist())
    grid = channel_grid(sample.latent, mean=mean, std=std)
    packed = packed_picture(sample.latent, colours=codec.channels)
    parts = [
        ("Picture", f"{sample.width} x {sample.height} pixels", original, False),
        (
            "Packed latent",
            f"{sample.num_bytes:,} bytes, {sample.bits_per_pixel:.2f} bits per pixel",
            packed,
            True,
        ),
        (f"{c} channels", f"{w} x {h} integers each", grid, True),
    ]
    for title, how in decoders_of(codec, info):
        picture = decode(codec, sample, how=how)
        parts.append((title, f"PSNR {psnr(picture, original):.1f} dB", picture, False))
    return _draw(parts, height_px)


def _encode(pixels: npt.NDArray[np.uint8], codec: WallocCodec) -> ReportSample:
    height, width = pixels.shape[:2]
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]  # (1, 3, H, W)
    left, top, right, bottom = padding_for(height, width, multiple=2**codec.J)
    padded = F.pad(images.float(), (left, right, top, bottom), mode="reflect").to(torch.uint8)
    latent = codec.encode(padded)
    num_bytes = len(encode_webp(pack(latent, colours=codec.channels)[0]))
    return ReportSample("", 0, None, None, height, width, num_bytes, latent[0].numpy())


def _draw(parts: list[tuple[str, str, Image.Image, bool]], height_px: int) -> Image.Image:
    title_font, note_font = ImageFont.load_default(17), ImageFont.load_default(14)
    widths = []
    for title, note, picture, _ in parts:
        text = max(title_font.getlength(title), note_font.getlength(note))
        widths.append(max(round(picture.width * height_px / picture.height), round(text)))
    size = (2 * _MARGIN + sum(widths) + _GAP * (len(parts) - 1), height_px + 2 * _MARGIN + 48)
    strip = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    left = _MARGIN
    for (title, note, picture, values), column in zip(parts, widths, strict=True):
        shape = (round(picture.width * height_px / picture.height), height_px)
        nearest = values and picture.height <= height_px
        strip.paste(
            picture.resize(shape, Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS), (left, _MARGIN)
        )
        draw.text((left, _MARGIN + height_px + 8), title, _INK, font=title_font)
        draw.text((left, _MARGIN + height_px + 30), note, _MUTED, font=note_font)
        left += column + _GAP
    return strip
