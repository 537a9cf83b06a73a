"""Shrunk latents are near to the latents of the shrunk picture; crops are drawn as torchvision draws them."""

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop as PixelCrop

from walloc_data.codec import bundled_codecs, codec_folder, load_codec
from walloc_data.errors import CodecError, TransformError
from walloc_data.transforms import (
    CenterCrop,
    ColorJitter,
    LatentOperators,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    fit_operators,
)

HALF, TWO_THIRDS = Fraction(1, 2), Fraction(2, 3)


@pytest.fixture(scope="module")
def codec():
    return load_codec(None, decoder=False)[0]


@pytest.fixture(scope="module")
def photographs(kodak: list[Path]) -> Tensor:
    """(11, 3, 192, 192) uint8: the middle of each Kodak photograph at half its size."""
    pictures = []
    for path in kodak:
        image = Image.open(path).convert("RGB").reduce(2)
        left, top = (image.width - 192) // 2, (image.height - 192) // 2
        pictures.append(torch.from_numpy(np.array(image.crop((left, top, left + 192, top + 192)))).permute(2, 0, 1))
    return torch.stack(pictures)


@pytest.fixture(scope="module")
def fitted(codec, kodak, photographs) -> LatentOperators:
    whole = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in kodak[:8]]
    crops = torch.stack([p[:, i : i + 192, j : j + 192] for p in whole for i in (0, 250) for j in (0, 160, 320)])
    return fit_operators(codec, crops.split(16), held_out=photographs[8:].split(1), factors=[TWO_THIRDS])


@pytest.fixture(scope="module")
def bundled(codec) -> LatentOperators:
    return LatentOperators.load(codec_folder(), spec=codec.spec)


def shrunk(pictures: Tensor, height: int, width: int) -> Tensor:
    """By Pillow, as pictures are resized everywhere."""
    images = [
        Image.fromarray(p.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC) for p in pictures
    ]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).contiguous()


def relative_error(got: Tensor, expected: Tensor) -> float:
    error = (got.float() - expected.float()).square().mean((0, 2, 3))
    return float((error / expected.float().var((0, 2, 3))).mean())


@pytest.mark.parametrize(
    ("height", "width", "most"),
    [(96, 96, 0.03), (128, 128, 0.07), (144, 144, 0.1), (192, 128, 0.1), (96, 144, 0.06), (128, 96, 0.05)],
)
def test_shrunk_latents_are_near_those_of_the_shrunk_picture(codec, photographs, bundled, height, width, most):
    expected = codec.encode(shrunk(photographs, height, width))
    z = codec.encode(photographs)
    got = Resize((height // 8, width // 8), operators=bundled)(z)
    assert got.dtype == torch.float32
    assert relative_error(got, expected) < most
    bilinear = F.interpolate(z.float(), size=got.shape[2:], mode="bilinear", align_corners=False)
    assert relative_error(got, expected) < 0.15 * relative_error(bilinear, expected)


@pytest.mark.slow
def test_the_error_that_a_fit_reports_is_that_of_pictures_it_has_not_seen(codec, photographs, fitted):
    assert fitted.factors == (TWO_THIRDS, 1)
    held_out = photographs[8:]
    small = shrunk(held_out, 128, 128)
    got = Resize(16, operators=fitted)(codec.encode(held_out))
    found = relative_error(got, codec.encode(small))
    assert fitted.held_out_error["rescale 2/3 x 2/3"] == pytest.approx(found, rel=0.1)
    assert found < 0.15
    mirror = fitted.rescaling(TWO_THIRDS, TWO_THIRDS, mirrored=True)
    found = relative_error(mirror(codec.encode(held_out).flip(-1)), codec.encode(small.flip(-1)))
    assert fitted.held_out_error["rescale 2/3 x 2/3, mirrored"] == pytest.approx(found, rel=0.1)


def test_flipping_while_shrinking_is_nearer_than_one_after_the_other(codec, photographs, bundled):
    z, expected = codec.encode(photographs), codec.encode(shrunk(photographs, 128, 128).flip(-1))
    whole = RandomResizedCrop(16, operators=bundled, scale=(1, 1), ratio=(1, 1), flip_p=1.0)
    after = bundled.flip(Resize(16, operators=bundled)(z).flip(-1))
    assert relative_error(whole(z), expected) < 0.6 * relative_error(after, expected)


def test_what_pictures_are_too_few_for_is_left_out(codec, photographs):
    some = [HALF, Fraction(4, 5)]
    few = fit_operators(codec, photographs[:6].split(1), held_out=photographs[8:9].split(1), factors=some)
    # Six pictures of 24 x 24 cells have 96 windows of 5 x 5 and 864 of 2 x 2, for 192 and 432 weights an output.
    one_side = {pair for factor in some for pair in ((factor, 1), (1, factor))}
    assert {(item.rows, item.columns) for item in few.rescalings} == one_side
    with pytest.raises(
        TransformError, match="no map for rows by 1/2, columns by 1/2: they shrink sides by 1/2, 4/5, 1"
    ):
        few.rescaling(HALF, HALF)


def test_each_sample_of_a_batch_gets_its_own_crop_and_flip(codec, photographs, bundled):
    z = codec.encode(photographs[:4]).repeat(16, 1, 1, 1)  # (64, 12, 24, 24)
    crop = RandomResizedCrop(16, operators=bundled, scale=(1, 1), ratio=(1, 1), flip_p=0.5)
    out = crop(z, generator=torch.Generator().manual_seed(0))
    plain = Resize(16, operators=bundled)(z)
    mirrored = bundled.rescaling(TWO_THIRDS, TWO_THIRDS, mirrored=True)(z.flip(-1))
    is_plain = (out - plain).abs().amax((1, 2, 3)) < 1e-3
    is_mirrored = (out - mirrored).abs().amax((1, 2, 3)) < 1e-3
    assert (is_plain ^ is_mirrored).all()
    assert 20 < int(is_mirrored.sum()) < 44


def test_a_crop_sees_the_cells_around_it(codec, photographs, bundled):
    """An interior crop, shrunk, is that part of the whole, shrunk."""
    z = codec.encode(photographs)
    whole = Resize(12, operators=bundled)(z)  # 24 to 12
    crop = RandomResizedCrop(6, operators=bundled, scale=(0.25, 0.25), ratio=(1, 1))  # 12 cells to 6
    out = crop(z.repeat(4, 1, 1, 1), generator=torch.Generator().manual_seed(1))
    parts = whole.unfold(2, 6, 1).unfold(3, 6, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # (11, 49, 12, 6, 6)
    found = (out[:, None] - parts.repeat(4, 1, 1, 1, 1)).abs().amax((2, 3, 4)).amin(1) < 1e-3
    assert 4 <= int(found.sum()) <= 24  # a quarter of the 44 begin at even cells


def test_a_crop_of_the_size_itself_is_exact(codec, photographs, bundled):
    z = codec.encode(photographs[:2])
    with pytest.warns(UserWarning, match="no crop within scale"):
        out = RandomResizedCrop(16, operators=bundled, scale=(0.01, 0.01))(z)
    for sample, latent in zip(out, z, strict=True):
        windows = latent.float().unfold(1, 16, 1).unfold(2, 16, 1)
        assert (windows == sample[:, None, None]).all(4).all(3).all(0).any()


def test_areas_and_proportions_are_drawn_as_torchvision_draws_them(bundled):
    from walloc_data.transforms.resizing import random_crops

    scale, ratio = (0.2, 1.0), (3 / 4, 4 / 3)
    ours = random_crops(4000, (40, 60), scale, ratio, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    picture = torch.zeros(3, 400, 600)
    theirs = torch.tensor([PixelCrop.get_params(picture, list(scale), list(ratio))[2:] for _ in range(4000)]) / 10
    assert ours.max(0).values.tolist() == pytest.approx(theirs.max(0).values.tolist(), rel=0.04)
    for of_ours, of_theirs in zip(ours.log().T, theirs.log().T, strict=True):
        assert float(of_ours.mean()) == pytest.approx(float(of_theirs.mean()), abs=0.02)
        assert float(of_ours.std()) == pytest.approx(float(of_theirs.std()), rel=0.06)
    # Nothing that was asked for fits: the whole in the nearest proportion.
    tall = random_crops(3, (20, 20), (1.0, 1.0), (0.5, 0.5), generator=None)
    assert tall.tolist() == [[20.0, 10.0]] * 3


def test_the_nearest_crop_that_can_be_had_is_taken(bundled):
    crop = RandomResizedCrop(16, operators=bundled)
    assert sorted({round(rows, 1) for rows, _ in crop.crops(32, 24)}) == [16.0, 20.0, 21.3, 24.0, 26.7, 32.0]
    assert max(columns for _, columns in crop.crops(32, 24)) == 24
    assert "scale=(0.35, 1.0), ratio=(0.75, 1.33)" in repr(crop)
    assert "from sides of 32, 26.7, 24, 21.3, 20, 16 cells" in repr(crop)
    latents = torch.randint(-100, 100, (8, 12, 32, 24), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert crop(latents).shape == (8, 12, 16, 16)
    assert crop(latents[0]).shape == (12, 16, 16)
    wide = RandomResizedCrop((8, 16), operators=bundled)
    assert wide(latents).shape == (8, 12, 8, 16)
    assert "by 32, 26.7, 24, 21.3, 20, 16 cells" in repr(wide)


def test_the_same_seed_gives_the_same_crops(bundled):
    latents = torch.randint(-100, 100, (32, 12, 24, 24), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    crop = RandomResizedCrop(12, operators=bundled, flip_p=0.5)
    torch.manual_seed(3)
    first = crop(latents)
    torch.manual_seed(3)
    assert torch.equal(crop(latents), first)
    assert not torch.equal(crop(latents), first)


def test_resize_keeps_the_proportion_and_says_what_it_cannot(bundled):
    latents = torch.zeros(2, 12, 20, 30, dtype=torch.int8)
    assert Resize(16, operators=bundled)(latents).shape == (2, 12, 16, 24)
    assert CenterCrop(16)(Resize(16, operators=bundled)(latents)).shape == (2, 12, 16, 16)
    assert Resize((15, 18), operators=bundled)(latents).shape == (2, 12, 15, 18)
    assert Resize(13, operators=bundled)(latents).shape == (2, 12, 13, 20)  # 2/3 of 20, the last third cut off
    same = Resize((20, 30), operators=bundled)(latents)
    assert same.dtype == torch.int8
    with pytest.raises(
        TransformError, match=r"shrinks 20 cells to 14 \(latents of 20 x 30\): 10, 12, 13, 15, 16, 20 can"
    ):
        Resize(14, operators=bundled)(latents)
    with pytest.raises(
        TransformError, match="latents of 20 x 30 cells give no crop of 24 x 24: latents are only shrunk"
    ):
        RandomResizedCrop(24, operators=bundled)(latents)


def test_what_is_missing_is_named(bundled):
    with pytest.raises(TransformError, match="pass operators=LatentOperators"):
        RandomResizedCrop(16)
    old = replace(bundled, rescalings=())
    with pytest.raises(TransformError, match="no maps to shrink by, as files of earlier versions: fit them again"):
        RandomResizedCrop(16, operators=old)
    with pytest.raises(TransformError, match=r"shrinks 24 cells to 16 .*: 24 can be had"):
        Resize(16, operators=old)(torch.zeros(1, 12, 24, 24))
    with pytest.raises(TransformError, match="shrink sides by 1/2, 3/5, 2/3, 3/4, 4/5, 1"):
        bundled.rescaling(Fraction(7, 8), Fraction(1))
    for scale in ((0.5, 0.1), 0.5, (0.5,), ("a", "b")):
        with pytest.raises(TransformError, match="scale and ratio are ranges"):
            RandomResizedCrop(16, operators=bundled, scale=scale)
    with pytest.raises(TransformError, match=r"Resize shrinks by .* pass operators=LatentOperators.load.*, not str"):
        Resize(16, operators="my-latents")


def test_crops_are_cut_only_from_what_they_were_drawn_for(bundled):
    crop = RandomResizedCrop(8, operators=bundled)
    drawn = crop.draw(torch.zeros(4, 12, 16, 16))
    for other in ((8, 12, 16, 16), (2, 12, 16, 16), (4, 12, 12, 16)):
        with pytest.raises(TransformError, match=r"crops drawn for 4 latents of 16 x 16 cells cannot be cut from"):
            crop.cut(torch.zeros(other), drawn)
    for call in (crop.draw, lambda latents: crop.cut(latents, drawn)):
        with pytest.raises(TransformError, match=r"takes a batch of latents \(N, C, h, w\), not \(12, 16, 16\)"):
            call(torch.zeros(12, 16, 16))


def test_factors_that_do_not_shrink_are_refused(codec, photographs):
    with pytest.raises(TransformError, match="not rescaled by 4/3"):
        fit_operators(codec, photographs[:1].split(1), held_out=photographs[8:9].split(1), factors=[Fraction(4, 3)])


def test_maps_are_kept_with_the_codec_and_files_of_earlier_versions_load(fitted, tmp_path):
    path = fitted.save(tmp_path)
    again = LatentOperators.load(tmp_path)
    for before, after in zip(sorted(fitted.rescalings, key=str), sorted(again.rescalings, key=str), strict=True):
        assert (before.rows, before.columns, before.mirrored) == (after.rows, after.columns, after.mirrored)
        assert torch.equal(before.weight, after.weight)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    old = {name: value for name, value in tensors.items() if not name.startswith(("rescale", "mirrored"))}
    save_file(old, path, metadata=metadata)
    assert LatentOperators.load(tmp_path).factors == (1,)
    for name, weight in [
        ("rescale.2_3.2_3", torch.zeros(2, 2, 12, 12, 9, 9)),
        ("rescale.3_2.2_3", torch.zeros(3, 2, 12, 12, 2, 5)),
        ("rescale.1_99.1_99", torch.zeros(1, 1, 12, 12, 1, 1)),
        ("rescale.1_0.1_2", torch.zeros(1, 1, 12, 12, 1, 6)),
    ]:
        save_file(
            old | {f"{name}.weight": weight, f"{name}.bias": torch.zeros(weight.shape[:3])}, path, metadata=metadata
        )
        with pytest.raises(CodecError, match="not a file of latent operators"):
            LatentOperators.load(tmp_path)


def test_bundled_codecs_have_operators_of_their_own_encoder():
    for name in bundled_codecs():
        _, info = load_codec(name, decoder=False)
        operators = LatentOperators.load(codec_folder(name))
        assert operators.encoder_sha256 == info.encoder_sha256
        assert operators.held_out_error["rescale 1/2 x 1/2"] < 0.05
        assert len(operators.rescalings) == 2 * (6 * 6 - 1)
        assert math.isfinite(max(float(item.weight.float().abs().max()) for item in operators.rescalings))
        assert (codec_folder(name) / "operators.safetensors").stat().st_size < 2.5e6


def test_operators_print_as_one_line(bundled):
    assert repr(bundled).startswith("LatentOperators(encoder ")
    for shown in (repr(bundled), repr(bundled.flip), repr(bundled.rescalings[0])):
        assert len(shown) < 120, shown


@pytest.mark.parametrize("which", ["Resize", "RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "CenterCrop"])
def test_what_is_no_latent_is_refused_by_every_transform(which, bundled):
    transform = {
        "Resize": Resize(8, operators=bundled),
        "RandomResizedCrop": RandomResizedCrop(8, operators=bundled, flip_p=0.5),
        "RandomHorizontalFlip": RandomHorizontalFlip(bundled.flip, p=1.0),
        "ColorJitter": ColorJitter(bundled, contrast=0.2),
        "CenterCrop": CenterCrop(8),
    }[which]
    with pytest.raises(TransformError, match=f"{which} takes .* not torch.uint8, as pictures are: encode pictures"):
        transform(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    for value, kind in ((np.zeros((12, 16, 16), np.int8), "ndarray"), (Image.new("RGB", (16, 16)), "Image")):
        with pytest.raises(TransformError, match=rf"{which} takes latents as a tensor .* not {kind}"):
            transform(value)
    if which != "CenterCrop":  # the others know the codec
        with pytest.raises(TransformError, match=rf"{which} takes latents of 12 channels.* not \(2, 3, 16, 16\)"):
            transform(torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize(
    "which", ["Resize", "uneven Resize", "RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter"]
)
def test_autocast_does_not_touch_latents_and_a_cast_module_still_takes_them(which, bundled):
    """Lightning calls `training_step` within autocast, and `Module.half()` casts what it finds."""
    transform = {
        "Resize": Resize(8, operators=bundled),
        "uneven Resize": Resize(9, operators=bundled),
        "RandomResizedCrop": RandomResizedCrop(8, operators=bundled, scale=(0.05, 1.0), flip_p=0.5),
        "RandomHorizontalFlip": RandomHorizontalFlip(bundled.flip, p=0.5),
        "ColorJitter": ColorJitter(bundled, brightness=0.4, contrast=0.4, saturation=0.4),
    }[which]
    for dtype in (torch.int8, torch.float32):
        latents = torch.randint(-128, 128, (16, 12, 16, 16), generator=torch.Generator().manual_seed(0)).to(dtype)
        expected = transform(latents, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16):
            got = transform(latents, generator=torch.Generator().manual_seed(1))
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
        cast = transform.half()(latents, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(cast.float(), expected.float(), atol=1.01, rtol=0.01)
        transform.float()


def test_crops_outside_scale_or_ratio_are_announced(bundled):
    latents = torch.zeros(4, 12, 12, 12)
    for ranges in ({"scale": (0.02, 0.1)}, {"ratio": (4.0, 8.0)}):
        crop = RandomResizedCrop(8, operators=bundled, **ranges)
        with pytest.warns(UserWarning, match=r"12 x 12 cells give no crop within scale=.*from 8 x 8 to"):
            assert crop(latents).shape[2:] == (8, 8)
    RandomResizedCrop(8, operators=bundled, scale=(0.05, 1.0))(latents)  # some are within
