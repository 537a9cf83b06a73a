"""Every family takes latents in the geometries it promises, and refuses the rest in words."""

import re

import pytest
import torch
from torch import nn

from walloc_data.adapters import FAMILIES, create_latent_model, stem_of, summarize
from walloc_data.errors import ModelError

# (name, geometry, side in cells, side of the last feature map or number of tokens)
CASES = [
    ("test_vit", "skip_early", 20, 100),
    ("test_vit", "all_stages", 20, 25),
    ("vit_tiny_patch16_224", "skip_early", 28, 196),
    ("deit_tiny_distilled_patch16_224", "skip_early", 28, 196),
    ("eva02_tiny_patch14_224", "skip_early", 20, 100),
    ("swin_tiny_patch4_window7_224", "skip_early", 20, 5),
    ("swin_tiny_patch4_window7_224", "all_stages", 56, 7),
    ("swin_tiny_patch4_window7_224", "pixel_grid", 28, 7),
    ("swinv2_cr_tiny_ns_224", "refused", 28, 0),
    ("swinv2_tiny_window8_256", "skip_early", 32, 8),
    ("test_convnext", "skip_early", 28, 7),
    ("test_convnext", "all_stages", 56, 7),
    ("test_convnext", "pixel_grid", 28, 7),
    ("convnextv2_atto", "skip_early", 20, 5),
    ("convnext_nano_ols", "skip_early", 20, 5),
    ("resnet18", "skip_early", 28, 7),
    ("resnet50", "skip_early", 28, 7),
    ("resnet50d", "skip_early", 28, 7),
    ("resnet18", "all_stages", 56, 7),
    ("resnet18d", "all_stages", 56, 7),
    ("test_resnet", "pixel_grid", 28, 7),
    ("regnety_002", "skip_early", 28, 7),
    ("regnety_002", "all_stages", 56, 7),
    ("regnetz_005", "skip_early", 20, 5),
    ("test_efficientnet", "skip_early", 28, 7),
    ("test_efficientnet", "all_stages", 56, 7),
    ("efficientnet_b0", "skip_early", 28, 7),
    ("mobilenetv3_small_050", "skip_early", 28, 7),
    ("mobilenetv4_conv_small_035", "skip_early", 28, 7),
    ("mobilenetv4_conv_small_035", "pixel_grid", 28, 7),
    ("test_maxvit", "skip_early", 28, 7),
    ("test_maxvit", "all_stages", 64, 8),
    ("test_coatnet", "skip_early", 20, 5),
    ("test_coatnet", "pixel_grid", 28, 7),
    ("hiera_tiny_224", "all_stages", 32, 4),
    ("hiera_tiny_224", "pixel_grid", 28, 7),
]


# The same models with fewer or narrower blocks: what takes time is making weights.
SHALLOW = {
    "vit_tiny_patch16_224": {"depth": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "eva02_tiny_patch14_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 2, 2)},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 2, 2)},
    "convnext_nano_ols": {"depths": (1, 1, 1, 1)},
    "resnet50": {"layers": (1, 1, 1, 1)},
    "resnet50d": {"layers": (1, 1, 1, 1)},
    "hiera_tiny_224": {"stages": (1, 1, 1, 1), "embed_dim": 24},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "geometry", "side", "grid"), [case for case in CASES if case[1] != "refused"], ids=lambda value: str(value)
)
def test_takes_int8_latents_and_keeps_the_pixel_models_grid(name, geometry, side, grid, spec, statistics):
    model = create_latent_model(
        name,
        codec=spec,
        statistics=statistics,
        input_shape=(12, side, side),
        num_classes=7,
        geometry=geometry,
        **SHALLOW.get(name, {}),
    ).eval()
    z = torch.randint(-128, 128, (2, 12, side, side), dtype=torch.int8)
    with torch.no_grad():
        features = model.forward_features(z)
        logits = model(z)
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    if features.ndim == 3:  # tokens
        prefix = getattr(model, "num_prefix_tokens", 0)
        expected = grid if "vit" in name or "deit" in name or "eva" in name else grid * grid
        assert features.shape[1] - prefix == expected
    else:
        spatial = features.shape[1:3] if features.shape[1] == features.shape[2] else features.shape[2:]
        assert tuple(spatial) == (grid, grid)


def test_every_family_is_tested():
    from timm import model_entrypoint

    modules = {model_entrypoint(case[0]).__module__.rpartition(".")[2] for case in CASES}
    assert {module for family in FAMILIES for module in family.modules} <= modules


@pytest.mark.slow
def test_a_skipped_stage_costs_less_than_the_pixel_model(spec, statistics):
    shared = {"codec": spec, "statistics": statistics, "input_shape": (12, 28, 28), "num_classes": 1000}
    skip = summarize(create_latent_model("resnet50", geometry="skip_early", **shared))
    whole = summarize(create_latent_model("resnet50", geometry="pixel_grid", **shared))
    # timm's ResNet-50 at 224 px: 25.6 M parameters, 4.1 GMAC.
    assert skip.num_macs < 3.3e9 < 4.1e9 < whole.num_macs
    assert skip.num_parameters < 25.6e6 < whole.num_parameters


def test_twice_the_resolution_for_the_pixel_models_compute(spec, statistics):
    model = create_latent_model(
        "resnet18",
        codec=spec,
        statistics=statistics,
        input_shape=(12, 56, 56),
        num_classes=1000,
        geometry="all_stages",
    )
    summary = summarize(model)
    assert summary.picture_shape_px == (3, 448, 448)
    assert summary.num_macs == pytest.approx(1.82e9 - 0.118e9, rel=0.01)  # timm's at 224 px, less its stem
    assert isinstance(model.maxpool, nn.Identity)


@pytest.mark.slow
def test_macs_count_attention(spec, statistics):
    model = create_latent_model(
        "vit_tiny_patch16_224", codec=spec, statistics=statistics, input_shape=(12, 28, 28), num_classes=10
    )
    tokens, width, depth = 197, 192, 12
    expected = depth * (12 * tokens * width**2 + 2 * tokens**2 * width) + 196 * 4 * 12 * width + 10 * width
    assert summarize(model).num_macs == expected
    assert str(summarize(model)).startswith("vit_tiny_patch16_224 (skip_early): latents (12, 28, 28) of 224 x 224 px")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("swinv2_cr_tiny_ns_224", r"timm.models.swin_transformer_v2_cr\) is not supported.*Supported families: ViT"),
        ("densenet121", r"is not supported.*Hiera \(hiera_tiny_224\)"),
        ("resnet18x", r"timm has no model 'resnet18x'; close names: resnet18"),
        ("vit_small_r26_s32_224", "is not supported"),
    ],
)
def test_other_families_are_refused_with_what_works(name, words, spec, statistics):
    with pytest.raises(ModelError, match=words):
        create_latent_model(name, codec=spec, statistics=statistics, input_shape=(12, 28, 28), num_classes=2)


@pytest.mark.parametrize(
    ("name", "geometry", "side", "words"),
    [
        ("hiera_tiny_224", "all_stages", 28, "multiples of 8"),
        ("hiera_tiny_224", "skip_early", 32, re.escape("only as ('all_stages', 'pixel_grid')")),
        ("test_maxvit", "all_stages", 28, "multiples of 8"),
        ("test_vit", "skip_early", 21, "do not split into patches of 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_rule(name, geometry, side, words, spec, statistics):
    with pytest.raises(ModelError, match=words):
        create_latent_model(
            name, codec=spec, statistics=statistics, input_shape=(12, side, side), num_classes=2, geometry=geometry
        )


def test_a_vit_takes_other_shapes_where_asked(spec, statistics):
    model = create_latent_model(
        "test_vit",
        codec=spec,
        statistics=statistics,
        input_shape=(12, 20, 20),
        num_classes=3,
        dynamic_img_size=True,
    )
    assert model(torch.zeros(1, 12, 24, 16, dtype=torch.int8)).shape == (1, 3)


def test_an_overlapping_stem_window_keeps_the_grid(spec, statistics):
    model = create_latent_model(
        "test_vit",
        codec=spec,
        statistics=statistics,
        input_shape=(12, 20, 20),
        num_classes=3,
        stem_kernel_cells=4,
        stem_padding="circular",
    )
    assert stem_of(model).weight.shape[2:] == (4, 4)
    assert (
        model.forward_features(torch.zeros(1, 12, 20, 20, dtype=torch.int8)).shape[1] == 100 + model.num_prefix_tokens
    )
    with pytest.raises(ModelError, match="must be the stride plus an even number"):
        create_latent_model(
            "test_vit",
            codec=spec,
            statistics=statistics,
            input_shape=(12, 20, 20),
            num_classes=3,
            stem_kernel_cells=3,
        )
