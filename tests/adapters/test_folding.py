"""A pixel model becomes a latent model without training: exactly where pixels are linear in latents."""

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from walloc_data.adapters import PixelPrediction, create_latent_model, fit_stem, fold_stem, stage_output, stem_of
from walloc_data.errors import ModelError
from walloc_data.regression import WindowRegression

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def linear_pictures(latents: torch.Tensor) -> torch.Tensor:
    """Pictures in [0, 1] whose 8 x 8 blocks are one linear function of their cell."""
    basis = torch.randn(12, 3 * 64, generator=torch.Generator().manual_seed(5)) * 5e-4
    blocks = (latents.float().permute(0, 2, 3, 1) @ basis).permute(0, 3, 1, 2) + 0.5
    return F.pixel_shuffle(blocks, 8)


class FloatPrediction(PixelPrediction):
    """Takes the pictures above without rounding them to uint8, so that the fold has no error to hide in."""

    def update(self, latents, pictures):
        super().update(latents, pictures * 255)


def normalised(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["standard", "expand"])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_vit", {}),
        ("test_vit", {"stem_kernel_cells": 4, "stem_padding": "circular"}),
        ("test_convnext", {"geometry": "pixel_grid"}),
        ("swin_tiny_patch4_window7_224", {"geometry": "pixel_grid", "depths": (1, 1, 1, 1), "window_size": 8}),
    ],
)
def test_patch_stems_fold_exactly_where_pixels_are_linear(name, kwargs, normalization, spec, statistics):
    torch.manual_seed(0)
    timm_kwargs = {key: value for key, value in kwargs.items() if key in ("depths", "window_size")}
    if "img_size" not in timm_kwargs and name != "test_convnext":
        timm_kwargs["img_size"] = 128
    pixel = timm.create_model(name, num_classes=5, **timm_kwargs).eval()
    model = create_latent_model(
        name,
        codec=spec,
        statistics=statistics,
        input_shape=(12, 16, 16),
        num_classes=5,
        pretrained=pixel,
        normalization=normalization,
        **kwargs,
    ).eval()
    latents = torch.randint(-60, 60, (24, 12, 16, 16)).to(torch.int8)
    seen = latents
    if normalization == "expand":  # pixels linear in v = expand(z)
        from walloc_data.latents import expand

        seen = expand(latents, latent_bits=8)
    pictures = linear_pictures(seen)
    prediction = FloatPrediction.for_model(model, pixel)
    prediction.update(latents, pictures)
    fold_stem(model, pixel, prediction=prediction.solve(), mean=MEAN, std=STD)
    with torch.no_grad():
        torch.testing.assert_close(model(latents[:4]), pixel(normalised(pictures[:4])), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("test_resnet", "conv1"), ("resnet18", "conv1"), ("test_efficientnet", "conv_stem"), ("regnety_002", "stem.conv")],
)
def test_overlapping_conv_stems_fold_exactly_away_from_the_border(name, stem, spec, statistics):
    torch.manual_seed(0)
    pixel = timm.create_model(name, num_classes=5).eval()
    model = create_latent_model(
        name,
        codec=spec,
        statistics=statistics,
        input_shape=(12, 12, 12),
        num_classes=5,
        pretrained=pixel,
        geometry="pixel_grid",
        stem_bias=True,
        stem_kernel_cells=3,
    ).eval()
    latents = torch.randint(-60, 60, (24, 12, 12, 12)).to(torch.int8)
    pictures = linear_pictures(latents)
    prediction = FloatPrediction.for_model(model, pixel)
    prediction.update(latents, pictures)
    fold_stem(model, pixel, prediction=prediction.solve(), mean=MEAN, std=STD)
    conv = pixel.get_submodule(stem)
    conv = conv[0] if isinstance(conv, nn.Sequential) else conv
    with torch.no_grad():
        expected, got = conv(normalised(pictures)), stem_of(model)(latents)
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(got[inside], expected[inside], rtol=1e-3, atol=1e-3)


def test_skipped_stages_are_fitted_to_their_output(spec, statistics):
    torch.manual_seed(0)
    model = create_latent_model(
        "test_resnet",
        codec=spec,
        statistics=statistics,
        input_shape=(12, 16, 16),
        num_classes=5,
        stem_bias=True,
    ).eval()
    latents = torch.randint(-60, 60, (16, 12, 16, 16)).to(torch.int8)
    stem = stem_of(model)
    true = torch.randn_like(stem.weight) * 0.01
    targets = F.conv2d(latents.float(), true, bias=torch.ones(stem.out_channels), padding=1)
    noise = torch.randn_like(targets) * targets.std() * 0.1
    error = fit_stem(model, batches=[(latents, targets + noise)])
    assert error == pytest.approx(0.01, rel=0.15)
    with torch.no_grad():
        got = stem(latents)[..., 1:-1, 1:-1]
    torch.testing.assert_close(got, targets[..., 1:-1, 1:-1], rtol=0, atol=float(targets.std()) * 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "resnet18d",
        "test_convnext",
        "regnety_002",
        "test_efficientnet",
        "test_maxvit",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_the_stage_to_imitate_gives_one_shape_in_both_models(name, spec, statistics):
    shape = {"img_size": 128} if "swin" in name or "maxvit" in name else {}
    pixel = timm.create_model(name, num_classes=5, **shape).eval()
    model = create_latent_model(
        name, codec=spec, statistics=statistics, input_shape=(12, 16, 16), num_classes=5, pretrained=pixel
    ).eval()
    target = stage_output(pixel, torch.randn(2, 3, 128, 128), latent_model=model)
    given = stage_output(model, torch.zeros(2, 12, 16, 16, dtype=torch.int8), latent_model=model)
    assert given.shape == target.shape
    given.square().sum().backward()
    assert stem_of(model).weight.grad.abs().sum() > 0


def test_where_no_stage_was_skipped_there_is_none_to_imitate(spec, statistics):
    whole = create_latent_model(
        "test_convnext",
        codec=spec,
        statistics=statistics,
        input_shape=(12, 16, 16),
        num_classes=5,
        geometry="all_stages",
    )
    with pytest.raises(ModelError, match="no stage was skipped"):
        stage_output(whole, torch.zeros(1, 12, 16, 16), latent_model=whole)


def test_stems_that_cannot_be_folded_say_why(spec, statistics):
    shared = {"codec": spec, "statistics": statistics, "input_shape": (12, 16, 16), "num_classes": 5}
    pixel = timm.create_model("test_resnet", num_classes=5)
    skipping = create_latent_model("test_resnet", pretrained=pixel, **shared)
    with pytest.raises(ModelError, match=r"only geometry 'pixel_grid'.*use fit_stem for others"):
        PixelPrediction.for_model(skipping, pixel)
    whole = create_latent_model("test_resnet", pretrained=pixel, geometry="pixel_grid", **shared)
    sums = PixelPrediction.for_model(whole, pixel)
    latents = torch.randint(-60, 60, (16, 12, 16, 16)).to(torch.int8)
    sums.update(latents, (linear_pictures(latents) * 255).to(torch.uint8))
    with pytest.raises(ModelError, match="create the model with stem_bias=True"):
        fold_stem(whole, pixel, prediction=sums.solve())


def test_regression_asks_for_enough_pictures():
    sums = WindowRegression(12, num_targets=2, window_cells=(3, 3))
    sums.update(torch.zeros(1, 12, 4, 4), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="16 windows cannot determine 109 weights"):
        sums.solve()
    with pytest.raises(ValueError, match="expected 12 channels"):
        sums.update(torch.zeros(1, 11, 4, 4), torch.zeros(1, 2, 4, 4))


def crops(paths, *, count, side_px, seed):
    """Random crops of photographs, labelled by the photograph: (N, 3, side, side) uint8 and (N,) int64."""
    generator = torch.Generator().manual_seed(seed)
    pictures, labels = [], []
    for label, path in enumerate(paths):
        import numpy as np

        whole = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        for _ in range(count):
            top = int(torch.randint(whole.shape[1] - side_px + 1, (), generator=generator))
            left = int(torch.randint(whole.shape[2] - side_px + 1, (), generator=generator))
            pictures.append(whole[:, top : top + side_px, left : left + side_px])
            labels.append(label)
    return torch.stack(pictures), torch.tensor(labels)


@pytest.mark.slow
def test_a_folded_vit_classifies_latents_of_photographs_before_any_training(kodak):
    from walloc_data.codec import load_codec
    from walloc_data.format import ChannelStatistics

    torch.manual_seed(0)
    codec, info = load_codec(None)
    train_x, train_y = crops(kodak[:8], count=40, side_px=96, seed=1)
    test_x, test_y = crops(kodak[:8], count=12, side_px=96, seed=2)
    train_z, test_z = codec.encode(train_x), codec.encode(test_x)
    counts = [torch.bincount(train_z[:, c].flatten().long() + 128, minlength=256).tolist() for c in range(12)]
    statistics = ChannelStatistics(tuple(tuple(row) for row in counts))
    pixel = timm.create_model("test_vit", num_classes=8, img_size=96)
    pixel.pretrained_cfg["mean"], pixel.pretrained_cfg["std"] = MEAN, STD
    optimizer = torch.optim.AdamW(pixel.parameters(), lr=2e-3)
    for _ in range(14):
        for rows in torch.randperm(len(train_x)).split(64):
            loss = F.cross_entropy(pixel(normalised(train_x[rows] / 255)), train_y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    pixel.eval()
    model = create_latent_model(
        "test_vit",
        codec=info.spec,
        statistics=statistics,
        input_shape=(12, 12, 12),
        num_classes=8,
        pretrained=pixel,
        stem_kernel_cells=4,
        stem_padding="circular",
    ).eval()
    prediction = PixelPrediction.for_model(model, pixel)
    prediction.update(train_z, train_x)
    held_out = PixelPrediction.for_model(model, pixel)
    held_out.update(test_z, test_x)
    assert held_out.psnr_db(prediction.solve()) > 22
    with torch.no_grad():
        on_pixels = (pixel(normalised(test_x / 255)).argmax(1) == test_y).float().mean()
        unfolded = (model(test_z).argmax(1) == test_y).float().mean()
        fold_stem(model, pixel, prediction=prediction.solve())
        on_latents = (model(test_z).argmax(1) == test_y).float().mean()
    assert on_pixels > 0.6  # chance is 1/8
    assert on_latents > on_pixels - 0.1
    assert on_latents > unfolded + 0.2
