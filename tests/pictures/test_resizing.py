"""The sizes at which pictures are encoded: crops, native shapes, squares, multiples, and which pixels they keep."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from walloc_data import LatentDataset, create_latent_model, encode_dataset
from walloc_data.codec import load_codec
from walloc_data.convert import verify_dataset
from walloc_data.errors import FormatError, ModelError
from walloc_data.format import EncodeSettings
from walloc_data.pictures import PictureError, crop_box, encoded_size, resize_and_crop
from walloc_data.serving import PictureClassifier

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8))
BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS


@pytest.mark.parametrize(
    ("settings", "box", "size"),
    [
        (EncodeSettings(), (0, 0, 150, 100), (150, 100)),
        (EncodeSettings(snap=64), (11, 18, 139, 82), (128, 64)),
        (EncodeSettings(size_px=50), (25, 0, 125, 100), (50, 50)),
        (EncodeSettings(resize="crop:50"), (25, 0, 125, 100), (50, 50)),
        (EncodeSettings(resize="square:50"), (0, 0, 150, 100), (50, 50)),
        (EncodeSettings(resize="shorter:50"), (0, 0, 150, 100), (75, 50)),
        (EncodeSettings(resize="shorter:200"), (0, 0, 150, 100), (300, 200)),
        # 75 becomes 50, of which the source has 100 at the same scale.
        (EncodeSettings(resize="shorter:50", snap=25), (0, 0, 150, 100), (75, 50)),
        (EncodeSettings(resize="shorter:50", snap=50), (25, 0, 125, 100), (50, 50)),
    ],
)
@pytest.mark.parametrize("filter_name", ["bicubic", "lanczos"])
def test_a_picture_is_scaled_from_the_box_that_is_recorded(
    settings: EncodeSettings, box: tuple[int, int, int, int], size: tuple[int, int], filter_name: str
) -> None:
    settings = EncodeSettings.from_dict(settings.to_dict() | {"filter": filter_name}, context="settings")
    assert (crop_box(NOISE.size, settings=settings), encoded_size(NOISE.size, settings=settings)) == (box, size)
    scaled = NOISE.resize(size, {"bicubic": BICUBIC, "lanczos": LANCZOS}[filter_name], box=box)
    assert np.array_equal(resize_and_crop(NOISE, settings=settings), np.asarray(scaled))


@pytest.mark.parametrize("size", [(1, 1), (3, 1000), (640, 427), (427, 640), (33, 65)])
@pytest.mark.parametrize("snap", [None, 8, 32])
def test_the_shorter_side_is_exact_and_nothing_leaves_the_picture(size: tuple[int, int], snap: int | None) -> None:
    settings = EncodeSettings(resize="shorter:96", snap=snap)
    left, top, right, bottom = crop_box(size, settings=settings)
    width, height = encoded_size(size, settings=settings)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert min(width, height) == 96
    assert (width % (snap or 1), height % (snap or 1)) == (0, 0)
    # One scale for both axes, but for the rounding of a side to whole pixels.
    ratio = (width / (right - left)) / (height / (bottom - top))
    assert abs(ratio - 1) <= 1 / min(right - left, bottom - top) + 1 / 96


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "shrink:96"}, "resize must be crop, shorter or square"),
        ({"resize": "shorter:"}, "resize must be crop, shorter or square"),
        ({"resize": "shorter"}, "resize 'shorter' needs a size: use 'shorter:288'"),
        ({"resize": "square:0"}, r"size_px must be an integer in \[1,"),
        ({"filter": "box"}, "filter must be 'bicubic' or 'lanczos'"),
        ({"size_px": 96, "snap": 36}, "size_px 96 is not a multiple of snap 36"),
        ({"snap": 0}, "snap must be an integer"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        EncodeSettings(**fields)  # type: ignore[arg-type]


def test_a_picture_that_would_grow_beyond_all_bounds_or_has_no_multiple_is_a_failure() -> None:
    with pytest.raises(PictureError, match=r"96 x 9600000 pixels after resizing; at most"):
        resize_and_crop(Image.new("RGB", (1, 100_000)), settings=EncodeSettings(resize="shorter:96"))
    with pytest.raises(PictureError, match=r"20 x 100 pixels: a side is shorter than 32 \(--snap\)"):
        resize_and_crop(Image.new("RGB", (20, 100)), settings=EncodeSettings(snap=32))


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["shorter:64", "square:64"])
def test_a_data_set_of_native_shapes_is_whole_and_serves_what_it_stored(
    kodak: list[Path], tmp_path: Path, resize: str
) -> None:
    out = tmp_path / "out"
    encode_dataset(kodak[0].parent, out, resize=resize, snap=16, filter="lanczos", progress=False)
    assert verify_dataset(out, progress=False).problems == ()
    data = LatentDataset(out, columns=["source_name"], target=None)
    assert data.latent_shape == ((12, 8, 8) if resize == "square:64" else None)
    model = create_latent_model("test_convnext", dataset=data, input_shape=(12, 8, 8), num_classes=5).eval()
    classifier = PictureClassifier(model, load_codec(decoder=False)[0])
    shapes = set()
    for latent, name in data:
        shapes.add(tuple(latent.shape[1:]))
        with Image.open(kodak[0].parent / name) as image, torch.no_grad():
            pixels = resize_and_crop(image.convert("RGB"), settings=data.manifest.settings)
            assert torch.equal(classifier.encode(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0], latent)
            [prediction] = classifier.predict([image])
            assert prediction.probability == pytest.approx(float(model(latent[None]).softmax(1).max()), abs=1e-6)
            with pytest.raises(ModelError, match="resized by a lanczos filter, which torch does not have"):
                classifier.encode(torch.zeros(1, 3, 200, 300, dtype=torch.uint8))
    assert shapes == ({(8, 8)} if resize == "square:64" else {(8, 12), (12, 8)})


def test_a_size_alone_means_the_centre_square(imagenette_folder: Path, tmp_path: Path) -> None:
    encode_dataset(imagenette_folder, tmp_path / "a", size_px=32, progress=False)
    assert LatentDataset(tmp_path / "a").manifest.settings.resize == "crop"
    with pytest.raises(FormatError, match=r"resize 'shorter:48' and size_px 32 .* contradict each other"):
        encode_dataset(imagenette_folder, tmp_path / "b", size_px=32, resize="shorter:48", progress=False)
