"""Training: continued exactly after a kill, steered by its rate weight, and ending in a codec that explains itself."""

import io
import json
import os
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests import warm
from walloc_data.codec import PictureSet, TrainConfig, load_codec, read_pictures, train_codec
from walloc_data.codec.training.channel_order import arrange_channels
from walloc_data.codec.training.closed_form import fit_klt, fit_linear_decoder, latent_statistics
from walloc_data.codec.training.codec import _Trainer
from walloc_data.codec.training.picture_sets import Corpus, Pixels
from walloc_data.codec.training.rate_model import estimated_bits, measured_bytes
from walloc_data.codec.training.state import Checkpoint, draw_log
from walloc_data.errors import CodecError, SettingsMismatchError
from walloc_data.latents import decode_webp, unpack

TINY = {
    "crop_px": (64, 96), "batch_size": 2, "decoder_width": 16, "decoder_blocks": 1, "decoder_groups": 2,
    "validate_seconds": 1e9, "arrange": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(shared_data: Path) -> list[Pixels]:
    """Two dozen real photographs, 128 x 160."""
    result: list[Pixels] = []
    for picture in read_pictures(shared_data / "photos-halfres.tar"):
        if picture.shape[0] >= 128 and picture.shape[1] >= 160:
            result.append(picture[:128, :160].copy())
        if len(result) == 24:
            break
    return result


def train(pictures: list[Pixels], out: Path, **settings: object) -> Path:
    config = TrainConfig(**{**TINY, "steps": 12, **settings})  # type: ignore[arg-type]
    train_codec([PictureSet("photographs", pictures)], out, config=config)
    return out


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(pictures: list[Pixels], tmp_path: Path) -> None:
    steps = 60
    np.save(tmp_path / "pictures.npy", np.stack(pictures))
    program = f"""
import sys, numpy as np, torch
from walloc_data.codec import PictureSet, TrainConfig, train_codec
torch.set_num_threads(1)
config = TrainConfig(steps={steps}, checkpoint_seconds=0.0, **{TINY!r})
train_codec([PictureSet("photographs", np.load(sys.argv[2]))], sys.argv[1], config=config)
"""

    def start(out: Path) -> warm.Popen:
        return warm.Popen(["-c", program, out, tmp_path / "pictures.npy"])

    assert start(tmp_path / "whole").wait(120) == 0
    killed = tmp_path / "killed"
    for least in (10, int(0.9 * steps)):  # the second after the encoder is frozen
        process = start(killed)
        deadline = time.monotonic() + 120
        while (found := _step(killed)) < least:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert found < steps
    assert not (killed / "codec.json").exists()
    assert start(killed).wait(120) == 0
    whole, again = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", killed))
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name
    assert (killed / "codec.json").read_text() == (tmp_path / "whole" / "codec.json").read_text()
    assert not (killed / ".training").exists()


def _step(out: Path) -> int:
    checkpoint = Checkpoint.load(out / ".training")
    return -1 if checkpoint is None else checkpoint.state["step"]


@pytest.mark.slow
def test_other_settings_do_not_continue_a_run(pictures: list[Pixels], tmp_path: Path) -> None:
    _begin(pictures, tmp_path)
    with pytest.raises(SettingsMismatchError, match=r"learning_rate 0\.002, now 0\.001"):
        train(pictures, tmp_path, learning_rate=0.001)
    train(pictures, tmp_path, checkpoint_seconds=7.0)  # how often to save is not what a run is
    (tmp_path / "codec.json").unlink()
    config = TrainConfig(**TINY, steps=3, learning_rate=0.001)  # type: ignore[arg-type]
    result = train_codec([PictureSet("photographs", pictures)], tmp_path, config=config, resume=False)
    assert result.steps == 3


def _begin(pictures: list[Pixels], out: Path) -> None:
    """A run as a kill leaves it, before its first step."""
    config = TrainConfig(**TINY, steps=12)  # type: ignore[arg-type]
    corpus = Corpus.build([PictureSet("photographs", pictures)], out / ".training")
    _Trainer(corpus, config, None, output=out, log=print)._save()


def test_a_checkpoint_is_data_and_runs_nothing(pictures: list[Pixels], tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    _begin(pictures, tmp_path)
    torch.save({"step": Hostile()}, tmp_path / ".training" / "checkpoint.safetensors")
    with pytest.raises(CodecError, match="not a training checkpoint"):
        train(pictures, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_finished_codec_is_not_trained_over(pictures: list[Pixels], tmp_path: Path) -> None:
    train(pictures, tmp_path, closed_form=True)
    with pytest.raises(CodecError, match="already holds a codec"):
        train(pictures, tmp_path, closed_form=True)


def test_training_starts_as_the_closed_form(pictures: list[Pixels], tmp_path: Path) -> None:
    corpus = Corpus.build([PictureSet("photographs", pictures)], tmp_path / ".training")
    trainer = _Trainer(corpus, TrainConfig(**TINY, steps=5), None, output=tmp_path, log=print)  # type: ignore[arg-type]
    closed, _ = load_codec(train(pictures, tmp_path / "closed", closed_form=True))
    images = torch.from_numpy(pictures[0]).permute(2, 0, 1)[None]
    begun = trainer.codec()
    latent = begun.encode(images)
    assert torch.equal(latent, closed.encode(images))
    torch.testing.assert_close(begun.decode(latent), closed.decode(latent), atol=1e-4, rtol=0)


def test_the_codec_explains_itself(pictures: list[Pixels], tmp_path: Path) -> None:
    codec, info = load_codec(train(pictures, tmp_path, name="tiny-16x", data_licence="nobody knows"))
    assert (info.name, info.decoder, info.dimensionality_reduction) == ("tiny-16x", "conv", 16.0)
    assert info.statistics is not None
    held_out = set(Corpus.build([PictureSet("p", pictures)], tmp_path / "again").held_out)
    training = [picture for i, picture in enumerate(pictures) if i not in held_out]
    assert info.statistics == latent_statistics(codec, training)
    assert codec.linear_decoder is not None
    card = (tmp_path / "README.md").read_text()
    for words in ("tiny-16x", "nobody knows", "| photographs | 1 |", "Steps taken: 12", info.encoder_sha256):
        assert words in card
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 12
    assert log[-1]["validation_psnr_db"] > 10


@pytest.mark.slow
@pytest.mark.parametrize(("latent_dim", "J", "reduction"), [(48, 3, 4.0), (12, 2, 4.0), (3, 1, 4.0), (27, 3, 192 / 27)])
def test_any_shape_that_packs_can_be_trained(
    pictures: list[Pixels], tmp_path: Path, latent_dim: int, J: int, reduction: float
) -> None:
    codec, info = load_codec(train(pictures, tmp_path, latent_dim=latent_dim, J=J, steps=2))
    assert info.dimensionality_reduction == pytest.approx(reduction)
    images = torch.from_numpy(pictures[0]).permute(2, 0, 1)[None]
    latent = codec.encode(images)
    assert latent.shape == (1, latent_dim, 128 >> J, 160 >> J)
    assert codec.decode(latent).shape == images.shape


@pytest.mark.slow
def test_arranged_channels_are_the_same_latent_in_fewer_bytes(pictures: list[Pixels]) -> None:
    plain, arranged = (load_codec("klt-16x")[0] for _ in range(2))
    said: list[str] = []
    assert arrange_channels(arranged, pictures[:6], rounds=1, log=said.append) < 1
    assert said[0] == "arranging channels for the fewest bytes: up to 78 trials"
    images = [torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in pictures[:6]]
    before, after = ([codec.encode(image) for image in images] for codec in (plain, arranged))
    # The same values at other places, with other signs.
    assert torch.equal(
        before[0].abs().flatten(2).sort(2)[0].sort(1)[0], after[0].abs().flatten(2).sort(2)[0].sort(1)[0]
    )
    assert sum(measured_bytes(z, colours=3) for z in after) < sum(measured_bytes(z, colours=3) for z in before)
    torch.testing.assert_close(arranged.decode(after[0]), plain.decode(before[0]), atol=1e-5, rtol=0)


def test_a_closed_form_codec_meets_its_rate(pictures: list[Pixels], tmp_path: Path) -> None:
    config = TrainConfig(closed_form=True, target_bpp=0.6, arrange=False)
    result = train_codec([PictureSet("photographs", pictures)], tmp_path, config=config)
    assert 0.55 < result.bpp <= 0.6
    assert result.psnr_db == result.linear_psnr_db


@pytest.mark.slow
def test_the_rate_weight_is_a_knob(pictures: list[Pixels], tmp_path: Path) -> None:
    for weight in (0.0, 1.0):
        train(pictures, tmp_path / str(weight), steps=80, rate_weight=weight, learning_rate=0.02)
    free, dear = (
        json.loads((tmp_path / weight / "log.jsonl").read_text().splitlines()[-1])["validation_bpp"]
        for weight in ("0.0", "1.0")
    )
    assert dear < 0.95 * free


def test_the_estimate_follows_the_bytes(pictures: list[Pixels]) -> None:
    codec, _ = load_codec("klt-16x")
    estimated, measured = [], []
    for picture in pictures:
        images = torch.from_numpy(picture).permute(2, 0, 1)[None]
        latent = codec.encode(images)
        estimated.append(estimated_bits(latent.float() + torch.rand(latent.shape) - 0.5, colours=3).item())
        measured.append(8 * measured_bytes(latent, colours=3) / latent.numel())
    assert np.corrcoef(estimated, measured)[0, 1] > 0.95


def test_doubling_latents_costs_one_bit_a_value() -> None:
    u = torch.randn(2, 12, 24, 24) * 10
    assert (estimated_bits(2 * u, colours=3) - estimated_bits(u, colours=3)).item() == pytest.approx(1.0, abs=1e-4)


def test_measured_bytes_are_those_of_data_sets() -> None:
    from walloc_data.latents import encode_webp, pack

    latent = torch.randint(-20, 20, (1, 12, 16, 24), dtype=torch.int8)
    packed = pack(latent)[0]
    assert measured_bytes(latent, colours=3) == len(encode_webp(packed))
    assert np.array_equal(unpack(decode_webp(encode_webp(packed))), latent[0].numpy())


def test_crops_are_a_function_of_seed_and_step(pictures: list[Pixels], tmp_path: Path) -> None:
    corpus = Corpus.build([PictureSet("photographs", pictures)], tmp_path)
    sampler = corpus.sampler(height_px=64, width_px=96, enlarged=0.5)
    first = sampler.batch(8, seed=1, step=5)
    assert first.shape == (8, 64, 96, 3)
    again = Corpus(tmp_path).sampler(height_px=64, width_px=96, enlarged=0.5)
    assert np.array_equal(first, again.batch(8, seed=1, step=5))
    assert not np.array_equal(first, again.batch(8, seed=1, step=6))
    assert not np.array_equal(first, again.batch(8, seed=2, step=5))


def test_held_out_pictures_are_never_trained_on(tmp_path: Path) -> None:
    # Every picture has one grey level of its own, which its crops show.
    pictures = [np.full((64, 64, 3), i, np.uint8) for i in range(120)]
    corpus = Corpus.build([PictureSet("levels", pictures)], tmp_path)
    assert corpus.held_out == [39, 79, 119]
    seen = set(np.unique(corpus.sampler(height_px=32, width_px=32, enlarged=0.2).batch(3000, seed=0, step=0)).tolist())
    assert seen == set(range(120)) - {39, 79, 119}


def test_sets_are_drawn_by_weight(tmp_path: Path) -> None:
    dark, light = ([np.full((32, 32, 3), level, np.uint8)] * 5 for level in (0, 200))
    corpus = Corpus.build([PictureSet("dark", dark, 3.0), PictureSet("light", light, 1.0)], tmp_path)
    batch = corpus.sampler(height_px=32, width_px=32, enlarged=0.0).batch(2000, seed=0, step=0)
    assert batch[:, 0, 0, 0].astype(bool).mean() == pytest.approx(0.25, abs=0.04)


def test_pictures_too_small_for_a_crop_are_an_error(tmp_path: Path) -> None:
    corpus = Corpus.build([PictureSet("icons", [np.zeros((32, 32, 3), np.uint8)] * 4)], tmp_path)
    with pytest.raises(CodecError, match="icons: no picture holds a crop of 64 x 64 pixels"):
        corpus.sampler(height_px=64, width_px=64, enlarged=0.0)


def test_pictures_are_read_from_folders_and_tars(tmp_path: Path) -> None:
    files = {"b.png": (40, 24), "a/deep.jpg": (16, 8), "large.png": (2000, 10), "note.txt": None, "broken.jpg": None}
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for name, size in files.items():
            buffer = io.BytesIO(b"not a picture")
            if size is not None:
                Image.new("RGB", size).save(buffer, "JPEG" if name.endswith("jpg") else "PNG")
            path = tmp_path / "folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            info = tarfile.TarInfo(name)
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    for source in (tmp_path / "folder", tmp_path / "all.tar"):
        said: list[str] = []
        shapes = {picture.shape for picture in read_pictures(source, log=said.append)}
        # What a camera took is halved at least.
        assert shapes == {(24, 40, 3), (8, 16, 3), (5, 1000, 3)}
        assert len(said) == 1
        assert "broken.jpg skipped" in said[0]
    with pytest.raises(CodecError, match="no such folder or tar"):
        list(read_pictures(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either steps or minutes"),
        ({"steps": 1, "minutes": 1.0}, "either steps or minutes"),
        ({"steps": 0}, "steps and minutes must be positive numbers, not 0 and None"),
        ({"minutes": float("nan")}, "steps and minutes must be positive numbers, not None and nan"),
        ({"steps": 1, "latent_dim": 15}, "latent_dim 15 cannot be packed"),
        ({"steps": 1, "crop_px": (100, 96)}, r"crop_px \(100, 96\) must be two multiples of 8"),
        ({"steps": 1, "name": "No Good"}, "codec name 'No Good'"),
        ({"steps": 1, "rate_weight": -1.0}, "must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)  # type: ignore[arg-type]


def test_settings_survive_json() -> None:
    config = TrainConfig(steps=7, crop_px=(64, 128), target_bpp=0.5)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_picture_smaller_than_a_cell_is_not_held_out(pictures: list[Pixels], tmp_path: Path) -> None:
    corpus = Corpus.build([PictureSet("some", [np.zeros((4, 4, 3), np.uint8), *pictures])], tmp_path / "corpus")
    assert corpus.held_out == [1]
    folder = train([np.zeros((4, 4, 3), np.uint8), *pictures], tmp_path / "out", steps=None, closed_form=True)
    assert load_codec(folder)[1].statistics is not None
    with pytest.raises(CodecError, match="two pictures or more of 16 pixels a side"):
        Corpus.build([PictureSet("icons", [np.zeros((4, 4, 3), np.uint8)] * 9)], tmp_path / "icons")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_no_set_has_are_refused(weight: float) -> None:
    with pytest.raises(CodecError, match="mine: the weight of a set must be a number from 0 on"):
        PictureSet("mine", [], weight)


def test_sets_without_any_weight_are_nothing_to_train_on(pictures: list[Pixels], tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="no picture to train on, or every set has the weight 0"):
        Corpus.build([PictureSet("mine", pictures, 0.0)], tmp_path)


def test_a_log_that_was_cut_short_is_drawn(tmp_path: Path) -> None:
    point = {"step": 1, "seconds": 2.0, "validation_psnr_db": 30.0, "validation_bpp": 0.5}
    (tmp_path / "log.jsonl").write_text(json.dumps(point) + '\n{"step": 2, "sec{"step": 3}\n7\n')
    assert draw_log(tmp_path / "log.jsonl", tmp_path / "rd.png")
    assert (tmp_path / "rd.png").stat().st_size > 1000


def test_statistics_follow_channels_that_are_arranged(pictures: list[Pixels]) -> None:
    codec, _ = load_codec("klt-16x")
    codec.statistics = latent_statistics(codec, pictures[:4])
    before = codec.encoder[0].weight.detach().clone()
    assert arrange_channels(codec, pictures[:2], rounds=1) < 1
    assert not torch.equal(codec.encoder[0].weight, before)
    for found, expected in zip(codec.statistics, latent_statistics(codec, pictures[:4]), strict=True):
        assert found == pytest.approx(expected, abs=1e-3)  # ties at the boundaries apart


def test_closed_forms_need_a_picture_of_a_cell() -> None:
    codec, _ = load_codec("klt-16x")
    small = [np.zeros((4, 4, 3), np.uint8)]
    for function in (latent_statistics, fit_linear_decoder, arrange_channels):
        with pytest.raises(CodecError, match="no picture is as large as one latent cell"):
            function(codec, small)
    with pytest.raises(CodecError, match="multiple of 3 up to the 192 coefficients of J=3, not 10"):
        fit_klt(small, J=3, latent_dim=10)


def test_the_learning_rate_rises_once_while_the_number_of_steps_is_unknown(
    pictures: list[Pixels], tmp_path: Path
) -> None:
    corpus = Corpus.build([PictureSet("some", pictures)], tmp_path)
    config = TrainConfig(**{**TINY, "minutes": 60.0})  # type: ignore[arg-type]
    trainer = _Trainer(corpus, config, None, output=tmp_path, log=print)
    rates = []
    for total_steps in (0, 0, 20_000):
        trainer.total_steps = total_steps
        trainer._train_step()
        trainer.step += 1
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([config.learning_rate * (step + 1) / 200 for step in range(3)], rel=1e-3)


def test_a_pipe_is_no_tar_of_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pictures.tar")
    with pytest.raises(CodecError, match=r"pictures\.tar: cannot be read \(a named pipe, not a file\)"):
        next(read_pictures(tmp_path / "pictures.tar"))
