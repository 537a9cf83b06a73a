"""One call from pixel weights to a latent classifier: it learns, resumes after a kill, and says what does not fit."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests import warm
from walloc_data import LatentDataset, adapt_model, encode_dataset
from walloc_data.adapters import imagenet_classes, latent_config, load_latent_model
from walloc_data.adapting import AdaptConfig, Batch, PairedViews, Pairs
from walloc_data.cli import main
from walloc_data.codec import load_codec
from walloc_data.errors import BusyError, ModelError, SettingsMismatchError
from walloc_data.pictures import original_pictures
from walloc_data.sources import open_source
from walloc_data.storage import file_lock
from walloc_data.transforms import LatentOperators

SHORT = {"stem_epochs": 1.0, "epochs": 1.0, "batch_size": 8, "held_out": 5, "fold_pictures": 20, "stem_channels": 16}


@pytest.fixture(scope="module")
def latents(imagenette_folder, tmp_path_factory):
    """40 photographs at 128 px, of folders that are named by WordNet ids."""
    out = tmp_path_factory.mktemp("latents")
    encode_dataset(imagenette_folder, out, size_px=128, progress=False)
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small network's weights for ImageNet's thousand classes, random."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "pixels.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=1000).state_dict(), path)
    return path


def adapted(latents, imagenette_folder, weights, **options):
    shared = {"dataset": latents, "pictures": imagenette_folder, "pretrained": weights}
    return adapt_model("test_resnet", **(shared | {"config": AdaptConfig(**SHORT)} | options))


def test_a_picture_and_its_latent_are_cropped_shrunk_and_flipped_alike(latents, imagenette_folder):
    data = LatentDataset(latents)
    pairs = Pairs(data, original_pictures(open_source(imagenette_folder), settings=data.manifest.settings))
    codec, _ = load_codec(decoder=False)
    views = PairedViews((8, 8), (64, 64), cell_px=8, operators=LatentOperators.load(latents), scale=(0.25, 1.0))
    seen = views(pairs.read(range(40)), generator=torch.Generator().manual_seed(1))
    expected = codec.encode(seen.pictures).float()
    ring = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # the encoder wraps around at a crop's border
    error = (seen.latents - expected)[ring].square().mean((0, 2, 3)) / expected[ring].var((0, 2, 3))
    assert error.mean() < 0.25
    # What one would get by pairing a latent with another crop of its picture.
    other = views(pairs.read(range(40)), generator=torch.Generator().manual_seed(2))
    assert ((other.latents - expected)[ring].square().mean((0, 2, 3)) / expected[ring].var((0, 2, 3))).mean() > 1
    without = PairedViews((8, 8), (64, 64), cell_px=8)(pairs.read([0]), generator=torch.Generator().manual_seed(1))
    assert (without.latents - codec.encode(without.pictures).float())[ring].abs().mean() < 0.5


def test_pictures_that_were_not_encoded_are_refused(latents, imagenette_folder):
    data = LatentDataset(latents)
    pairs = Pairs(data, original_pictures(open_source(imagenette_folder), settings=data.manifest.settings))
    picture = pairs.picture
    pairs.picture = lambda index: picture(index)[:64]
    with pytest.raises(
        ModelError, match=r"sample 3 has 16 x 16 cells, but its picture has 64 x 128 px: pass the pictures"
    ):
        pairs.read([3])
    assert Batch._fields == ("latents", "pictures", "labels")


@pytest.mark.slow
def test_names_are_imagenets_until_another_classifier_is_asked_for(latents, imagenette_folder, weights, tmp_path):
    model, report = adapted(latents, imagenette_folder, weights)
    assert (model.num_classes, latent_config(model).class_names[281]) == (1000, "tabby, tabby cat")
    assert report.pixel_accuracy == 0.0  # labels are known by their WordNet ids; random weights know nothing
    model, _ = adapted(latents, imagenette_folder, weights, num_classes=10, output=tmp_path / "ten")
    assert latent_config(model).class_names == LatentDataset(latents).class_names
    again = load_latent_model(tmp_path / "ten")
    assert again.num_classes == 10
    assert torch.equal(again.state_dict()["fc.weight"], model.state_dict()["fc.weight"])
    model, _ = adapted(latents, imagenette_folder, weights, num_classes=7)
    assert (model.num_classes, latent_config(model).class_names) == (7, None)


UNTRAINED = AdaptConfig(held_out=5, fold_pictures=20, match_pictures=8, stem_channels=16)


@pytest.mark.slow
def test_a_classifier_of_fewer_classes_keeps_their_weights_if_they_are_imagenets_and_else_is_said_to_be_new(
    latents, imagenette_folder, weights
):
    said: list[str] = []
    options = {"config": UNTRAINED, "log": said.append}
    model, _ = adapted(latents, imagenette_folder, weights, num_classes=10, **options)
    names = [wordnet for wordnet, _ in imagenet_classes(1000)]
    rows = [names.index(name) for name in LatentDataset(latents).class_names]
    pixel = load_file(weights)
    assert torch.equal(model.fc.weight, pixel["fc.weight"][rows])
    assert torch.equal(model.fc.bias, pixel["fc.bias"][rows])
    assert not any("untrained" in line for line in said)
    model, _ = adapted(latents, imagenette_folder, weights, num_classes=7, **options)
    assert "its classifier of 7 classes is new and untrained: train it with labels before it predicts" in said[-2]
    assert said[-1] == "the numbers above are of the pixel model's 1000 classes"


def test_other_pictures_of_the_same_size_are_refused(latents, imagenette_folder, weights, tmp_path):
    """A source with more pictures, in another order: each latent would learn from another picture."""
    for number, folder in enumerate(sorted(imagenette_folder.iterdir())):
        (tmp_path / "others" / f"class_{9 - number}").parent.mkdir(exist_ok=True)
        (tmp_path / "others" / f"class_{9 - number}").symlink_to(folder)
    with pytest.raises(
        ModelError, match=r"its latents are not those of these pictures: of 8 .*, \d differ.* split 'train' was"
    ):
        adapted(latents, tmp_path / "others", weights, config=UNTRAINED, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(latents, imagenette_folder, weights, tmp_path):
    for folder in (latents, imagenette_folder):
        before = sorted(folder.rglob("*"))
        with pytest.raises(SettingsMismatchError, match=r"holds other files .* give it a folder of its own"):
            adapted(latents, imagenette_folder, weights, config=UNTRAINED, output=folder)
        assert sorted(folder.rglob("*")) == before


def test_pictures_may_be_a_folder_of_splits(latents, imagenette_folder, weights, tmp_path):
    (tmp_path / "pictures").mkdir()
    for split in ("train", "val"):
        (tmp_path / "pictures" / split).symlink_to(imagenette_folder)
    _, report = adapted(latents, tmp_path / "pictures", weights, config=UNTRAINED)
    assert report.num_held_out == 5


@pytest.mark.slow
def test_the_command_makes_a_folder_that_names_the_pictures_of_a_folder(
    latents, imagenette_folder, weights, tmp_path, capsys
):
    out = tmp_path / "classifier"
    command = ["adapt", "test_resnet", str(latents), "--pictures", str(imagenette_folder), "-o", str(out)]
    options = ["--weights", str(weights), "--epochs", "0.5", "--stem-epochs", "0.5", "--batch-size", "16"]
    assert main([*command, *options, "--held-out", "5", "--geometry", "skip_early", "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert (report["geometry"], report["num_held_out"], report["num_steps"]) == ("skip_early", 5, 2)
    assert "whole 2/2: feature error" in said.err
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        "adapted.json", "codec", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert main(["predict", str(out), str(imagenette_folder), "--top", "3", "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    assert len(predictions) == 40
    assert all(len(item["top"]) == 3 for item in predictions)
    assert main(["predict", str(out), str(imagenette_folder), "--top", "2"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.count("%") == 2
    assert predictions[0]["name"] in first
    # The same command again finds it done; another one is told what differs.
    assert main([*command, *options, "--held-out", "5", "--geometry", "skip_early"]) == 0
    assert "already done" in capsys.readouterr().err
    assert main([*command, *options, "--held-out", "6", "--geometry", "skip_early"]) == 1
    assert "begun with other settings: held_out 5, now 6" in capsys.readouterr().err


SCRIPT = """
import sys
from walloc_data import adapt_model
from walloc_data.adapting import AdaptConfig
latents, pictures, weights, out = sys.argv[1:]
config = AdaptConfig(stem_epochs=1, epochs=3, batch_size=8, held_out=5, fold_pictures=20, stem_channels=16,
                     checkpoint_seconds=0, geometry="pixel_grid")
adapt_model("test_resnet", dataset=latents, pictures=pictures, pretrained=weights, output=out, config=config,
            say=lambda line: print(line, flush=True))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(latents, imagenette_folder, weights, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(out: Path) -> warm.Popen:
        arguments = [str(latents), str(imagenette_folder), str(weights), str(out)]
        return warm.Popen(["-c", SCRIPT, *arguments], stdout=subprocess.PIPE, env=environment, preload=("timm",))

    whole = start(tmp_path / "whole")
    whole.communicate(timeout=300)
    assert whole.returncode == 0
    killed = start(tmp_path / "killed")
    checkpoint = tmp_path / "killed" / ".adapting" / "checkpoint.pt"
    deadline = time.monotonic() + 300
    while not (checkpoint.exists() and torch.load(checkpoint, weights_only=True)["state"]["step"] >= 6):
        assert time.monotonic() < deadline
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "config.json").exists()
    again = start(tmp_path / "killed")
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0
    assert "resuming at step" in said
    expected, got = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.slow
def test_what_cannot_be_resumed_is_named(latents, imagenette_folder, weights, tmp_path):
    def run(**options):
        return adapted(latents, imagenette_folder, weights, output=tmp_path, **options)

    folder = tmp_path / ".adapting"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(ModelError, match=r"checkpoint.pt: not a checkpoint .*--restart"):
        run()
    torch.save({"settings": {"lr": 1.0}, "state": {}}, folder / "checkpoint.pt")
    with pytest.raises(SettingsMismatchError, match=r"begun with other settings: batch_size None, now 8; .*--restart"):
        run()
    with file_lock(tmp_path / ".adapting.lock"), pytest.raises(BusyError, match="another process adapts a model there"):
        run()
    _, report = run(resume=False)
    assert report.num_steps == 8


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("densenet121", {}, "is not supported"),
        ("resnet18", {}, r"pixels.safetensors: not the weights of a resnet18 for pixels: \d+ missing \(.*left over"),
        ("test_resnet", {"pretrained": "absent.pth"}, "absent.pth: no such file"),
        ("test_resnet", {"num_classes": 0}, "num_classes must be 1 or more, not 0"),
        (
            "test_resnet",
            {"config": AdaptConfig(input_cells=17)},
            "input_cells must be 1 to 16 for latents of 16 x 16 cells, not 17",
        ),
        ("test_vit", {"config": AdaptConfig(train_cells=8), "pretrained": None}, "pretrained must be True"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(model, options, words, latents, imagenette_folder, weights):
    shared = {"dataset": latents, "pictures": imagenette_folder, "pretrained": weights}
    with pytest.raises(ModelError, match=words) as refused:
        adapt_model(model, **(shared | options))
    assert "\n" not in str(refused.value)


def test_settings_are_checked_when_they_are_made():
    with pytest.raises(ModelError, match="batch_size must be above 0, not 0"):
        AdaptConfig(batch_size=0)
    with pytest.raises(ModelError, match="epochs must be at least 0, not -1"):
        AdaptConfig(epochs=-1)


@pytest.mark.slow
def test_it_learns_what_the_pixel_model_says_without_labels(latents, imagenette_folder):
    torch.manual_seed(0)
    teacher = timm.create_model("test_resnet", num_classes=10)
    data = LatentDataset(latents)
    pairs = Pairs(data, original_pictures(open_source(imagenette_folder), settings=data.manifest.settings))
    whole = pairs.read(range(40))
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    pixels = (whole.pictures / 255 - 0.45) / 0.23
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(teacher(pixels), whole.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reports = {}
    for epochs in (0.0, 20.0):
        config = AdaptConfig(
            geometry="skip_early", stem_epochs=epochs, epochs=epochs, batch_size=20, held_out=8, lr=1e-3,
            stem_channels=32, flip_p=0.0, scale=(0.8, 1.0),
        )  # fmt: skip
        _, reports[epochs] = adapt_model(teacher, dataset=latents, pictures=imagenette_folder, config=config)
    assert reports[20.0].feature_error < 0.7 * reports[0.0].feature_error
    assert reports[20.0].agreement >= reports[0.0].agreement
    assert reports[20.0].num_macs < 0.9 * reports[0.0].num_macs or reports[0.0].num_steps == 0
