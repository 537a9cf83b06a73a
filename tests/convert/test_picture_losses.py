"""Pictures that hold more than 8-bit RGB: scaled by a stated range, and what is lost is told and counted."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image, ImageOps, features

from tests.convert.conftest import as_bytes, make_folder, picture
from walloc_data import encode_dataset
from walloc_data.convert import verify_dataset
from walloc_data.errors import FormatError
from walloc_data.format import EncodeSettings
from walloc_data.pictures import PictureError, decode_picture

Values = npt.NDArray[np.uint16]


def decode(data: bytes, **settings: Any) -> tuple[npt.NDArray[np.uint8], list[str]]:
    lost: list[str] = []
    image = decode_picture(data, settings=EncodeSettings(**settings), left_out=lost)
    return np.asarray(image), lost


def png16(values: Values) -> bytes:
    """A PNG of 16 bits: grey (H, W), grey and alpha (H, W, 2), RGB (H, W, 3) or RGBA (H, W, 4)."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: npt.NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def deep(limit: int, *shape: int) -> Values:
    values = np.random.default_rng(0).integers(0, limit + 1, shape).astype(np.uint16)
    values.reshape(-1)[:2] = 0, limit
    return values


DEEP_RGB = {
    "PNG": png16,
    **{
        f"TIFF {order} {compression}": lambda values, o=order, c=compression: tiff(
            values, photometric="rgb", planarconfig="contig", compression=c, byteorder=o
        )
        for order in "<>"
        for compression in (None, "zlib")
    },
}


@pytest.mark.parametrize("kind", DEEP_RGB)
@pytest.mark.parametrize("limit", [1023, 4095, 65535])
def test_colour_of_10_to_16_bits_is_scaled_by_max_value(kind: str, limit: int) -> None:
    values = deep(limit, 6, 9, 3)
    pixels, lost = decode(DEEP_RGB[kind](values), max_value=limit)
    assert np.array_equal(pixels, np.floor(values.astype(float) * 255 / limit + 0.5))
    assert lost == []
    assert np.array_equal(decode(DEEP_RGB[kind](values))[0], values >> 8)


@pytest.mark.parametrize("write", [png16, tiff])
@pytest.mark.parametrize("limit", [1023, 4095, 16383, 65535])
def test_grey_of_10_to_16_bits_is_scaled_by_max_value(write: Any, limit: int) -> None:
    values = deep(limit, 6, 9)
    pixels, lost = decode(write(values), max_value=limit)
    assert np.array_equal(pixels[..., 1], np.floor(values.astype(float) * 255 / limit + 0.5))
    assert lost == []


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3)])
def test_without_max_value_a_small_range_is_told(shape: tuple[int, ...]) -> None:
    _, lost = decode(png16(deep(4095, *shape)))
    assert lost == [
        "all but 8 of 16 bits a value, with no value above 4095: if that is the range, set max_value=4095 "
        "(--max-value), or the picture is nearly black"
    ]
    assert decode(png16(deep(65535, *shape)))[1] == ["all but 8 of 16 bits a value"]


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3)])
def test_values_beyond_max_value_are_failures(shape: tuple[int, ...]) -> None:
    with pytest.raises(PictureError, match="a value of 4095 is beyond max_value, which is 1023"):
        decode(png16(deep(4095, *shape)), max_value=1023)


def test_max_value_touches_neither_8_bits_nor_formats_that_state_their_range() -> None:
    image = picture(0)
    assert np.array_equal(decode(as_bytes(image), max_value=1023)[0], np.asarray(image))
    values = deep(4095, 4, 4)
    pgm = b"P5 4 4 4095 " + values.astype(">u2").tobytes()
    expected = np.floor(values.astype(float) * 255 / 4095 + 0.5)
    for options in ({}, {"max_value": 1023}):
        assert np.abs(decode(pgm, **options)[0][..., 0] - expected).max() <= 1
    twelve = tiff(values, bitspersample=12, photometric="minisblack")
    for options in ({}, {"max_value": 65535}):
        pixels, lost = decode(twelve, **options)
        assert np.array_equal(pixels[..., 0], expected)
        assert lost == []


def test_alpha_of_16_bits_is_composited_with_scaled_colours() -> None:
    values = np.zeros((2, 2, 4), np.uint16)
    values[..., :3], values[..., 3] = 2048, [[0, 65535], [65535, 0]]
    pixels, _ = decode(png16(values), max_value=4095, background=(9, 8, 7))
    assert pixels[0, 0].tolist() == [9, 8, 7]
    assert pixels[0, 1].tolist() == [128, 128, 128]
    with pytest.raises(PictureError, match=r"16 bits with transparency of this kind \(LA;16B\) are not read with"):
        decode(png16(deep(4095, 4, 4, 2)), max_value=4095)


def test_tiff_that_pillow_reads_wrongly_or_not_at_all_is_a_failure() -> None:
    values = deep(65535, 3, 6, 9)
    planes = tiff(values, photometric="rgb", planarconfig="separate")
    with pytest.raises(PictureError, match="bands stored one after another, uncompressed, is not read"):
        decode(planes)
    planes = tiff(values, photometric="rgb", planarconfig="separate", compression="zlib")
    assert np.array_equal(decode(planes)[0], values.transpose(1, 2, 0) >> 8)
    with pytest.raises(PictureError, match="bands stored one after another is not read with max_value"):
        decode(planes, max_value=65535)
    many = tiff(np.zeros((6, 9, 13), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(PictureError, match=r"^a TIFF with unsupported bands, bits or compression$"):
        decode(many)


@pytest.mark.parametrize(
    ("bands", "extra", "lost"),
    [
        (4, ["unspecified"], ["TIFF bands after the first 3 of 4"]),
        (6, ["unspecified"] * 3, ["TIFF bands after the first 3 of 6"]),
        (4, ["unassalpha"], []),
        (5, ["unassalpha", "unspecified"], ["TIFF bands after the first 4 of 5"]),
    ],
)
def test_bands_beyond_colour_are_told(bands: int, extra: list[str], lost: list[str]) -> None:
    values = np.random.default_rng(1).integers(0, 256, (6, 9, bands)).astype(np.uint8)
    values[..., 3] = 255
    pixels, found = decode(tiff(values, photometric="rgb", planarconfig="contig", extrasamples=extra))
    assert found == lost
    assert np.array_equal(pixels, values[..., :3])


def test_frames_after_the_first_are_told() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        pixels, lost = decode(as_bytes(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert lost == ["frames after the first"], kind
        assert np.abs(pixels[4, 4].astype(int) - [255, 0, 0]).max() <= 2
        assert decode(as_bytes(frames[0], kind))[1] == []


def test_what_pictures_lose_is_in_the_summary_also_of_a_later_run(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", classes=2, per_class=2)
    for number in range(3):
        (source / "class_0" / f"deep{number}.png").write_bytes(png16(deep(4095, 16, 16, 3)))
    bands = tiff(np.zeros((16, 16, 5), np.uint8), photometric="rgb", planarconfig="contig", extrasamples=[0, 0])
    (source / "class_1" / "bands.tif").write_bytes(bands)
    (source / "class_1" / "0.txt").write_text("a caption")
    out = tmp_path / "out"
    options: dict[str, Any] = {"samples_per_shard": 2, "size_px": 16, "progress": False}
    summary = encode_dataset(source, out, **options)
    assert summary.kept == ("label (2 classes)",)
    assert summary.notes == (
        "left out: files that are not named like pictures: 1 .txt",
        "left out of 3 pictures: all but 8 of 16 bits a value, with no value above 4095: if that is the range, set "
        "max_value=4095 (--max-value), or the picture is nearly black",
        "left out of 1 picture: TIFF bands after the first 3 of 5",
    )
    assert str(summary).splitlines()[1:] == ["kept with each picture: label (2 classes)", *summary.notes]
    assert encode_dataset(source, out, **options).notes == summary.notes
    assert verify_dataset(out, progress=False).problems == ()
    ranged = encode_dataset(source, tmp_path / "ranged", max_value=4095, **options)
    assert ranged.notes == (summary.notes[0], summary.notes[2])
    manifest = json.loads((tmp_path / "ranged" / "walloc.json").read_text())
    assert manifest["settings"]["max_value"] == 4095


@pytest.mark.parametrize("value", [255, 65536, 4095.0])
def test_max_value_is_an_integer_of_9_to_16_bits(value: Any) -> None:
    with pytest.raises(FormatError, match=r"max_value must be an integer in \[256, 65535\]"):
        EncodeSettings(max_value=value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_what_pillow_makes_of_it(kind: str, orientation: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    tags = Image.Exif()
    tags[0x0112] = orientation
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "MPO": {"save_all": True}}.get(kind, {})
    data = as_bytes(picture(1, width=48, height=32), kind, exif=tags, **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    pixels, _ = decode(data)
    assert np.array_equal(pixels, expected)
    assert pixels.shape[:2] == ((32, 48) if orientation <= 4 else (48, 32))
