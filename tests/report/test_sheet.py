"""The contact sheet shows the samples it was asked for, and tells the truth about them."""

import html
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from walloc_data.codec import WallocCodec, load_codec, save_codec
from walloc_data.codec.decoders import build_decoder
from walloc_data.errors import CodecError, FormatError, StorageError
from walloc_data.format import EncodeSettings
from walloc_data.pictures import original_pictures
from walloc_data.report import add_preview, preview, report
from walloc_data.report.samples import decode, open_split, psnr, spread_rows
from walloc_data.report.sheet import channel_grid, packed_picture
from walloc_data.sources import open_source
from walloc_data.storage import Store


def opened_picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


@pytest.mark.slow
def test_a_sheet_has_a_row_for_every_sample(imagenette_latents: Any, tmp_path: Path) -> None:
    two = opened_picture(preview(imagenette_latents.out, tmp_path / "two.png", num_samples=2))
    four = opened_picture(preview(imagenette_latents.out, tmp_path / "four.webp", num_samples=4))
    assert (two.format, four.format) == ("PNG", "WEBP")
    row = (four.height - two.height) / 2
    assert row == 224 + 30 + 22  # the picture, its caption, a gap
    assert two.width == four.width


@pytest.mark.slow
def test_the_same_data_set_gives_the_same_sheet(imagenette_latents: Any, tmp_path: Path) -> None:
    first = preview(imagenette_latents.out, tmp_path / "a.png", num_samples=3).read_bytes()
    assert preview(imagenette_latents.out, tmp_path / "b.png", num_samples=3).read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_stored_picture_is_drawn_as_it_is(imagenette_latents: Any, tmp_path: Path) -> None:
    with open_split(Store(imagenette_latents.out), split=None) as opened:
        [row] = opened.rows_of(["000000007"])
        [shown] = opened.read([row])
    packed = np.asarray(packed_picture(shown.latent))
    assert packed.shape == (24, 24, 3)
    sheet = np.asarray(opened_picture(preview(imagenette_latents.out, tmp_path / "one.png", keys=["000000007"])))
    drawn = sheet[128 + 30 : 128 + 30 + 224, 28 : 28 + 224]
    rows = (np.arange(24) + 0.5) * 224 / 24  # the middle of each enlarged value
    middle = rows.astype(int)
    assert np.array_equal(drawn[np.ix_(middle, middle)], packed)


def test_originals_are_drawn_beside_with_their_psnr(imagenette_latents: Any, tmp_path: Path) -> None:
    source = open_source(imagenette_latents.source)
    original = original_pictures(source, settings=EncodeSettings(size_px=96))
    asked: list[int] = []

    def recorded(index: int) -> Any:
        asked.append(index)
        return original(index)

    sheet = opened_picture(
        preview(imagenette_latents.out, tmp_path / "a.png", keys=["000000007", "000000030"], original=recorded)
    )
    assert asked == [7, 30]
    pixels = np.asarray(sheet)
    expected = np.asarray(Image.fromarray(original(7)).resize((224, 224), Image.Resampling.LANCZOS))
    assert np.array_equal(pixels[158 : 158 + 224, 28 : 28 + 224], expected)


def test_what_is_decoded_is_the_picture_that_was_encoded(imagenette_latents: Any) -> None:
    source = open_source(imagenette_latents.source)
    original = original_pictures(source, settings=EncodeSettings(size_px=96))
    with open_split(Store(imagenette_latents.out), split=None) as opened:
        codec, _ = opened.load_codec()
        for shown in opened.read(spread_rows(opened.index["label"], 5)):
            picture = decode(codec, shown, how="linear")
            assert picture.size == (96, 96)
            assert psnr(picture, Image.fromarray(original(shown.source_index))) > 19


def test_padding_is_cut_off_again(tmp_path: Path) -> None:
    from walloc_data import encode_dataset

    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (3, 3, 3), dtype=np.uint8)).resize((61, 43), Image.Resampling.BICUBIC)
    (tmp_path / "source").mkdir()
    smooth.save(tmp_path / "source" / "a.png")
    encode_dataset(tmp_path / "source", tmp_path / "out", progress=False)
    with open_split(Store(tmp_path / "out"), split=None) as opened:
        codec, _ = opened.load_codec()
        [shown] = opened.read([0])
        assert shown.latent.shape == (12, 6, 8)
        assert psnr(decode(codec, shown), smooth) > 25


def test_psnr_is_that_of_the_formula_and_refuses_other_sizes() -> None:
    black, grey = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (10, 10, 10))
    assert psnr(black, grey) == pytest.approx(20 * np.log10(25.5))
    assert psnr(black, black) == float("inf")
    with pytest.raises(FormatError, match=r"the original is 9 x 8 pixels, the encoded picture 8 x 8"):
        psnr(black, Image.new("RGB", (9, 8)))


def test_channels_are_coloured_by_their_side_of_the_mean() -> None:
    latent = np.zeros((12, 1, 1), np.int8)
    latent[1], latent[2] = 30, -30
    grid = np.asarray(channel_grid(latent, mean=[0.0] * 12, std=[10.0] * 12, gap_px=0))
    assert grid.shape == (3, 4, 3)
    assert grid[0, 0].tolist() == [26, 29, 35]
    assert grid[0, 1].tolist() == [255, 176, 66]
    assert grid[0, 2].tolist() == [72, 168, 255]


def test_chosen_samples_show_every_class_before_any_twice() -> None:
    labels = np.repeat([3, 1, 2], [50, 2, 40])
    rows = spread_rows(labels, 5)
    assert sorted(labels[rows].tolist()) == [1, 1, 2, 2, 3] or len(set(labels[rows])) == 3
    assert spread_rows(labels, 5) == rows
    assert labels[rows].tolist() == sorted(labels[rows].tolist())
    assert len(spread_rows(labels, 1000)) == 92
    assert len(set(labels[spread_rows(labels, 3)])) == 3
    assert len(set(spread_rows(np.full(20, -1), 8))) == 8


@pytest.mark.slow
def test_class_names_of_any_kind_can_be_drawn(imagenette_latents: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(imagenette_latents.out, out)
    text = (out / "walloc.json").read_text()
    names = "n01440764", '"n01440764"'
    assert names[1] in text
    (out / "walloc.json").write_text(text.replace(names[1], '"日本 \\u202e café\\n\\u0000 ' + "x" * 500 + '"', 1))
    plain = opened_picture(preview(imagenette_latents.out, tmp_path / "plain.png", num_samples=11))
    assert opened_picture(preview(out, tmp_path / "a.png", num_samples=11)).size == plain.size


@pytest.mark.slow
def test_shapes_may_vary_and_labels_be_absent(kodak_latents: Any, tmp_path: Path) -> None:
    sheet = opened_picture(preview(kodak_latents.out, tmp_path / "a.png"))
    assert sheet.height == 128 + 3 * (30 + 224 + 22) + 28


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keys": ["nope"]}, r"no sample 'nope'; keys look like '0"),
        ({"split": "test"}, r"no split 'test'; it has \['train'\]"),
        ({"num_samples": 0}, r"num_samples must be in \[1, 200\]"),
    ],
)
def test_what_is_not_there_is_named(
    imagenette_latents: Any, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        preview(imagenette_latents.out, tmp_path / "a.png", **arguments)


def test_other_mistakes_are_explained(imagenette_latents: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"ends in \.png, \.webp or \.jpg"):
        preview(imagenette_latents.out, tmp_path / "a.txt", num_samples=1)
    with pytest.raises(StorageError, match="could not be written"):
        preview(imagenette_latents.out, tmp_path / "no" / "folder.png", num_samples=1)
    with pytest.raises(FormatError, match=r"no walloc\.json: not a data set of latents"):
        preview(tmp_path, tmp_path / "a.png")


def test_a_codec_that_did_not_make_the_latents_is_refused(imagenette_latents: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(imagenette_latents.out, out)
    codec, _ = load_codec(out / "codec")
    with torch.no_grad():
        codec.encoder[0].weight[0, 0] += 1
    shutil.rmtree(out / "codec")
    save_codec(codec, out / "codec")
    with pytest.raises(CodecError, match="is not the one that made the latents"):
        preview(out, tmp_path / "a.png")


def test_a_preview_is_put_into_the_data_set_and_its_card(imagenette_latents: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(imagenette_latents.out, out)
    assert "preview.webp" not in (out / "README.md").read_text()
    add_preview(out)
    assert opened_picture(out / "preview.webp").format == "WEBP"
    card = (out / "README.md").read_text()
    assert card.count("](preview.webp)") == 1
    add_preview(out)
    assert (out / "README.md").read_text() == card


def with_conv_decoder(out: Path) -> None:
    """Give a data set's codec a small network beside its linear decoder."""
    codec, info = load_codec(out / "codec")
    torch.manual_seed(0)
    network = build_decoder({"kind": "conv", "width": 8, "blocks": 1, "groups": 1}, latent_dim=12, out_channels=192)
    both = WallocCodec(decoder=network, linear_decoder=codec.linear_decoder)
    both.encoder.load_state_dict(codec.encoder.state_dict())
    shutil.rmtree(out / "codec")
    save_codec(both, out / "codec", name=info.name)


def test_a_codec_with_two_decoders_is_shown_with_both(imagenette_latents: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(imagenette_latents.out, out)
    with_conv_decoder(out)
    sheet = np.asarray(opened_picture(preview(out, tmp_path / "a.png", keys=["000000007"])))
    with open_split(Store(out), split=None) as opened:
        codec, info = opened.load_codec()
        assert info.decoder == "conv"
        [shown] = opened.read(opened.rows_of(["000000007"]))
        own, linear = decode(codec, shown), decode(codec, shown, how="linear")
    assert not np.array_equal(own, linear)
    left = 28 + 224 + 14 + 298 + 14  # beyond the packed latent and the 4 x 3 channels
    for picture in (linear, own):
        expected = np.asarray(picture.resize((224, 224), Image.Resampling.LANCZOS))
        assert np.array_equal(sheet[158 : 158 + 224, left : left + 224], expected)
        left += 224 + 14
    page = report(out, tmp_path / "a.html").read_text()
    assert "Decoded by the codec's decoder." in html.unescape(page)


def test_a_codec_that_only_encodes_leaves_the_pictures_out(imagenette_latents: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(imagenette_latents.out, out)
    codec, info = load_codec(out / "codec")
    bare = WallocCodec(decoder=torch.nn.Identity())
    bare.encoder.load_state_dict(codec.encoder.state_dict())
    shutil.rmtree(out / "codec")
    save_codec(bare, out / "codec", name=info.name)
    assert opened_picture(preview(out, tmp_path / "a.png", num_samples=1)).width == 860
    page = report(out, tmp_path / "a.html").read_text()
    assert "The codec in this data set has no decoder, so no pictures are shown." in page
