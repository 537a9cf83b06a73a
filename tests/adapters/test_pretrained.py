"""Weights of pixel models: from files, opened without running anything, or a refusal in one sentence and at once."""

import socket
import time
from collections import OrderedDict

import pytest
import timm
import torch
from safetensors.torch import save_file

from walloc_data.adapters import create_latent_model
from walloc_data.errors import ModelError


@pytest.fixture
def facts(spec, statistics):
    return {"codec": spec, "statistics": statistics, "num_classes": 3, "input_shape": (12, 20, 20)}


@pytest.fixture
def pixel():
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=3)


def write(kind, pixel, folder):
    state = pixel.state_dict()
    if kind == "safetensors":
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    wrapped = OrderedDict((f"module._orig_mod.{name}", value) for name, value in state.items())
    holds = {"plain": state, "state_dict": {"epoch": 3, "state_dict": state}, "compiled in DDP": {"model": wrapped}}
    torch.save(holds[kind], folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "plain", "state_dict", "compiled in DDP"])
def test_a_file_gives_what_the_model_in_memory_gives(kind, pixel, facts, tmp_path):
    path = write(kind, pixel, tmp_path)
    model = create_latent_model("test_vit", pretrained=str(path) if kind == "safetensors" else path, **facts)
    expected = create_latent_model("test_vit", pretrained=pixel, **facts)
    stem = model.stem_site.path
    for name, value in model.state_dict().items():
        assert name.startswith(stem) or torch.equal(value, expected.state_dict()[name]), name


def test_a_classifier_of_other_classes_is_left_fresh(facts, tmp_path):
    pixel = timm.create_model("test_vit", num_classes=1000)
    save_file(pixel.state_dict(), tmp_path / "weights.safetensors")
    model = create_latent_model("test_vit", pretrained=tmp_path / "weights.safetensors", **facts)
    assert torch.equal(model.blocks[0].attn.qkv.weight, pixel.blocks[0].attn.qkv.weight)
    assert model.head.weight.shape[0] == 3


class _Runs:
    def __reduce__(self):
        return (print, ("a pickle ran",))


def test_what_is_no_state_dict_is_refused_in_one_sentence(pixel, facts, tmp_path, capsys):
    torch.save({"model": _Runs()}, tmp_path / "runs.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({}, tmp_path / "empty.pth")
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 half of a zip")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0{half of")
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.safetensors")
    for given, words in {
        tmp_path
        / "runs.pth": "runs.pth: holds more than tensors, or is damaged .*Pickles that run code are not opened",
        tmp_path / "list.pth": "list.pth: not a state dict",
        tmp_path / "empty.pth": "empty.pth: not a state dict",
        tmp_path / "damaged.pth": "damaged.pth: ",
        tmp_path / "damaged.safetensors": "damaged.safetensors: cannot be read",
        tmp_path / "resnet.safetensors": "resnet.safetensors: not the weights of a test_vit for pixels",
        tmp_path / "absent.pth": "absent.pth: no such file; weights are timm's own",
        "imagenet": "imagenet: no such file; weights are timm's own",
        3: "pretrained must be True, the path of a state dict or a pixel model, not int",
        None: "not NoneType",
    }.items():
        with pytest.raises(ModelError, match=words) as refused:
            create_latent_model("test_vit", pretrained=given, **facts)
        assert len(str(refused.value)) < 700
        assert "\n" not in str(refused.value)
    assert "a pickle ran" not in capsys.readouterr().out


def test_a_hub_that_does_not_answer_is_named_at_once(facts, tmp_path, monkeypatch):
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # Nobody listens there now.
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    begun = time.monotonic()
    words = "resnet18: timm's weights are not in the cache of this machine, and the Hub does not answer .*pass the path"
    with pytest.raises(ModelError, match=words):
        create_latent_model("resnet18", pretrained=True, **facts)
    assert time.monotonic() - begun < 10
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"\(HF_HUB_OFFLINE is set\)"):
        create_latent_model("resnet18", pretrained=True, **facts)


def test_weights_in_the_cache_are_taken_without_the_hub(facts, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cfg = timm.get_pretrained_cfg("test_vit")
    pixel = timm.create_model("test_vit")
    snapshot = tmp_path / f"models--{cfg.hf_hub_id.replace('/', '--')}" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    save_file(pixel.state_dict(), snapshot / "model.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    model = create_latent_model("test_vit", pretrained=True, **facts)
    assert torch.equal(model.blocks[0].attn.qkv.weight, pixel.blocks[0].attn.qkv.weight)
