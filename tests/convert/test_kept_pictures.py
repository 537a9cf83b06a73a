"""Masks and other second pictures: every value as it was, the same cut and size as the picture's, checked by verify."""

import io
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.convert.conftest import as_bytes, picture
from walloc_data import encode_dataset
from walloc_data.cli import main
from walloc_data.convert import verify_dataset
from walloc_data.errors import FormatError, SettingsMismatchError, SourceError
from walloc_data.format import EncodeSettings
from walloc_data.maintain import append_dataset, merge_datasets, remove_samples
from walloc_data.pictures import PictureError, kept_picture
from walloc_data.sources import open_source

RNG = np.random.default_rng(0)
WIDE, HIGH = 60, 40


def mask(number: int) -> np.ndarray:
    """Blocks of class numbers, so that any interpolation would show."""
    return np.random.default_rng(number).integers(0, 21, (HIGH, WIDE), dtype=np.uint8)


def indexed(values: np.ndarray) -> bytes:
    """A mask as VOC has them: numbers under a palette."""
    image = Image.fromarray(values, "L").convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return as_bytes(image)


def table(numbers: range) -> datasets.Dataset:
    rows = [
        {
            "image": {"bytes": as_bytes(picture(number, width=WIDE, height=HIGH)), "path": f"{number}.png"},
            "mask": None if number == 2 else {"bytes": indexed(mask(number)), "path": None},
        }
        for number in numbers
    ]
    return datasets.Dataset.from_list(rows, datasets.Features({"image": datasets.Image(), "mask": datasets.Image()}))


def members(out: Path, ending: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for shard in sorted((out / "data").iterdir()):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(ending):
                    found[member.name.partition(".")[0]] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda values: values),
        ({"size_px": 20}, lambda values: values[1::2, 11:51:2]),
        ({"resize": "square:40"}, lambda values: values[:, np.floor((np.arange(40) + 0.5) * 1.5).astype(int)]),
        ({"snap": 16}, lambda values: values[4:36, 6:54]),
    ],
)
def test_masks_keep_their_values_and_follow_the_pictures_cut(
    options: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    summary = encode_dataset(
        table(range(5)), out, image_column="image", keep_pictures=["mask"], progress=False, **options
    )
    assert (summary.num_samples, summary.num_failures) == (5, 0)
    assert verify_dataset(out, progress=False).problems == ()
    found = members(out, ".mask.png")
    assert sorted(found) == [f"{number:09d}" for number in (0, 1, 3, 4)]
    for key, data in found.items():
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(np.asarray(image), expected(mask(int(key))))


def test_a_mask_of_another_size_or_that_is_damaged_makes_its_sample_a_failure(tmp_path: Path) -> None:
    pixels = np.asarray(picture(0, width=WIDE, height=HIGH))
    items = [
        {"image": pixels, "mask": mask(0)},
        {"image": pixels, "mask": mask(0)[:-1]},
        {"image": pixels, "mask": b"no picture"},
        {"image": pixels, "mask": mask(1).astype(np.uint16) * 3000},
    ]
    summary = encode_dataset(items, tmp_path / "out", keep_pictures=["mask"], progress=False)
    assert (summary.num_samples, summary.num_failures) == (2, 2)
    reasons = (tmp_path / "out" / "failures" / "train.jsonl").read_text()
    assert "its mask: 60 x 39 pixels, and the picture 60 x 40" in reasons
    assert "its mask: UnidentifiedImageError" in reasons
    with Image.open(io.BytesIO(members(tmp_path / "out", ".mask.png")["000000003"])) as image:
        np.testing.assert_array_equal(np.asarray(image), mask(1).astype(np.uint16) * 3000)


def test_values_are_never_converted() -> None:
    settings = EncodeSettings()
    rgba = RNG.integers(0, 256, (4, 6, 4), dtype=np.uint8)
    for values in (rgba, rgba[..., :3], rgba[..., 0] > 99):
        kept = kept_picture(as_bytes(Image.fromarray(values)), size=(6, 4), settings=settings)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(kept))), values)
    with pytest.raises(PictureError, match="pixels of mode CMYK are not supported"):
        kept_picture(as_bytes(Image.new("CMYK", (6, 4)), "TIFF"), size=(6, 4), settings=settings)
    with pytest.raises(PictureError, match="6 x 4 pixels; at most 20 are read"):
        kept_picture(as_bytes(Image.fromarray(rgba)), size=(6, 4), settings=EncodeSettings(max_pixels=20))


@pytest.mark.slow
def test_masks_go_along_when_data_sets_are_changed(tmp_path: Path) -> None:
    both = {"image_column": "image", "keep_pictures": ["mask"], "progress": False, "samples_per_shard": 3}
    for name, numbers in (("a", range(5)), ("b", range(5, 9))):
        encode_dataset(table(numbers), tmp_path / name, **both)  # type: ignore[arg-type]
    merge_datasets(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    append_dataset(table(range(20, 22)), tmp_path / "a", image_column="image", keep_pictures=["mask"], progress=False)
    remove_samples(tmp_path / "b", split="train", keys=["000000001"])
    for name, number in (("a", 6), ("b", 3), ("c", 8)):
        assert verify_dataset(tmp_path / name, progress=False).problems == ()
        assert len(members(tmp_path / name, ".mask.png")) == number
    encode_dataset(table(range(30, 32)), tmp_path / "plain", image_column="image", progress=False)
    with pytest.raises(FormatError, match=r"second pictures .* of the two parts differ"):
        merge_datasets(tmp_path / "c", tmp_path / "plain", tmp_path / "d")


def test_the_command_keeps_masks_and_a_damaged_one_is_found(tmp_path: Path) -> None:
    table(range(4)).to_parquet(str(tmp_path / "x.parquet"))
    command = ["encode", str(tmp_path / "x.parquet"), str(tmp_path / "out"), "--image-column", "image", "--no-preview"]
    assert main([*command, "--keep-picture", "mask"]) == 0
    assert len(members(tmp_path / "out", ".mask.png")) == 3
    assert main(command) == 1  # another plan: without masks
    with pytest.raises(SettingsMismatchError, match=r"source\.pictures"):
        encode_dataset(str(tmp_path / "x.parquet"), tmp_path / "out", image_column="image", progress=False)
    shard = tmp_path / "out" / "data" / "train-00000.tar"
    data = bytearray(shard.read_bytes())
    data[data.rindex(b"IDAT") + 8] ^= 255
    shard.write_bytes(bytes(data))
    assert any("not a readable PNG" in problem for problem in verify_dataset(tmp_path / "out", progress=False).problems)


def test_columns_that_are_no_pictures_and_sources_without_columns_are_refused(tmp_path: Path) -> None:
    data = table(range(2)).add_column("size", [1, 2])
    with pytest.raises(SourceError, match=r"column 'size' holds Value.*not pictures"):
        open_source(data, image_column="image", keep_pictures=["size"])
    with pytest.raises(SourceError, match="no column 'depth'"):
        open_source(data, image_column="image", keep_pictures=["depth"])
    with pytest.raises(SourceError, match="names of such columns must be letters, digits"):
        open_source(data, image_column="image", keep_pictures=["a/b"])
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.png").write_bytes(as_bytes(picture(0)))
    with pytest.raises(SourceError, match="only Hugging Face data sets, parquet and sequences support second pictures"):
        open_source(tmp_path, keep_pictures=["mask"])
    with pytest.raises(SourceError, match=r"its items have no pictures named \['mask'\]"):
        open_source([(np.zeros((4, 4, 3), np.uint8), 1)], keep_pictures=["mask"])
