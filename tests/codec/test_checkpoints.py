"""Codec folders: what is written is what is read, and what is damaged is refused by name."""

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from walloc_data.codec import CodecInfo, WallocCodec, bundled_codecs, load_codec, save_codec
from walloc_data.codec.checkpoints import BUNDLED, DEFAULT_CODEC
from walloc_data.errors import CodecError


def test_the_default_is_bundled_and_says_what_it_is() -> None:
    codec, info = load_codec()
    assert info.name == DEFAULT_CODEC == codec.name
    assert DEFAULT_CODEC in bundled_codecs()
    assert (info.channels, info.J, info.latent_dim, info.latent_bits) == (3, 3, 12, 8)
    assert info.dimensionality_reduction == 16.0
    assert info.input_range == "centered"
    assert info.encoder_sha256 == codec.encoder_sha256 == info.spec.encoder_sha256
    assert codec.spec == info.spec
    assert not codec.training


@pytest.mark.parametrize("name", bundled_codecs())
def test_every_bundled_codec_reconstructs_a_photograph(name: str, kodak_pictures: list[Tensor]) -> None:
    codec, info = load_codec(name)
    picture = kodak_pictures[3]
    z = codec.encode(picture)
    assert info.statistics is not None
    x = picture.float() / 255 - 0.5
    for linear in (False, True):
        psnr = -10 * torch.log10(((codec.decode(z, linear=linear) - x) ** 2).mean())
        assert psnr > 27
    assert codec.card.startswith("#")


def test_latents_do_not_depend_on_the_type_the_codec_is_loaded_in(kodak_pictures: list[Tensor]) -> None:
    codec, info = load_codec("klt-16x")
    half, half_info = load_codec("klt-16x", torch_dtype=torch.bfloat16)
    assert half_info == info
    assert half.encoder[0].weight.dtype == torch.bfloat16
    z = codec.encode(kodak_pictures[0])
    assert torch.equal(half.encode(kodak_pictures[0]), z)
    assert half.encoder_sha256 == info.encoder_sha256
    assert half.decode(z).dtype == torch.float32
    torch.testing.assert_close(half.decode(z), codec.decode(z), rtol=0, atol=0.05)
    with pytest.raises(CodecError, match=r"float type, not torch\.int8"):
        load_codec(torch_dtype=torch.int8)


def test_new_weights_give_new_latents(kodak_pictures: list[Tensor]) -> None:
    codec, info = load_codec("klt-16x")
    before = codec.encode(kodak_pictures[0])
    with torch.no_grad():
        codec.encoder[0].weight.neg_()
        codec.encoder[0].bias.neg_()
    after = codec.encode(kodak_pictures[0])
    assert ((after + before).abs() <= 1).all()  # the boundaries are symmetric, ties apart
    assert codec.encoder_sha256 != info.encoder_sha256


def test_latents_follow_the_weights_however_they_are_changed(kodak_pictures: list[Tensor]) -> None:
    picture = kodak_pictures[0]
    codec, _ = load_codec("klt-16x")
    latent, weight = codec.encode(picture), codec.encoder[0].weight
    weight.data.neg_()  # without a trace in the version counter
    codec.encoder[0].bias.data.neg_()
    assert ((codec.encode(picture) + latent).abs() <= 1).all()
    state = {name: -tensor for name, tensor in codec.encoder[0].state_dict().items()}
    codec.encoder[0].load_state_dict(state, assign=True)
    assert torch.equal(codec.encode(picture), latent)


def test_a_codec_can_be_loaded_and_used_in_inference_mode(kodak_pictures: list[Tensor]) -> None:
    expected = load_codec("klt-16x")[0].encode(kodak_pictures[0])
    with torch.inference_mode():
        codec, _ = load_codec("klt-16x")
        assert torch.equal(codec.encode(kodak_pictures[0]), expected)
        assert codec.bfloat16().decode(expected).shape == kodak_pictures[0].shape
    assert torch.equal(codec.encode(kodak_pictures[0]), expected)


def test_copies_of_a_cast_codec_encode_with_the_float32_weights(kodak_pictures: list[Tensor]) -> None:
    expected = load_codec("klt-16x")[0].encode(kodak_pictures[0])
    half, info = load_codec("klt-16x", torch_dtype=torch.bfloat16)
    for again in (copy.deepcopy(half), pickle.loads(pickle.dumps(half))):
        assert torch.equal(again.encode(kodak_pictures[0]), expected)
        assert again.encoder_sha256 == info.encoder_sha256


def test_a_codec_without_its_decoder_encodes_and_says_why_it_does_not_decode(
    codec: WallocCodec, kodak_pictures: list[Tensor]
) -> None:
    encoder, info = load_codec("klt-16x", decoder=False)
    z = encoder.encode(kodak_pictures[0])
    assert torch.equal(z, codec.encode(kodak_pictures[0]))
    assert info.decoder == "none"
    with pytest.raises(CodecError, match="loaded with decoder=False"):
        encoder.decode(z)
    with pytest.raises(CodecError, match="no linear decoder"):
        encoder.decode(z, linear=True)
    with pytest.raises(CodecError, match=r"takes latents \(N, 12, h, w\)"):
        encoder.decode(z[0])


def test_saving_and_loading_keeps_everything(codec: WallocCodec, tmp_path: Path, kodak_pictures: list[Tensor]) -> None:
    written = save_codec(codec, tmp_path / "mine")
    again, info = load_codec(tmp_path / "mine")
    assert written.spec == info.spec == codec.spec
    assert written == info
    assert (info.decoder, info.statistics, again.card) == ("linear", codec.statistics, codec.card)
    z = codec.encode(kodak_pictures[0])
    assert torch.equal(again.encode(kodak_pictures[0]), z)
    assert torch.equal(again.decode(z), codec.decode(z))
    renamed = save_codec(
        codec, tmp_path / "other", name="other", statistics={"mean": [0.0] * 12, "std": [1] * 12}, card="# other"
    )
    assert renamed.name == "other"
    assert renamed.encoder_sha256 == info.encoder_sha256
    assert load_codec(str(tmp_path / "other"))[1].statistics == ((0.0,) * 12, (1.0,) * 12)
    # Without a decoder, the folder encodes.
    assert save_codec(load_codec("klt-16x", decoder=False)[0], tmp_path / "bare").decoder == "none"
    assert load_codec(tmp_path / "bare")[1].decoder == "none"


def damaged(tmp_path: Path, **changes: Any) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(BUNDLED / "klt-16x", folder)
    config = json.loads((folder / "codec.json").read_text())
    (folder / "codec.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "reads 'walloc_data-codec' version 1"),
        ({"format_version": 2}, "version 2; this walloc_data reads"),
        ({"latent_dim": 11}, "cannot be packed"),
        ({"latent_dim": "12"}, "latent_dim must be an integer"),
        ({"J": 2}, "encoder.weight has shape"),
        ({"wavelet": "haar"}, "wavelet must be 'bior4.4'"),
        ({"name": "../up"}, "codec name '../up' must be"),
        ({"decoder": {"kind": "shell"}}, "decoder kind must be 'linear', 'conv', 'unet' or 'none', not 'shell'"),
        ({"decoder": "linear"}, "decoder kind must be"),
        ({"statistics": {"mean": [1], "std": [1]}}, "two lists, mean and std, of 12 numbers"),
        ({"encoder_sha256": "0" * 64}, "hash to .* codec.json says 0000"),
    ],
)
def test_a_wrong_codec_json_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        load_codec(damaged(tmp_path, **changes))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = damaged(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"encoder.weight": weights["encoder.weight"] + 1e-3}, folder / "model.safetensors")
    with pytest.raises(CodecError, match="the encoder's weights hash to"):
        load_codec(folder)
    save_file({name: weights[name] for name in weights if name != "encoder.bias"}, folder / "model.safetensors")
    with pytest.raises(CodecError, match=r"encoder.bias is absent"):
        load_codec(folder)
    save_file({name: weights[name] for name in weights if "linear" not in name}, folder / "model.safetensors")
    with pytest.raises(CodecError, match=r"linear_decoder.weight is absent"):
        load_codec(folder)
    save_file(weights | {"encoder.extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CodecError, match=r"encoder.extra belongs to no part"):
        load_codec(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CodecError, match="not a safetensors file"):
        load_codec(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CodecError, match=r"model.safetensors: cannot be read"):
        load_codec(folder)


@pytest.mark.parametrize("statistics", [{"mean": [0.0], "std": [1.0]}, {"mean": [0.0] * 12}])
def test_a_codec_that_cannot_be_written_leaves_the_one_that_is_there(
    tmp_path: Path, statistics: dict[str, list[float]]
) -> None:
    codec, _ = load_codec("klt-16x")
    save_codec(codec, tmp_path / "codec", name="kept")
    with pytest.raises(CodecError, match="statistics must be two lists, mean and std, of 12 numbers"):
        save_codec(codec, tmp_path / "codec", name="other", statistics=statistics)
    assert load_codec(tmp_path / "codec")[1].name == "kept"


def test_a_linear_decoder_without_a_bias_is_saved(tmp_path: Path) -> None:
    codec = WallocCodec(decoder=torch.nn.Conv2d(12, 192, 1, bias=False)).eval()
    save_codec(codec, tmp_path, name="no-bias")
    latent = torch.arange(-6, 6, dtype=torch.int8).reshape(1, 12, 1, 1)
    assert torch.equal(load_codec(tmp_path)[0].decode(latent), codec.decode(latent))


def test_a_name_that_the_system_refuses_is_no_codec() -> None:
    with pytest.raises(CodecError, match=r"no codec at 'x+': expected a bundled name"):
        load_codec("x" * 300)
    with pytest.raises(CodecError, match=r"no decoder of version 'x+'; there are 1, 2"):
        load_codec(decoder="x" * 300)


def test_a_codec_folder_names_few_decoders(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "klt-16x", tmp_path / "codec")
    path = tmp_path / "codec" / "codec.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"decoder_files": {str(i): f"decoder-{i}.safetensors" for i in range(2, 70)}}))
    with pytest.raises(CodecError, match="68 decoder_files; at most 64 are read"):
        load_codec(tmp_path / "codec")


def test_large_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    folder = damaged(tmp_path)
    with (folder / "codec.json").open("ab") as file:
        file.truncate(2**21)
    with pytest.raises(CodecError, match="2097152 bytes; at most 1048576 are read"):
        load_codec(folder)
    shutil.copy(BUNDLED / "klt-16x" / "codec.json", folder)
    with (folder / "model.safetensors").open("ab") as file:
        file.truncate(2**31 + 1)  # sparse
    with pytest.raises(CodecError, match="2147483649 bytes; at most"):
        load_codec(folder)


def test_what_is_no_codec_is_answered_with_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"no codec at 'klt-17x': expected a bundled name \(.*klt-16x.*\), a folder"):
        load_codec("klt-17x")
    with pytest.raises(CodecError, match="no codec at"):
        load_codec(tmp_path)


def test_info_is_frozen(bundled: tuple[WallocCodec, CodecInfo]) -> None:
    with pytest.raises(AttributeError):
        bundled[1].spec = None  # type: ignore[misc, assignment]
