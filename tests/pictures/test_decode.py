"""Every kind of picture that is not a plain photograph: encoded by a stated rule, or refused with a reason."""

import io
import logging
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.convert.conftest import as_bytes, picture
from walloc_data.format import EncodeSettings
from walloc_data.pictures import PictureError, decode_picture, resize_and_crop

SETTINGS = EncodeSettings()


def decode(data: bytes, settings: EncodeSettings = SETTINGS) -> np.ndarray:
    image = decode_picture(data, settings=settings)
    assert image.mode == "RGB"
    return np.asarray(image)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_rgb_pixels_are_as_they_are() -> None:
    image = picture(0)
    assert np.array_equal(decode(as_bytes(image)), np.asarray(image))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    pixels = np.asarray(picture(1, width=24, height=16))
    # How the stored rows and columns relate to the upright picture (EXIF 2.3, tag 274).
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels[:, ::-1].transpose(1, 0, 2),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels[::-1].transpose(1, 0, 2),
    }[orientation]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = as_bytes(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif(orientation), **options)
    assert np.array_equal(decode(data), pixels)


def test_unreadable_exif_does_not_spoil_the_pixels() -> None:
    image = picture(2)
    data = as_bytes(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nothing of use")
    plain = as_bytes(image, "JPEG")
    assert np.array_equal(decode(data), decode(plain))


def test_grey_and_one_bit_become_rgb() -> None:
    grey = picture(3).convert("L")
    assert np.array_equal(decode(as_bytes(grey)), np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    bit = grey.convert("1")
    assert np.array_equal(decode(as_bytes(bit))[..., 1], np.asarray(bit) * np.uint8(255))


def test_a_palette_becomes_its_colours() -> None:
    palette = picture(4).quantize(16)
    assert np.array_equal(decode(as_bytes(palette)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 128, 255)])
def test_alpha_is_composited_over_the_background(background: tuple[int, int, int]) -> None:
    rgba = picture(5).convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, rgba.width).astype(np.uint8), (rgba.height, 1))
    rgba.putalpha(Image.fromarray(alpha))
    pixels = decode(as_bytes(rgba), EncodeSettings(background=background)).astype(int)
    weight = alpha[..., None] / 255
    expected = np.asarray(rgba)[..., :3] * weight + np.array(background) * (1 - weight)
    assert np.abs(pixels - expected).max() <= 1
    assert np.array_equal(pixels[:, 0], np.tile(background, (rgba.height, 1)))


def test_transparent_colours_of_palettes_and_pngs_are_background() -> None:
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((0, 0), 0)
    pixels = decode(as_bytes(palette, transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [40, 50, 60]
    rgb = Image.new("RGB", (4, 2), (1, 2, 3))
    rgb.putpixel((0, 0), (9, 9, 9))
    pixels = decode(as_bytes(rgb, transparency=(9, 9, 9)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [1, 2, 3]
    grey_alpha = Image.new("LA", (4, 2), (100, 0))
    assert decode(as_bytes(grey_alpha)).tolist() == np.full((2, 4, 3), 255).tolist()


def test_cmyk_becomes_rgb() -> None:
    cmyk = picture(6).convert("CMYK")
    pixels = decode(as_bytes(cmyk, "JPEG", quality=95)).astype(int)
    assert np.abs(pixels - np.asarray(picture(6)).astype(int)).mean() < 6


def test_sixteen_bits_are_divided_by_257() -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert decode(as_bytes(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = as_bytes(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(data)[4, 4].tolist() == [255, 0, 0], kind


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def webp_of(width: int, height: int) -> bytes:
    """A black lossless WebP of any size in 28 bytes: every code of it has one symbol, so no pixel takes a bit."""
    fields = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)]
    fields += [(1, 1), (0, 1), (0, 1), (0, 1)] * 5
    value = position = 0
    for number, bits in fields:
        value |= number << position
        position += bits
    data = value.to_bytes((position + 7) // 8, "little")
    return b"RIFF" + struct.pack("<I", 12 + len(data)) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


JPEG = as_bytes(picture(7), "JPEG")
PNG = as_bytes(picture(7))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "^0 bytes$", id="empty"),
        pytest.param(b"this is a text file", "^not a picture in a supported format$", id="text"),
        pytest.param(JPEG[:-200], "^OSError: image file is truncated", id="truncated JPEG"),
        pytest.param(PNG[: len(PNG) // 2], "truncated|broken|Truncated", id="truncated PNG"),
        pytest.param(JPEG[:20], "not a picture|truncated|Truncated", id="only a header"),
        pytest.param(png_claiming(60_000, 60_000), "^60000 x 60000 pixels; at most 89478485 are read$", id="bomb"),
        pytest.param(webp_of(16383, 16383), "^16383 x 16383 pixels; at most 89478485 are read$", id="WebP bomb"),
        pytest.param(png_claiming(0, 5), "not a picture|0 x 5", id="no pixels"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture", id="PostScript"),
    ],
)
def test_what_cannot_be_decoded_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason):
        decode(data)


def test_floats_and_wide_integers_are_refused() -> None:
    with pytest.raises(PictureError, match="mode F have no defined conversion to RGB"):
        decode(as_bytes(Image.new("F", (4, 4), 0.5), "TIFF"))
    with pytest.raises(PictureError, match="more than 16 bits is unknown"):
        decode(as_bytes(Image.new("I", (4, 4), 70_000), "TIFF"))


def test_reasons_hold_no_memory_addresses() -> None:
    for data in (b"text", JPEG[:100], PNG[:60], b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8L", b"II*\0\x08\0\0\0"):
        with pytest.raises(PictureError) as caught:
            decode(data)
        assert "0x" not in str(caught.value)


def test_the_reason_of_a_truncated_webp_file_says_what_it_is() -> None:
    data = as_bytes(picture(0, width=48, height=40), "WEBP")
    for length in (len(data) // 2, len(data) - 8):
        with pytest.raises(PictureError, match=r"^a truncated or damaged WebP file$"):
            decode(data[:length])


def test_the_webp_of_a_few_bytes_is_a_picture_within_the_limit() -> None:
    assert decode(webp_of(640, 400)).shape == (400, 640, 3)
    with pytest.raises(PictureError, match="640 x 400 pixels"):
        decode(webp_of(640, 400), EncodeSettings(max_pixels=640 * 400 - 1))


def test_limits_of_pillow_are_put_back_after_the_last_of_several_threads() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: decode(PNG).shape, range(200)))
    assert set(found) == {(40, 48, 3)}
    assert before == Image.MAX_IMAGE_PIXELS
    assert not logging.getLogger("PIL.TiffImagePlugin").disabled


def test_max_pixels_is_a_limit_of_ours_and_pillows_are_put_back() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(PictureError, match="48 x 40 pixels; at most 1919 are read"):
        decode(PNG, EncodeSettings(max_pixels=1919))
    assert decode(PNG, EncodeSettings(max_pixels=1920)).shape == (40, 48, 3)
    assert before == Image.MAX_IMAGE_PIXELS


def test_resizing_crops_the_centre_square() -> None:
    image = picture(8, width=300, height=200)
    square = resize_and_crop(image, settings=EncodeSettings(size_px=64))
    assert square.shape == (64, 64, 3)
    # What scaling the shorter side and cropping gives, where the scale comes out even.
    scaled = image.resize((96, 64), Image.Resampling.BICUBIC).crop((16, 0, 80, 64))
    assert np.abs(square.astype(int) - np.asarray(scaled).astype(int)).max() <= 1


@pytest.mark.parametrize("size", [(64, 64), (200, 64), (64, 200)])
def test_a_picture_of_the_right_side_is_only_cropped(size: tuple[int, int]) -> None:
    image = picture(9, width=size[0], height=size[1])
    left, top = (size[0] - 64) // 2, (size[1] - 64) // 2
    assert np.array_equal(
        resize_and_crop(image, settings=EncodeSettings(size_px=64)), np.asarray(image)[top : top + 64, left : left + 64]
    )


def test_small_pictures_are_scaled_up_and_native_ones_left_alone() -> None:
    assert resize_and_crop(picture(10, width=20, height=10), settings=EncodeSettings(size_px=64)).shape == (64, 64, 3)
    assert resize_and_crop(picture(10, width=21, height=11), settings=EncodeSettings(size_px=None)).shape == (11, 21, 3)


def test_a_picture_with_an_embedded_thumbnail_and_more_frames_is_one_picture() -> None:
    image = picture(11)
    data = as_bytes(image, "MPO", save_all=True, append_images=[picture(12)], quality=95)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(decode(data), expected)
