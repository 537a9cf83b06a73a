"""Every family is adapted from a pixel model in every geometry it has: folded where there is a closed form, trained
elsewhere, and what comes out is a latent model like any other."""

import pytest
import timm
import torch

from walloc_data import LatentDataset, adapt_model, encode_dataset
from walloc_data.adapters import FAMILIES, find_family, load_latent_model, parameter_groups
from walloc_data.adapting import AdaptConfig
from walloc_data.serving import load_classifier

SWIN = {"depths": (1, 1, 1, 1), "window_size": 4, "embed_dim": 24, "num_heads": (1, 1, 2, 2)}
HIERA = {"stages": (1, 1, 1, 1), "embed_dim": 24, "mask_unit_size": (8, 8), "global_pos_size": (7, 7)}
# (name, arguments of timm, geometry, whether the stem has a closed form). Each family once, each geometry of a family
# whose stages, tokens or blocks differ in kind; tests/adapters builds, folds and imitates the others.
CASES = [
    ("test_vit", {}, "pixel_grid", True),
    ("test_vit", {}, "all_stages", False),
    ("swin_tiny_patch4_window7_224", SWIN, "skip_early", False),
    ("test_convnext", {}, "pixel_grid", True),
    ("resnet50", {"layers": (1, 2, 1, 1), "channels": (8, 8, 8, 8)}, "skip_early", False),
    ("regnety_002", {}, "skip_early", False),
    ("test_efficientnet", {}, "pixel_grid", True),
    ("mobilenetv3_small_050", {}, "pixel_grid", True),
    ("mobilenetv4_conv_small_035", {}, "skip_early", False),
    ("test_maxvit", {}, "skip_early", False),
    ("hiera_tiny_224", HIERA, "pixel_grid", True),
]


@pytest.fixture(scope="module")
def latents(imagenette_folder, tmp_path_factory):
    """40 photographs at 128 px."""
    out = tmp_path_factory.mktemp("latents")
    encode_dataset(imagenette_folder, out, size_px=128, progress=False)
    return out


@pytest.mark.parametrize(
    ("name", "kwargs", "geometry", "closed_form"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (number > 0)) for number, case in enumerate(CASES)],
)
def test_every_family_is_adapted_saved_and_served(
    name, kwargs, geometry, closed_form, latents, imagenette_folder, tmp_path
):
    torch.manual_seed(0)
    sized = {"img_size": 64 if geometry == "all_stages" else 128} if find_family(name).sized else {}
    pixel = timm.create_model(name, num_classes=10, **kwargs, **sized)
    before = {key: value.clone() for key, value in pixel.state_dict().items()}
    said: list[str] = []
    config = AdaptConfig(
        geometry=geometry, model_kwargs=kwargs, stem_channels=24, stem_blocks=1, input_cells=16,
        stem_epochs=0.5, epochs=0.5, batch_size=16, held_out=5, fold_pictures=20,
    )  # fmt: skip
    model, report = adapt_model(
        pixel, dataset=latents, pictures=imagenette_folder, output=tmp_path, config=config, log=said.append
    )
    assert any(line.startswith("folded from 20 pictures") for line in said) == closed_form
    assert (report.geometry, report.num_held_out, report.num_steps) == (geometry, 5, 2)
    assert 0 < report.feature_error < 30  # two steps from random weights
    assert report.pixel_accuracy is not None
    assert all(torch.equal(value, before[key]) for key, value in pixel.state_dict().items())
    assert all(parameter.requires_grad for parameter in pixel.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    data = LatentDataset(latents)
    batch = torch.stack([data[i][0] for i in range(4)])
    again = load_latent_model(tmp_path, dataset=data)
    with torch.no_grad():
        torch.testing.assert_close(again(batch), model(batch), rtol=1e-4, atol=1e-4)
    assert again.latent_config.class_names == data.class_names
    stem_groups = [group for group in parameter_groups(again) if group["name"] == "stem"]
    assert sum(len(group["params"]) for group in stem_groups) >= 8
    files = sorted(imagenette_folder.rglob("*.JPEG"))[:2]
    assert [p.name in data.class_names for p in load_classifier(tmp_path).predict_files(files)] == [True, True]


def test_every_family_is_among_these():
    modules = {timm.model_entrypoint(case[0]).__module__.rpartition(".")[2] for case in CASES}
    assert all(modules & set(family.modules) for family in FAMILIES)
