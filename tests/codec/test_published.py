"""Published checkpoints load strictly, reconstruct as the reference does, and run nothing."""

import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import warm
from walloc_data.codec import load_codec, published, save_codec
from walloc_data.errors import CodecError

CONFIG = {
    "channels": 3, "J": 3, "Ne": None, "Nd": 64, "latent_dim": 12, "latent_bits": 8, "lightweight_encode": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture(scope="module")
def reference(walloc: ModuleType) -> nn.Module:
    """A small reference codec whose decoder does something, with the weights that the tests publish."""
    torch.manual_seed(0)
    model: nn.Module = walloc.Codec2D(**CONFIG).eval()
    nn.init.orthogonal_(model.encoder[0].weight, gain=8)
    return model


@pytest.fixture
def checkpoint(reference: nn.Module, tmp_path: Path) -> Path:
    """RGB_16x.pth with RGB_16x.json beside it, as on the Hub."""
    path = tmp_path / "RGB_16x.pth"
    torch.save({"model_state_dict": reference.state_dict(), "config": SimpleNamespace(**CONFIG)}, path)
    path.with_suffix(".json").write_text(json.dumps(CONFIG))
    return path


@pytest.mark.slow
def test_a_published_checkpoint_reconstructs_as_the_reference(
    reference: nn.Module, checkpoint: Path, kodak_pictures: list[Tensor]
) -> None:
    codec, info = load_codec(checkpoint)
    assert (info.name, info.decoder, info.dimensionality_reduction) == ("rgb_16x", "published", 16.0)
    assert codec.state_dict().keys() == reference.state_dict().keys()
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(codec.state_dict()[name], tensor, rtol=0, atol=1e-7)
    picture = kodak_pictures[0][:, :, :128, :192]
    z = codec.encode(picture)
    with torch.no_grad():
        X_hat = reference.decoder(z.float())
        expected = reference.clamp(reference.wavelet_synthesis(X_hat, J=3))
        theirs, mse, tf_loss = reference(picture.float() / 255 - 0.5)
        ours, our_mse, our_tf_loss = codec(picture.float() / 255 - 0.5)
    torch.testing.assert_close(codec.decode(z), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close((our_mse, our_tf_loss), (mse, tf_loss), rtol=1e-4, atol=0)


class Config:
    """Some published files hold an instance of a class of this name, defined in the script that wrote them."""


Config.__module__, Config.__qualname__ = "__main__", "Config"


@pytest.mark.parametrize("settings", ["namespace", "class", "dict"])
def test_settings_inside_the_checkpoint_serve_where_no_json_lies_beside_it(
    reference: nn.Module, tmp_path: Path, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "Config", Config, raising=False)
    holder: Any = CONFIG
    if settings != "dict":
        holder = SimpleNamespace(**CONFIG) if settings == "namespace" else Config()
        vars(holder).update(CONFIG)
    path = tmp_path / "alone.pth"
    torch.save({"model_state_dict": reference.state_dict(), "config": holder, "optimizer_state": {"lr": 0.1}}, path)
    monkeypatch.delattr(sys.modules["__main__"], "Config")
    codec, info = load_codec(path, decoder=False)
    assert info.name == "alone"
    assert info.latent_dim == 12
    assert torch.equal(codec.encoder[0].weight, reference.encoder[0].weight)


@pytest.mark.slow
def test_encoding_with_a_published_checkpoint_never_needs_diffusers(checkpoint: Path, kodak: list[Path]) -> None:
    code = f"""
import sys
sys.modules["diffusers"] = None  # an import of it fails
import numpy as np, torch
from PIL import Image
from walloc_data.codec import load_codec
codec, info = load_codec({str(checkpoint)!r}, decoder=False)
picture = torch.from_numpy(np.array(Image.open({str(kodak[0])!r})))[None].permute(0, 3, 1, 2)
print(tuple(codec.encode(picture).shape), info.decoder)
try:
    load_codec({str(checkpoint)!r})
except ImportError as error:
    print(error)
"""
    done = warm.run(["-W", "error", "-c", code], check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("(1, 12, 64, 96) none") or lines[0].startswith("(1, 12, 96, 64) none")
    assert "needs the package 'diffusers': pip install 'walloc_data[published]'" in lines[1]
    assert done.stderr == ""


@pytest.mark.slow
def test_loading_and_decoding_warns_nobody(checkpoint: Path) -> None:
    code = f"""
import torch
from walloc_data.codec import load_codec
from walloc_data.codec.wavelets import reference_analysis
codec, _ = load_codec({str(checkpoint)!r})
print(tuple(codec.decode(torch.zeros(1, 12, 2, 3, dtype=torch.int8)).shape))
print(tuple(reference_analysis(torch.zeros(1, 3, 80, 80)).shape))
"""
    done = warm.run(["-c", code], check=True)
    assert done.stdout.split("\n")[:2] == ["(1, 3, 16, 24)", "(1, 192, 10, 10)"]
    assert "warn" not in done.stderr.lower()


def test_the_published_decoder_stays_out_of_a_codec_folder(checkpoint: Path, tmp_path: Path) -> None:
    codec, info = load_codec(checkpoint)
    assert save_codec(codec, tmp_path / "folder").decoder == "none"
    assert load_codec(tmp_path / "folder")[1].spec == info.spec


# --- hostile and unsupported files ------------------------------------------------------------------------------


class Payload:
    """A pickle that runs a command when it is loaded carelessly."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(kind: str, marker: Path) -> Any:
    touch = f"touch {marker}"
    match kind:
        case "os.system":
            return {"config": Payload(os.system, touch)}
        case "nested":
            return {"model_state_dict": {"encoder.0.weight": [{"x": (Payload(os.system, touch),)}]}}
        case "top":
            return Payload(os.system, touch)
        case "eval":
            return {"config": Payload(eval, f"__import__('os').system({touch!r})")}
        case "subprocess":
            return {"config": Payload(subprocess.Popen, ["touch", str(marker)])}
        case "open":
            return {"config": Payload(open, str(marker), "w")}
        case "getattr":  # reach a function through an allowed class
            return {"config": Payload(getattr, SimpleNamespace, "__init__")}
        case "numpy":
            from numpy.lib import format as numpy_format

            return {"config": Payload(numpy_format.open_memmap, str(marker), "w+", "uint8", (1,))}
        case "namespace call":
            return {"config": Payload(SimpleNamespace), "x": Payload(os.system, touch)}
    raise AssertionError(kind)


KINDS = ["os.system", "nested", "top", "eval", "subprocess", "open", "getattr", "numpy", "namespace call"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    torch.save(hostile(kind, marker), path)
    with pytest.raises(CodecError, match=r"evil.pth: refused. A checkpoint may hold tensors and plain settings only"):
        load_codec(path)
    assert not marker.exists()
    # The same pickle by itself, without torch's archive around it, is not even opened.
    path.write_bytes(pickle.dumps(hostile(kind, marker)))
    with pytest.raises(CodecError, match=r"not a file that torch.save writes"):
        load_codec(path)
    assert not marker.exists()


def test_the_stand_in_for_config_takes_fields_and_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"

    class Active:
        def __setstate__(self, state: Any) -> None:
            marker.touch()

        def __getstate__(self) -> Any:
            return CONFIG

    Active.__module__, Active.__name__, Active.__qualname__ = "__main__", "Config", "Config"
    monkeypatch.setattr(sys.modules["__main__"], "Config", Active, raising=False)
    torch.save({"config": Active()}, tmp_path / "active.pth")
    with pytest.raises(CodecError, match="holds no model_state_dict of dense float tensors"):
        load_codec(tmp_path / "active.pth")
    assert not marker.exists()  # the class of that name in the running program is not what is used


def test_a_compressed_archive_is_refused(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(CodecError, match="has compressed members"):
        load_codec(bomb)
    monkeypatch.setattr(published, "MAX_CHECKPOINT_BYTES", 1000)
    with pytest.raises(CodecError, match=r"unpacks to [0-9]+ bytes; at most 1000 are read"):
        load_codec(checkpoint)


def publish(path: Path, reference: nn.Module, *, config: dict[str, Any] | None = None, **tensors: Any) -> Path:
    state = {name: tensor for name, tensor in (reference.state_dict() | tensors).items() if tensor is not None}
    torch.save({"model_state_dict": state, "config": SimpleNamespace(**CONFIG | (config or {}))}, path)
    return path


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({}, {"encoder.0.weight": torch.zeros(12, 16, 1)}, "1-D signals"),
        ({"lightweight_encode": False}, {}, "not a 1x1 convolution"),
        ({}, {"encoder.0.weight": None}, "not a 1x1 convolution"),
        ({}, {"encoder.0.bias": None}, "encoder.0.bias is absent"),
        ({}, {"decoder.1.conv_in.weight": None}, "decoder.1.conv_in.weight is absent"),
        ({}, {"decoder.1.surprise": torch.zeros(1)}, "decoder.1.surprise belongs to no part"),
        ({}, {"wt.h0_col": torch.zeros(1, 1, 10, 1)}, "wt.h0_col is not the bior4.4 filter"),
        ({"Nd": 96}, {}, "the settings and the weights disagree"),
        ({"Nd": 100}, {}, "must be a multiple of 32"),
        ({"Nd": 10**9}, {}, r"Nd must be an integer in \[1, 4096\], not 1000000000"),
        ({"J": 9}, {}, r"J must be an integer in \[1, 4\]"),
        ({"latent_bits": None}, {}, "latent_bits must be an integer"),
        ({"latent_dim": 48}, {}, "encoder.0.weight has shape"),
        ({}, {"encoder.0.weight": "text"}, "holds no model_state_dict of dense float tensors"),
        ({}, {"encoder.0.bias": torch.zeros(1, dtype=torch.float16).expand(12)}, "holds no model_state_dict of dense"),
        ({}, {"encoder.0.bias": torch.zeros(12, dtype=torch.int64)}, "holds no model_state_dict of dense"),
        ({}, {"encoder.0.bias": torch.zeros(12, device="meta")}, "holds no model_state_dict of dense"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    reference: nn.Module, tmp_path: Path, config: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    with pytest.raises(CodecError, match=message):
        load_codec(publish(tmp_path / "odd.pth", reference, config=config, **tensors))


def test_names_that_are_no_text_are_refused(reference: nn.Module, tmp_path: Path) -> None:
    state = {**reference.state_dict(), 7: torch.zeros(1)}
    torch.save({"model_state_dict": state, "config": SimpleNamespace(**CONFIG)}, tmp_path / "odd.pth")
    with pytest.raises(CodecError, match="holds no model_state_dict of dense float tensors by name"):
        load_codec(tmp_path / "odd.pth", decoder=False)


def test_forty_eight_channels_load_and_sixteen_say_why_not(walloc: ModuleType, tmp_path: Path) -> None:
    for latent_dim in (48, 16):
        config = CONFIG | {"latent_dim": latent_dim, "Nd": 32}
        model = walloc.Codec2D(**config)
        path = tmp_path / f"RGB_Li_{latent_dim}c_J3_nf8.pth"
        torch.save({"model_state_dict": model.state_dict(), "config": SimpleNamespace(**config)}, path)
    codec, info = load_codec(tmp_path / "RGB_Li_48c_J3_nf8.pth")
    assert (info.name, info.dimensionality_reduction) == ("rgb_li_48c_j3_nf8", 4.0)
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert codec.decode(codec.encode(picture)).shape == (1, 3, 64, 64)
    with pytest.raises(CodecError, match="latent_dim 16 cannot be packed: it must be channels"):
        load_codec(tmp_path / "RGB_Li_16c_J3_nf8.pth")


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"nowhere.pth: cannot be read"):
        load_codec(tmp_path / "nowhere.pth")


# --- the Hub ----------------------------------------------------------------------------------------------------


def hub_cache(root: Path, checkpoint: Path, *, with_json: bool) -> None:
    """Make the files that huggingface_hub leaves after fetching two files of danjacobellis/walloc."""
    repo = root / "models--danjacobellis--walloc"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    (repo / "snapshots" / commit).mkdir(parents=True)
    for file in (checkpoint, checkpoint.with_suffix(".json")):
        if file.suffix == ".json" and not with_json:
            absent = repo / ".no_exist" / commit
            absent.mkdir(parents=True)
            (absent / file.name).touch()
            continue
        blob = repo / "blobs" / file.name
        blob.write_bytes(file.read_bytes())
        (repo / "snapshots" / commit / file.name).symlink_to(blob)


@pytest.mark.slow
@pytest.mark.parametrize("with_json", [True, False])
def test_a_checkpoint_loads_from_the_hubs_cache_without_a_network(
    checkpoint: Path, tmp_path: Path, with_json: bool
) -> None:
    hub_cache(tmp_path / "hub", checkpoint, with_json=with_json)
    code = """
from walloc_data.codec import load_codec
from walloc_data.errors import CodecError
codec, info = load_codec("hf://danjacobellis/walloc/RGB_16x.pth", decoder=False)
print(info.name, info.encoder_sha256)
try:
    load_codec("hf://danjacobellis/walloc/RGB_32x.pth")
except CodecError as error:
    print("refused:", error)
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = warm.run(["-c", code], check=True, env=environment)
    _, info = load_codec(checkpoint, decoder=False)
    assert done.stdout.startswith(
        f"rgb_16x {info.encoder_sha256}\nrefused: hf://danjacobellis/walloc/RGB_32x.pth: could not"
    )


@pytest.mark.parametrize(
    "url", ["hf://danjacobellis", "hf://a/b/c.bin", "hf://a/../b.pth", "hf://a/b/../c.pth", "hf:///a/b.pth"]
)
def test_a_malformed_hub_address_is_refused(url: str) -> None:
    with pytest.raises(CodecError, match=r"is not of the form hf://owner/repo\[@revision\]/path.pth"):
        load_codec(url)
