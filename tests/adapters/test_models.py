"""A latent model is a timm model: normalisation inside, and all of timm's tools work on it."""

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3

from walloc_data.adapters import (
    PixelPrediction,
    check_codec,
    create_latent_model,
    fit_stem,
    freeze_except,
    latent_config,
    load_latent_model,
    parameter_groups,
    save_latent_model,
    stem_of,
    summarize,
    unfreeze,
)
from walloc_data.errors import ModelError, StorageError
from walloc_data.format import ChannelStatistics, CodecSpec, EncodeSettings, Manifest, SplitRecord
from walloc_data.latents import expand


@pytest.fixture
def manifest(spec, statistics) -> Manifest:
    split = SplitRecord(
        source={"kind": "folder"},
        num_samples=0,
        num_failures=0,
        shards=(),
        latent_shape=(12, 20, 20),
        labelled=True,
        statistics=statistics,
    )
    return Manifest(
        codec=spec,
        settings=EncodeSettings(),
        class_names=("cat", "dog", "eel"),
        splits={"train": split},
        written_by={},
    )


@pytest.fixture
def model(manifest):
    torch.manual_seed(0)
    return create_latent_model("test_convnext", dataset=manifest).eval()


def test_everything_comes_from_the_manifest(manifest, tmp_path):
    (tmp_path / "walloc.json").write_text(manifest.to_json())

    class Dataset:
        def __init__(self, manifest):
            self.manifest = manifest

    for dataset in (manifest, Dataset(manifest), tmp_path, str(tmp_path)):
        config = latent_config(create_latent_model("test_convnext", dataset=dataset))
        assert config.input_shape == (12, 20, 20)
        assert config.class_names == ("cat", "dog", "eel")
        assert config.num_classes == 3
        assert config.codec == manifest.codec


def test_integers_are_standardised_inside(model, latents, statistics):
    stem = stem_of(model)
    mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
    expected = (latents.float() - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(stem.normalize(latents), expected)
    torch.testing.assert_close(model(latents), model(latents.float()), rtol=1e-6, atol=1e-6)


def test_expansion_table_is_the_codecs_curve_standardised_per_channel(manifest, latents, statistics):
    model = create_latent_model("test_convnext", dataset=manifest, normalization="expand")
    values = expand(torch.arange(-128, 128), latent_bits=8).double()
    counts = torch.tensor(statistics.counts).double()
    mean = (counts * values).sum(1) / counts.sum(1)
    std = ((counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)).sqrt()
    expected = (expand(latents, latent_bits=8) - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(stem_of(model).normalize(latents), expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stem_of(model).normalize(latents.float()), expected.float(), rtol=1e-4, atol=1e-4)
    # Between integers too, after a mixup.
    halfway = latents.clamp(-100, 100).float() + 0.5
    between = (expand(halfway, latent_bits=8) - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(stem_of(model).normalize(halfway), between.float(), rtol=1e-3, atol=2e-3)


def test_mixing_the_integers_is_mixing_what_the_model_sees(model, latents):
    stem, a, b = stem_of(model), latents[:2].float(), latents[2:].float()
    torch.testing.assert_close(
        stem.normalize(0.3 * a + 0.7 * b), 0.3 * stem.normalize(a) + 0.7 * stem.normalize(b), rtol=1e-4, atol=1e-4
    )


def test_the_data_config_is_true(model):
    config = resolve_model_data_config(model)
    assert config["input_size"] == (12, 20, 20)
    assert config["mean"] == (0.0,) * 12
    assert config["std"] == (1.0,) * 12
    assert config["crop_pct"] == 1.0
    assert model.pretrained_cfg["num_classes"] == 3
    assert model.pretrained_cfg["first_conv"] == "stem.0"
    assert not model.pretrained_cfg.get("hf_hub_id")


def test_ema_optimizer_scheduler_and_saver_work(model, latents, tmp_path):
    model.train()
    ema = ModelEmaV3(model, decay=0.5)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.7)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=2)
    before = model.stem[0].weight.clone()
    torch.nn.functional.cross_entropy(model(latents), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    scheduler.step(1)
    ema.update(model)
    assert latent_config(ema) == latent_config(model)
    moved = model.stem[0].weight - before
    torch.testing.assert_close(ema.module.stem[0].weight - before, moved / 2)
    assert torch.equal(ema.module.stem[0].latent_mean, model.stem[0].latent_mean)
    CheckpointSaver(model, optimizer, checkpoint_dir=str(tmp_path)).save_checkpoint(0, metric=1.0)
    state = torch.load(tmp_path / "last.pth.tar", weights_only=False)["state_dict"]
    assert torch.equal(state["stem.0.latent_std"], model.stem[0].latent_std)


@pytest.mark.slow
@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet", "test_maxvit"])
def test_the_stem_gets_its_own_rate_and_nothing_is_lost(name, layer_decay, manifest):
    model = create_latent_model(name, dataset=manifest, stem_bias=True)
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=layer_decay, stem_lr_scale=2.0)
    stem = {id(parameter) for parameter in stem_of(model).parameters()}
    seen = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(seen) == sorted(id(parameter) for parameter in model.parameters())
    for group in groups:
        assert (group["name"] == "stem") == all(id(parameter) in stem for parameter in group["params"])
        if group["name"] == "stem":
            assert group["lr_scale"] == 2.0
        for parameter in group["params"]:
            assert parameter.ndim > 1 or group["weight_decay"] == 0
    if layer_decay is not None:
        assert min(group["lr_scale"] for group in groups) < 0.5
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=1e-3)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=10)
    scheduler.step(0)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups if group["lr_scale"] in (1.0, 2.0)}
    assert rates["stem"] == pytest.approx(2 * rates["body"])


def test_freezing_leaves_the_named_parts_training(manifest):
    model = create_latent_model("test_vit", dataset=manifest)
    assert freeze_except(model, "stem", "head") == [
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "head.weight",
        "head.bias",
    ]
    assert sum(len(group["params"]) for group in parameter_groups(model)) == 4
    unfreeze(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ModelError, match="no parameter belongs to"):
        freeze_except(model, "neck")


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["standard", "expand"])
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "test_resnet"])
def test_a_saved_model_reloads_by_name_with_the_same_logits(name, normalization, manifest, latents, tmp_path):
    kwargs = {"depths": (1, 1, 1, 1), "embed_dim": 24} if "swin" in name else {"drop_path_rate": 0.1}
    model = create_latent_model(name, dataset=manifest, normalization=normalization, **kwargs).eval()
    save_latent_model(model, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    again = load_latent_model(tmp_path / "model", dataset=manifest)
    assert latent_config(again) == latent_config(model)
    assert torch.equal(again(latents), model(latents))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "geometry"),
    [("test_vit", None), ("test_convnext", None), ("resnet18", "all_stages"), ("test_efficientnet", "pixel_grid")],
)
def test_a_stem_of_two_layers_takes_the_place_of_one(name, geometry, manifest, latents, tmp_path):
    one = create_latent_model(name, dataset=manifest, geometry=geometry).eval()
    two = create_latent_model(name, dataset=manifest, geometry=geometry, stem_hidden_channels=8)
    two(latents)  # in train mode: running statistics that a reload must bring back
    two.eval()
    assert two(latents).shape == one(latents).shape == (4, 3)
    window = stem_of(one).weight[0, 0].numel()
    grid = 20 * 20
    windows = (20 // stem_of(one).stride[0]) ** 2
    extra = grid * 8 * 12 * 9 + windows * stem_of(one).weight.shape[0] * (8 - 12) * window
    assert summarize(two).num_macs - summarize(one).num_macs == extra
    stem = [p for group in parameter_groups(two) if group["name"] == "stem" for p in group["params"]]
    path = two.stem_site.path
    assert {id(p) for p in stem} == {id(p) for n, p in two.named_parameters() if n.startswith(path + ".")}
    assert len(stem) >= 4  # two kernels, and the norm between them
    save_latent_model(two, tmp_path / "model")
    again = load_latent_model(tmp_path / "model", dataset=manifest)
    assert torch.equal(again(latents), two(latents))


def test_a_stem_of_two_layers_is_not_folded(manifest):
    pixel_model = timm.create_model("test_vit", num_classes=3)
    model = create_latent_model("test_vit", dataset=manifest, stem_hidden_channels=8, pretrained=pixel_model)
    assert torch.equal(model.head.weight, pixel_model.head.weight)
    for fold in (PixelPrediction.for_model, lambda m, p: fit_stem(m, batches=[])):
        with pytest.raises(ModelError, match="two layers cannot be folded: create the model without"):
            fold(model, pixel_model)
    with pytest.raises(ModelError, match="stem_hidden_channels must be 1 to 4096"):
        create_latent_model("test_vit", dataset=manifest, stem_hidden_channels=0)


def test_latents_of_another_codec_are_refused_by_name(model, manifest, tmp_path):
    save_latent_model(model, tmp_path)
    other = CodecSpec(**manifest.codec.to_dict() | {"name": "other", "encoder_sha256": "f" * 64})
    with pytest.raises(ModelError, match=r"codec 'test-16x' \(000000000000\), these are of 'other' \(ffffffffffff\)"):
        load_latent_model(tmp_path, dataset=other)
    check_codec(model, manifest)


def test_a_reset_classifier_is_saved_as_it_is(model, latents, tmp_path):
    model.reset_classifier(5)
    save_latent_model(model, tmp_path)
    again = load_latent_model(tmp_path)
    assert again(latents).shape == (4, 5)
    assert latent_config(again).class_names is None


def test_saved_files_that_lie_are_refused(model, tmp_path):
    with pytest.raises(StorageError, match="no saved latent model there"):
        load_latent_model(tmp_path / "absent")
    save_latent_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, words in [
        ({"format": "other"}, "not a model of this walloc_data"),
        ({"geometry": "sideways"}, "geometry must be one of"),
        ({"surprise": 1}, "unknown fields"),
        ({"name": "test_resnet"}, "weights do not fit test_resnet"),
        ({"input_shape": [3, 20, 20]}, "12 channels"),
        ({"timm_kwargs": {"checkpoint_path": "elsewhere.pth"}}, r"\['checkpoint_path'\] cannot be passed to"),
        ({"name": "hf-hub:someone/model"}, "timm has no model"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=words):
            load_latent_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04not tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        load_latent_model(tmp_path)


def test_missing_facts_are_asked_for(manifest, spec, statistics):
    with pytest.raises(ModelError, match="pass dataset="):
        create_latent_model("test_vit", num_classes=2)
    with pytest.raises(ModelError, match=r"pass input_shape=\(12, h, w\)"):
        create_latent_model("test_vit", codec=spec, statistics=statistics, num_classes=2)
    with pytest.raises(ModelError, match="pass num_classes="):
        create_latent_model("test_vit", codec=spec, statistics=statistics, input_shape=(12, 20, 20))
    with pytest.raises(ModelError, match=r"input_shape must be \(latent_dim, h, w\), not \(12, 16\)"):
        create_latent_model("test_vit", dataset=manifest, input_shape=(12, 16))


def test_an_input_that_is_not_as_stored_needs_its_view(manifest):
    """Without it, serving would score whole pictures with a model that was validated on others."""
    with pytest.raises(ModelError, match=r"is \(12, 16, 16\), and latents are stored as \(12, 20, 20\): pass view="):
        create_latent_model("test_convnext", dataset=manifest, input_shape=(12, 16, 16))
    for view in ("resize", "crop", "whole"):
        model = create_latent_model("test_convnext", dataset=manifest, input_shape=(12, 16, 16), view=view)
        assert latent_config(model).view == view
    assert latent_config(create_latent_model("test_convnext", dataset=manifest)).view == "whole"
    for view in ("resize", "crop"):
        with pytest.raises(ModelError, match="latents are only cropped and downscaled, so store larger pictures"):
            create_latent_model("test_convnext", dataset=manifest, input_shape=(12, 24, 16), view=view)


def test_a_silent_channel_does_not_divide_by_zero(spec, statistics, latents):
    row = [0] * 256
    row[128] = 10
    silent = ChannelStatistics((tuple(row), *statistics.counts[1:]))
    for normalization in ("standard", "expand"):
        model = create_latent_model(
            "test_convnext",
            codec=spec,
            statistics=silent,
            num_classes=2,
            input_shape=(12, 20, 20),
            normalization=normalization,
        )
        assert torch.isfinite(model(latents)).all()


def test_pretrained_weights_from_a_file_are_copied_but_for_the_stem(manifest, tmp_path):
    torch.manual_seed(3)
    pixel = timm.create_model("test_vit", num_classes=3)
    model = create_latent_model("test_vit", dataset=manifest, pretrained=pixel)
    assert torch.equal(model.blocks[0].attn.qkv.weight, pixel.blocks[0].attn.qkv.weight)
    assert torch.equal(model.head.weight, pixel.head.weight)
    assert model.pos_embed.shape[1] == 101  # resampled by timm from 10 x 10 patches of 160 px
    assert not torch.equal(model.patch_embed.proj.weight, pixel.patch_embed.proj.weight[:, :1])
    wrong = timm.create_model("test_vit", num_classes=5)
    with pytest.raises(ModelError, match="the pixel model has 5 classes, this one 3"):
        create_latent_model("test_vit", dataset=manifest, pretrained=wrong)
    with pytest.raises(ModelError, match="the pixel model does not fit"):
        create_latent_model("test_vit", dataset=manifest, pretrained=timm.create_model("test_resnet", num_classes=3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "geometry", "kept"),
    [
        ("test_convnext", "skip_early", "stages.2.blocks.0.conv_dw.weight"),
        ("test_convnext", "pixel_grid", "stages.0.blocks.0.conv_dw.weight"),
        ("resnet18d", "all_stages", "conv1.3.weight"),
        ("resnet18d", "skip_early", "layer2.0.conv1.weight"),
        ("test_efficientnet", "skip_early", "conv_head.weight"),
        ("regnety_002", "all_stages", "s1.b1.conv1.conv.weight"),
        ("test_maxvit", "skip_early", "stages.2.blocks.0.conv.conv1_1x1.weight"),
        ("swin_tiny_patch4_window7_224", "skip_early", "layers.1.blocks.0.attn.qkv.weight"),
    ],
)
def test_pixel_weights_find_their_places_in_every_geometry(name, geometry, kept, manifest):
    pixel = timm.create_model(name, num_classes=3)
    size = {"input_shape": (12, 28, 28), "view": "whole"}
    model = create_latent_model(name, dataset=manifest, geometry=geometry, pretrained=pixel, **size)
    assert torch.equal(model.state_dict()[kept], pixel.state_dict()[kept])


def test_import_of_the_room_reads_nothing_and_prints_nothing(capsys):
    import importlib

    import walloc_data.adapters

    importlib.reload(walloc_data.adapters)
    assert capsys.readouterr() == ("", "")
    assert Path(walloc_data.adapters.__file__).name == "__init__.py"
