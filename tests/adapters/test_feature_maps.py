"""features_only=True: maps of the kept stages, with timm's facts of them, from every family."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2

from walloc_data.adapters import (
    LatentFeatures,
    create_latent_model,
    latent_config,
    load_latent_model,
    parameter_groups,
    save_latent_model,
    stage_outputs,
    stem_of,
    summarize,
)
from walloc_data.errors import ModelError

# (name, geometry, side in cells, modules, reductions in pixels)
CASES = [
    ("test_vit", "skip_early", 20, ["blocks.3", "blocks.4", "blocks.5"], [16, 16, 16]),
    ("test_convnext", "skip_early", 16, ["stages.1", "stages.2", "stages.3"], [8, 16, 32]),
    ("test_convnext", "all_stages", 16, ["stages.0", "stages.1", "stages.2", "stages.3"], [8, 16, 32, 64]),
    ("test_convnext", "pixel_grid", 16, ["stages.0", "stages.1", "stages.2", "stages.3"], [4, 8, 16, 32]),
    ("resnet18", "skip_early", 16, ["layer2", "layer3", "layer4"], [8, 16, 32]),
    ("resnet18d", "all_stages", 16, ["layer1", "layer2", "layer3", "layer4"], [8, 16, 32, 64]),
    ("test_resnet", "pixel_grid", 16, ["act1", "layer1", "layer2", "layer3", "layer4"], [2, 4, 8, 16, 32]),
    ("regnety_002", "skip_early", 16, ["s2", "s3", "s4"], [8, 16, 32]),
    ("test_efficientnet", "skip_early", 16, ["blocks.2", "blocks.3", "blocks.4"], [8, 16, 32]),
    ("mobilenetv4_conv_small_035", "skip_early", 16, ["blocks.1", "blocks.2", "blocks.4"], [8, 16, 32]),
    ("test_maxvit", "skip_early", 16, ["stages.1", "stages.2", "stages.3"], [8, 16, 32]),
    ("test_coatnet", "skip_early", 20, ["stages.1", "stages.2", "stages.3"], [8, 16, 32]),
    ("swin_tiny_patch4_window7_224", "skip_early", 20, ["layers.1", "layers.2", "layers.3"], [8, 16, 32]),
    ("hiera_tiny_224", "all_stages", 32, ["blocks.0", "blocks.2", "blocks.9", "blocks.11"], [8, 16, 32, 64]),
]
SHALLOW = {"swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1)}}


@pytest.fixture
def make(spec, statistics):
    def create(name: str, side: int = 16, **options):
        torch.manual_seed(0)
        return create_latent_model(
            name, codec=spec, statistics=statistics, input_shape=(12, side, side), features_only=True, **options
        ).eval()

    return create


@pytest.mark.slow
@pytest.mark.parametrize(("name", "geometry", "side", "modules", "reductions"), CASES, ids=lambda v: str(v)[:24])
def test_maps_of_the_kept_stages_come_with_their_reductions(make, name, geometry, side, modules, reductions):
    model = make(name, side, geometry=geometry, **SHALLOW.get(name, {}))
    info = model.feature_info
    assert (info.module_name(), info.reduction()) == (modules, reductions)
    z = torch.randint(-128, 128, (2, 12, side, side), dtype=torch.int8)
    with torch.inference_mode():
        maps = model(z)
    assert [features.shape[1] for features in maps] == info.channels()
    for features, reduction, cells in zip(maps, reductions, info.get_dicts(["reduction_cells"]), strict=True):
        assert features.shape[2:] == (8 * side // reduction,) * 2  # of a picture of 8 * side pixels
        assert cells["reduction_cells"] == reduction / 8
        assert features.isfinite().all()
    if features.ndim == 4 and not name.startswith(("test_vit", "swin", "hiera")):  # those have tokens inside
        inside, _ = stage_outputs(model, z, [f"model.{module}" for module in modules])
        for features, seen in zip(maps, inside, strict=True):
            torch.testing.assert_close(features, seen)


@pytest.mark.slow
def test_fewer_maps_are_chosen_by_their_place(make):
    whole, last, two = make("resnet18"), make("resnet18", out_indices=[-1]), make("resnet18", out_indices=(0, 1))
    z = torch.randint(-128, 128, (1, 12, 16, 16), dtype=torch.int8)
    with torch.inference_mode():
        maps, [of_last], of_two = whole(z), last(z), two(z)
    torch.testing.assert_close(of_last, maps[2])
    assert last.feature_info.reduction() == [32]
    assert [tuple(features.shape) for features in of_two] == [(1, 128, 16, 16), (1, 256, 8, 8)]
    assert summarize(two).num_parameters < summarize(whole).num_parameters / 3  # the last stage is not there
    assert len(make("test_vit", 20, out_indices=range(6))(torch.zeros(1, 12, 20, 20, dtype=torch.int8))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_efficientnet"])
def test_it_is_saved_and_loaded_as_any_other(make, name: str, tmp_path: Path, latents):
    model = make(name, 20 if name == "test_vit" else 16, out_indices=[0, -1], stem_hidden_channels=8)
    z = latents[:, :, : model.latent_config.input_shape[1], : model.latent_config.input_shape[2]].contiguous()
    again = load_latent_model(save_latent_model(model, tmp_path))
    assert isinstance(again, LatentFeatures)
    assert latent_config(again) == latent_config(model)
    assert again.feature_info.reduction() == model.feature_info.reduction()
    with torch.inference_mode():
        for a, b, c in zip(model(z), again(z), copy.deepcopy(model)(z), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


def test_pixel_weights_are_copied_and_it_trains(make, latents):
    pixel = timm.create_model("test_convnext", num_classes=5)
    model = make("test_convnext", 20, pretrained=pixel)
    assert torch.equal(model.model.stages[3].blocks[0].mlp.fc1.weight, pixel.stages[3].blocks[0].mlp.fc1.weight)
    groups = parameter_groups(model, weight_decay=0.1)
    stem = {id(parameter) for parameter in stem_of(model).parameters()}
    assert {id(p) for group in groups if group["name"] == "stem" for p in group["params"]} == stem
    optimizer = create_optimizer_v2(groups, opt="sgd", lr=0.1)
    model.train()
    sum(features.square().mean() for features in model(latents)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()


def test_what_makes_no_maps_is_refused_in_words(make, spec, statistics):
    with pytest.raises(
        ModelError, match=r"out_indices \(5,\) name other than its 3 kept stages: layer2, layer3, layer4"
    ):
        make("resnet18", out_indices=(5,))
    with pytest.raises(ModelError, match="has no logits: leave out num_classes"):
        make("resnet18", num_classes=3)
    with pytest.raises(ModelError, match="out_indices needs features_only=True"):
        create_latent_model(
            "resnet18", codec=spec, statistics=statistics, input_shape=(12, 8, 8), num_classes=2, out_indices=(1,)
        )
    with pytest.raises(ModelError, match=r"\['out_indices'\] cannot be passed to timm"):
        type(latent_config(make("test_resnet")))(
            "resnet18", "skip_early", spec, (12, 8, 8), 2, timm_kwargs={"out_indices": (1,)}
        )
