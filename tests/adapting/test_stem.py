"""A residual stem begins as the best linear map of its rank, and stands for the block whose stride is gone."""

import pytest
import timm
import torch
from torch.nn import functional as F

from walloc_data.adapters import PixelPrediction, create_latent_model, fit_stem, fold_stem, summarize
from walloc_data.errors import ModelError
from walloc_data.format import ChannelStatistics, CodecSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def facts():
    spec = CodecSpec(
        "test-16x", channels=3, J=3, latent_dim=12, latent_bits=8, wavelet="bior4.4", encoder_sha256="0" * 64
    )
    generator = torch.Generator().manual_seed(0)
    rows = []
    for channel in range(12):
        z = torch.randn(20_000, generator=generator) * (3 + channel) + channel
        rows.append(torch.bincount(z.round().clamp(-128, 127).long() + 128, minlength=256).tolist())
    statistics = ChannelStatistics(tuple(tuple(row) for row in rows))
    return {"codec": spec, "statistics": statistics, "num_classes": 5}


class FloatPrediction(PixelPrediction):
    """Takes pictures in [0, 1] without rounding them to uint8, so that the fold has no error to hide in."""

    def update(self, latents, pictures):
        super().update(latents, pictures * 255)


def linear_pictures(latents):
    """Pictures whose 8 x 8 blocks are one linear function of their cell."""
    basis = torch.randn(12, 3 * 64, generator=torch.Generator().manual_seed(5)) * 5e-4
    blocks = (latents.float().permute(0, 2, 3, 1) @ basis).permute(0, 3, 1, 2) + 0.5
    return F.pixel_shuffle(blocks, 8)


def folded(name, facts, *, channels, kernel=None, side=16):
    torch.manual_seed(0)
    sized = {"img_size": side * 8} if name == "test_vit" else {}
    pixel = timm.create_model(name, num_classes=5, **sized).eval()
    model = create_latent_model(
        name,
        input_shape=(12, side, side),
        geometry="pixel_grid",
        pretrained=pixel,
        stem_blocks=2,
        stem_hidden_channels=channels,
        stem_kernel_cells=kernel,
        stem_padding="circular",
        **facts,
    ).eval()
    latents = torch.randint(-60, 60, (24, 12, side, side)).to(torch.int8)
    pictures = linear_pictures(latents)
    sums = FloatPrediction.for_model(model, pixel)
    sums.update(latents, pictures)
    fold_stem(model, pixel, prediction=sums, mean=MEAN, std=STD)
    normal = (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    stem = pixel.get_submodule(model.stem_site.path)
    with torch.no_grad():
        return stem(normal[:4]), model.get_submodule(model.stem_site.path)(latents[:4]), model, pixel, sums


@pytest.mark.parametrize(
    ("name", "channels"), [("test_vit", 12), ("test_convnext", 12), ("test_resnet", 108), ("test_efficientnet", 108)]
)
def test_it_folds_exactly_where_its_rank_suffices(name, channels, facts):
    # One cell has 12 values; kernels that reach over a cell's border see those of nine.
    expected, got, *_ = folded(name, facts, channels=channels)
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(got[inside], expected[inside], rtol=1e-3, atol=1e-3)


def test_a_smaller_rank_leaves_out_the_least(facts):
    errors = []
    for channels in (2, 4, 8, 12):
        expected, got, *_ = folded("test_vit", facts, channels=channels)
        errors.append(
            float((got - expected).square().mean() / (expected - expected.mean((0, 2, 3), True)).square().mean())
        )
    assert errors == sorted(errors, reverse=True)
    assert 0.5 < errors[0] < 1
    assert errors[-1] < 1e-6


def test_the_sums_are_needed_and_least_squares_refused(facts):
    *_, model, pixel, sums = folded("test_vit", facts, channels=8)
    with pytest.raises(ModelError, match=r"pass the PixelPrediction, not solve\(\)"):
        fold_stem(model, pixel, prediction=sums.solve(), mean=MEAN, std=STD)
    with pytest.raises(ModelError, match="trained, by adapt_model, not fitted"):
        fit_stem(model, batches=[])


def test_each_block_costs_what_it_says(facts):
    costs = [
        summarize(
            create_latent_model(
                "test_resnet", input_shape=(12, 16, 16), stem_hidden_channels=32, stem_blocks=blocks, **facts
            )
        ).num_macs
        for blocks in (1, 2, 4)
    ]
    block = 16 * 16 * (4 * 32**2 + 25 * 32)
    assert [costs[1] - costs[0], costs[2] - costs[1]] == [block, 2 * block]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "feeds", "width"),
    [
        ("test_resnet", "layer2.0", 48),
        ("resnet50", "layer2.0", 512),
        ("regnety_002", "s2.b1", 56),
        ("tf_efficientnet_lite0", "blocks.2.0", 40),
        ("mobilenetv3_small_050", "blocks.1.0", 16),
        ("test_convnext", "stages.1.blocks", 32),
    ],
)
def test_it_stands_for_the_block_whose_stride_would_be_taken_out(name, feeds, width, facts):
    model = create_latent_model(
        name, input_shape=(12, 16, 16), geometry="skip_early", stem_hidden_channels=16, stem_blocks=1, **facts
    )
    assert model.stem_site.feeds == feeds
    assert model.stem_site.out_channels == width
    assert model.get_submodule(model.stem_site.path).last.out_channels == width


@pytest.mark.parametrize(
    "wrong", [{"stem_blocks": 2}, {"stem_blocks": 65, "stem_hidden_channels": 8}, {"stem_blocks": -1}]
)
def test_blocks_need_their_width_and_are_bounded(wrong, facts):
    with pytest.raises(ModelError, match="stem_blocks must be 0 to 64, with stem_hidden_channels="):
        create_latent_model("test_resnet", input_shape=(12, 16, 16), **wrong, **facts)
