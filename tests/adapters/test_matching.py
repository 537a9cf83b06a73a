"""Normalisation layers of a latent model are matched to the pixel model's, in closed form."""

import copy

import pytest
import timm
import torch
from torch import nn

from walloc_data.adapters import create_latent_model, match_moments, stem_of


def outputs(model, inputs, names):
    """Return layers' outputs, before an activation that belongs to a layer itself."""
    seen = {}

    def keep(name):
        def hook(module, given, output):
            plain = nn.BatchNorm2d.forward if isinstance(module, nn.BatchNorm2d) else None
            seen[name] = output if plain is None else nn.functional.batch_norm(
                given[0], module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps
            )  # fmt: skip

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return seen


def moments(x, axis):
    others = [i for i in range(x.ndim) if i != axis % x.ndim]
    return x.mean(others), x.std(others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axis"), [("test_resnet", 1), ("test_efficientnet", 1), ("regnety_002", 1), ("test_vit", -1)]
)
def test_every_layer_gives_the_pixel_models_mean_and_deviation(name, axis, spec, statistics):
    torch.manual_seed(0)
    sized = {"img_size": 128} if name == "test_vit" else {}
    pixel = timm.create_model(name, num_classes=5, **sized).eval()
    model = create_latent_model(
        name, codec=spec, statistics=statistics, input_shape=(12, 16, 16), num_classes=5, geometry="pixel_grid",
        pretrained=pixel,
    ).eval()  # fmt: skip
    deviation = torch.arange(3, 15)[:, None, None]  # as `statistics`
    latents = (torch.randn(16, 12, 16, 16) * deviation).round().to(torch.int8)
    pictures = torch.randn(16, 3, 128, 128)
    assert match_moments(model, pixel, inputs=latents, pictures=pictures) > 5
    kinds = (nn.BatchNorm2d, nn.LayerNorm)
    names = [key for key, module in pixel.named_modules() if isinstance(module, kinds)]
    ours, theirs = outputs(model, latents, names), outputs(pixel, pictures, names)
    right = 0
    for key in names:
        (mean, std), (wanted_mean, wanted_std) = moments(ours[key], axis), moments(theirs[key], axis)
        close = torch.isclose(std, wanted_std, rtol=1e-2) & torch.isclose(mean, wanted_mean, rtol=1e-2, atol=1e-2)
        right += int(close.sum()) / len(close)
    assert right / len(names) > 0.9  # but for channels that would have to be scaled by more than four
    assert not model.training


def test_a_stem_of_the_wrong_contrast_is_undone_exactly(spec, statistics):
    torch.manual_seed(0)
    pixel = timm.create_model("test_resnet", num_classes=5).eval()
    model = copy.deepcopy(pixel)
    with torch.no_grad():
        model.conv1[0].weight.mul_(0.5)
    pictures = torch.randn(8, 3, 64, 64)
    assert not torch.allclose(model(pictures), pixel(pictures), atol=1e-3)
    before = copy.deepcopy(pixel.state_dict())
    match_moments(model, pixel, inputs=pictures, pictures=pictures)
    torch.testing.assert_close(model(pictures), pixel(pictures), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in pixel.state_dict().items())


def test_what_is_already_equal_stays(spec, statistics):
    torch.manual_seed(0)
    pixel = timm.create_model("test_convnext", num_classes=5).eval()
    model = copy.deepcopy(pixel)
    pictures = torch.randn(8, 3, 64, 64)
    match_moments(model, pixel, inputs=pictures, pictures=pictures)
    torch.testing.assert_close(model(pictures), pixel(pictures), rtol=1e-4, atol=1e-4)
    whole = create_latent_model(
        "test_resnet", codec=spec, statistics=statistics, input_shape=(12, 8, 8), num_classes=5, stem_blocks=1,
        stem_hidden_channels=8, geometry="pixel_grid",
    )  # fmt: skip
    norm = whole.conv1[0][1].norm
    kept = norm.running_mean.clone()
    match_moments(
        whole, timm.create_model("test_resnet", num_classes=5), inputs=torch.randn(4, 12, 8, 8), pictures=pictures
    )
    assert torch.equal(norm.running_mean, kept)  # the stem's own have no counterpart
    assert stem_of(whole).in_channels == 12
