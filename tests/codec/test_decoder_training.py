"""Training a decoder for a frozen encoder: what it promises, and its parts."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import warm
from walloc_data.codec import DecoderTrainConfig, PictureSet, load_codec, save_decoder, train_decoder
from walloc_data.codec.training.crops import DeviceCrops, change_colours, draw_colours
from walloc_data.codec.training.muon import Muon, orthogonalise
from walloc_data.codec.training.picture_sets import Corpus
from walloc_data.codec.training.state import Checkpoint
from walloc_data.codec.wavelets import (
    analysis_matrix,
    bands_of,
    interleave,
    synthesis_matrix,
    wavelet_analysis,
    wavelet_synthesis,
)
from walloc_data.errors import CodecError, SettingsMismatchError

Pixels = npt.NDArray[np.uint8]
TINY: dict[str, Any] = {
    "width": 16, "blocks": 3, "half_blocks": 2, "quarter_blocks": 1, "batch_size": 4, "crop_cells": 6, "wide_from": 0.6,
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> list[Pixels]:
    """Smooth random pictures of several sizes."""
    rng = np.random.default_rng(0)
    found = []
    for height, width in ((176, 200), (240, 168), (160, 161), (200, 200)):
        small = torch.from_numpy(rng.uniform(0, 255, (1, 3, height // 8, width // 8)))
        large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 255)
        found.append(large[0].permute(1, 2, 0).to(torch.uint8).numpy())
    return found


def train(pictures: list[Pixels], out: Path, **settings: Any) -> Path:
    codec, _ = load_codec("klt-16x")
    config = DecoderTrainConfig(**{**TINY, "steps": 5, **settings})
    return Path(train_decoder([PictureSet("smooth", pictures)], out, codec=codec, config=config).file)


@pytest.mark.slow
def test_a_decoder_is_trained_for_the_encoder_as_it_is(pictures: list[Pixels], tmp_path: Path) -> None:
    before, info = load_codec("klt-16x")
    file = train(pictures, tmp_path / "out", steps=60, version="mine")
    codec, found = load_codec("klt-16x", decoder=file)
    assert (found.decoder, found.decoder_version, found.encoder_sha256) == ("unet", "mine", info.encoder_sha256)
    images = torch.from_numpy(pictures[0]).permute(2, 0, 1)[None]
    latent = codec.encode(images)
    assert torch.equal(latent, before.encode(images))

    def error(decoded: torch.Tensor) -> float:
        return float((decoded - (images / 255 - 0.5)).square().mean())

    # Better than the linear decoder that it started from, which stays at hand.
    assert error(codec.decode(latent)) < 0.95 * error(before.decode(latent))
    assert torch.equal(codec.decode(latent, linear=True), before.decode(latent, linear=True))
    assert info.encoder_sha256 in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / ".training").exists()


def test_a_codec_that_was_cast_gets_a_decoder_for_its_float32_encoder(pictures: list[Pixels], tmp_path: Path) -> None:
    codec, info = load_codec("klt-16x", torch_dtype=torch.bfloat16)
    codec.statistics = None
    config = DecoderTrainConfig(**{**TINY, "steps": 1, "wide_from": 1.0})
    file = train_decoder([PictureSet("smooth", pictures)], tmp_path / "out", codec=codec, config=config).file
    assert codec.statistics is None  # the codec that is given is not changed
    assert load_codec("klt-16x", decoder=file)[1].encoder_sha256 == info.encoder_sha256


def test_the_first_step_starts_from_the_linear_decoder(pictures: list[Pixels], tmp_path: Path) -> None:
    codec, _ = load_codec("klt-16x", decoder=train(pictures, tmp_path / "out", steps=1, learning_rate=1e-9))
    latent = torch.randint(-30, 30, (1, 12, 9, 14), dtype=torch.int8)
    linear = codec.decode(latent, linear=True)
    torch.testing.assert_close(codec.decode(latent), linear, atol=2e-3, rtol=0)  # float16 in the file


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(pictures: list[Pixels], tmp_path: Path) -> None:
    np.savez(tmp_path / "pictures.npz", *pictures)
    program = f"""
import sys, numpy as np, torch
from walloc_data.codec import DecoderTrainConfig, PictureSet, load_codec, train_decoder
torch.set_num_threads(1)
pictures = list(np.load({str(tmp_path / "pictures.npz")!r}).values())
config = DecoderTrainConfig(**{TINY!r}, steps=14, checkpoint_seconds=0.0)
train_decoder([PictureSet("smooth", pictures)], sys.argv[1], codec=load_codec("klt-16x")[0], config=config)
"""

    def start(out: Path) -> warm.Popen:
        return warm.Popen(["-c", program, out])

    def step() -> int:
        state = Checkpoint.load(tmp_path / "killed" / ".training", state_types={"step": int})
        return -1 if state is None else int(state.state["step"])

    assert start(tmp_path / "whole").wait(120) == 0
    for least in (3, 10):  # before and after the crops widen
        process = start(tmp_path / "killed")
        while step() < least:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(tmp_path / "killed").wait(120) == 0
    whole, again = (load_file(tmp_path / name / "decoder.safetensors") for name in ("whole", "killed"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name


def test_other_settings_or_another_encoder_do_not_continue_a_run(pictures: list[Pixels], tmp_path: Path) -> None:
    file = train(pictures, tmp_path / "out")
    with pytest.raises(CodecError, match="already holds a decoder"):
        train(pictures, tmp_path / "out")
    work = tmp_path / "begun" / ".training"
    info = load_codec("klt-16x")[1]
    Corpus.build([PictureSet("smooth", pictures)], work)
    settings = {**DecoderTrainConfig(**TINY, steps=5).to_dict(), "encoder_sha256": info.encoder_sha256}
    Checkpoint(settings, {"step": 0, "seconds": 0.0}, {"x": torch.zeros(1)}).save(work)
    with pytest.raises(SettingsMismatchError, match=r"learning_rate 0\.002, now 0\.001"):
        train(pictures, tmp_path / "begun", learning_rate=1e-3)
    assert file.exists()


@pytest.mark.slow
def test_a_decoder_file_is_checked(pictures: list[Pixels], tmp_path: Path) -> None:
    file = train(pictures, tmp_path / "out")
    with pytest.raises(CodecError, match=r"a decoder for the encoder .* but the codec's encoder is"):
        load_codec("rgb-16x-v1", decoder=file)
    with pytest.raises(CodecError, match=r"decoder '9': no such file|no decoder of version '9'"):
        load_codec("klt-16x", decoder="9")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CodecError, match="not a safetensors file"):
        load_codec("klt-16x", decoder=damaged)
    save_file({"x": torch.zeros(1)}, damaged, metadata={"walloc_data_decoder": json.dumps({"format_version": 2})})
    with pytest.raises(CodecError, match="of a version that this walloc_data reads"):
        load_codec("klt-16x", decoder=damaged)
    codec, info = load_codec("klt-16x", decoder=file)
    huge = {"format_version": 1, "version": "2", "encoder_sha256": info.encoder_sha256}
    network = {**codec.decoder[1].config, "blocks": 10**9}
    save_file(
        {"x": torch.zeros(1)}, damaged, metadata={"walloc_data_decoder": json.dumps({**huge, "decoder": network})}
    )
    with pytest.raises(CodecError, match=r"blocks must be an integer in \[1, 64\]"):
        load_codec("klt-16x", decoder=damaged)
    missing = load_file(file)
    del missing["entry.weight"]
    value = {**huge, "decoder": codec.decoder[1].config}
    save_file(missing, damaged, metadata={"walloc_data_decoder": json.dumps(value)})
    with pytest.raises(CodecError, match=r"entry\.weight is absent"):
        load_codec("klt-16x", decoder=damaged)


@pytest.mark.slow
def test_versions_of_a_folder_are_chosen_by_name(pictures: list[Pixels], tmp_path: Path) -> None:
    from walloc_data.codec import codec_folder

    folder = codec_folder("klt-16x")
    assert folder is not None
    shutil.copytree(folder, tmp_path / "klt")
    shutil.copy(train(pictures, tmp_path / "out"), tmp_path / "klt" / "decoder-2.safetensors")
    config = json.loads((tmp_path / "klt" / "codec.json").read_text())
    config["decoder_files"] = {"2": "decoder-2.safetensors"}
    (tmp_path / "klt" / "codec.json").write_text(json.dumps(config))
    kinds = [load_codec(tmp_path / "klt", decoder=which)[1].decoder for which in (True, "2", "1", False)]
    assert kinds == ["unet", "unet", "linear", "none"]
    config["decoder_files"] = {"2": "../../out/decoder.safetensors"}
    (tmp_path / "klt" / "codec.json").write_text(json.dumps(config))
    with pytest.raises(CodecError, match=r"must map versions to names like decoder-2\.safetensors"):
        load_codec(tmp_path / "klt")


def test_saving_and_loading_a_decoder_changes_nothing(tmp_path: Path) -> None:
    codec, _ = load_codec()
    save_decoder(codec, tmp_path / "d.safetensors", version="copy")
    again, info = load_codec("rgb-16x-v1", decoder=tmp_path / "d.safetensors")
    assert info.decoder_version == "copy"
    latent = torch.randint(-30, 30, (1, 12, 8, 8), dtype=torch.int8)
    assert torch.equal(codec.decode(latent), again.decode(latent))


@pytest.mark.slow
def test_crops_are_pieces_of_the_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((70, 150), (64, 64), (200, 90))]
    corpus = Corpus.build([PictureSet("a", pictures[:2], 1.0), PictureSet("b", pictures[2:], 3.0)], tmp_path)
    corpus.held_out, corpus._training = [], np.ones(3, dtype=bool)
    crops = DeviceCrops(corpus, torch.from_numpy(corpus.pixels), side_px=64)
    drawn = crops.draw(400, seed=7, step=3)
    assert torch.equal(drawn, crops.draw(400, seed=7, step=3))
    assert not torch.equal(drawn, crops.draw(400, seed=7, step=4))
    views: dict[bytes, int] = {}  # every mirrored and turned window of every picture
    for i, picture in enumerate(pictures):
        for top in range(picture.shape[0] - 63):
            for left in range(picture.shape[1] - 63):
                window = picture[top : top + 64, left : left + 64]
                for turned in (window, window.transpose(1, 0, 2)):
                    for view in (turned, turned[::-1], turned[:, ::-1], turned[::-1, ::-1]):
                        views[view.tobytes()[:64]] = i
    found = [views[crop.permute(1, 2, 0).contiguous().numpy().tobytes()[:64]] for crop in crops.cut(drawn)]
    assert set(found) == {0, 1, 2}
    assert 0.65 < np.mean(np.array(found) == 2) < 0.85  # three quarters by weight


def test_crops_fall_where_detail_is(tmp_path: Path) -> None:
    picture = np.zeros((128, 1280, 3), dtype=np.uint8)
    picture[:, 640:768] = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    corpus = Corpus.build([PictureSet("a", [picture, picture])], tmp_path)
    crops = DeviceCrops(corpus, torch.from_numpy(corpus.pixels), side_px=64)
    busy = (crops.cut(crops.draw(400, seed=0, step=0)).flatten(1).float().std(1) > 10).float().mean()
    assert 0.5 < busy < 0.85  # without the weights a sixth


def test_matrices_do_what_the_filter_banks_do() -> None:
    x = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    analysis, synthesis = analysis_matrix(3, cells=5).flatten(0, 1), synthesis_matrix(3, cells=5).flatten(1)
    X = interleave((analysis @ x @ analysis.T).reshape(2, 3, 8, 5, 8, 5).transpose(3, 4), J=3)
    torch.testing.assert_close(X, wavelet_analysis(x), atol=1e-12, rtol=0)
    bands = bands_of(X, J=3).permute(0, 1, 3, 4, 2, 5).reshape(2, 3, 40, 40)
    torch.testing.assert_close(synthesis @ bands @ synthesis.T, wavelet_synthesis(X), atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6)])
def test_muon_makes_updates_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_muon_treats_groups_as_matrices_and_reaches_a_minimum() -> None:
    torch.manual_seed(0)
    layer, target = torch.nn.Conv2d(8, 8, 3, groups=2, bias=False), torch.randn(8, 4, 3, 3)
    optimizer = Muon([{"params": [layer.weight], "groups": 2}], lr=0.1)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        (layer.weight - target).square().sum().backward()
        optimizer.step()
    assert (layer.weight - target).abs().max() < 0.1
    before = layer.weight.detach().clone()
    optimizer = Muon([{"params": [layer.weight], "groups": 2}], lr=1.0, momentum=0.0)
    layer.weight.grad = torch.randn(8, 4, 3, 3)
    optimizer.step()
    change = (layer.weight.detach() - before).reshape(2, 4, 36)
    values = torch.linalg.svdvals(change) / (0.2 * 6)
    assert values.min() > 0.5  # of each group
    assert values.max() < 1.4


def test_colours_change_for_a_part_of_the_crops() -> None:
    factors = draw_colours(400, part=0.5, seed=0, step=3)
    assert torch.equal(factors, draw_colours(400, part=0.5, seed=0, step=3))
    assert (factors == 1).float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert factors[:, 0].min() >= 0.6
    assert factors[:, 0].max() <= 1.6
    x = torch.tensor([200.0, 100.0, 50.0]).reshape(1, 3, 1, 1)
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    torch.testing.assert_close(change_colours(x, torch.ones(1, 2)), x)
    flat = change_colours(x, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(flat, torch.full((1, 3, 1, 1), grey))
    assert change_colours(x, torch.tensor([[1.0, 0.0]])).flatten().tolist() == [127.5] * 3
