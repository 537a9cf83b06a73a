"""The training example learns, resumes to the bit after a real kill, and runs under torchrun."""

import importlib.util
import itertools
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from tests import warm
from walloc_data import LatentDataset, create_latent_model, encode_dataset
from walloc_data.adapters import latent_config, load_latent_model, save_latent_model, stem_of
from walloc_data.errors import FormatError, TransformError
from walloc_data.serving import load_classifier

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "train_timm.py"
COMMON = [
    "--model",
    "test_convnext",
    "--model-kwargs",
    '{"drop_path_rate": 0.1}',
    "--global-batch-size",
    "8",
    "--train-split",
    "train",
    "--val-split",
    "val",
    "--mixup",
    "0.2",
    "--cutmix",
    "1.0",
    "--shift-cells",
    "1",
    "--flip",
    "naive",
    "--cache",
    "shards",
]


@pytest.fixture(autouse=True)
def _neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example may import its neighbours, as where it is run as a script."""
    monkeypatch.syspath_prepend(ROOT / "examples")


@pytest.fixture(scope="module")
def latents(imagenette_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latents")
    for split in ("train", "val"):
        encode_dataset(imagenette_folder, out, split=split, size_px=96, progress=False)
    return out


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """The example's `main`, in this process, with one thread as in the others."""
    spec = importlib.util.spec_from_file_location("train_timm", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda *arguments: module.main([str(argument) for argument in arguments])
    torch.set_num_threads(threads)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights_as_an_uninterrupted_one(train, latents, tmp_path, capsys):
    arguments = [str(latents), *COMMON, "--epochs", "3", "--checkpoint-steps", "1"]
    train(*arguments, "--output", tmp_path / "whole")
    process = warm.Popen(
        [EXAMPLE, *arguments, "--output", tmp_path / "killed"],
        env=environment(),
        stderr=subprocess.DEVNULL,
        preload=("timm",),
    )
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The kill landed mid-run: something was done, something was left.
    step = torch.load(checkpoint, weights_only=True)["step"]
    assert 1 <= step < 15
    capsys.readouterr()
    result = train(*arguments, "--output", tmp_path / "killed")
    assert f"at epoch {step // 5}, step {step}" in capsys.readouterr().err
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert [row["epoch"] for row in result["history"]] == [0, 1, 2]
    assert result["num_macs"] > 1e6
    model = load_latent_model(tmp_path / "killed" / "model", dataset=LatentDataset(latents, split="val"))
    assert model.num_classes == 10


def under_torchrun(arguments: list[str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    double = subprocess.run(
        [*launcher, str(EXAMPLE), *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert double.returncode == 0, double.stderr


@pytest.mark.slow
def test_two_processes_score_the_model_that_they_save(latents, tmp_path):
    """With a batch norm, whose statistics each rank gathers from batches of its own."""
    arguments = [str(latents), "--model", "test_vit", "--global-batch-size", "8", "--epochs", "3", "--lr", "4e-3"]
    # With the variables that torchrun sets, in a third of its time.
    warm.launch([EXAMPLE, *arguments, "--output", tmp_path], world_size=2, cwd=tmp_path, preload=("timm",))
    model = load_latent_model(tmp_path / "model")
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    correct = total = 0
    for batch, labels in LatentDataset(latents, split="val").loader(batch_size=8):
        with torch.inference_mode():
            correct, total = correct + int((model(batch).argmax(1) == labels).sum()), total + len(labels)
    last = json.loads((tmp_path / "result.json").read_text())["history"][-1]
    assert last["ema_top1"] == pytest.approx(100 * correct / total)


@pytest.mark.slow
def test_two_processes_train_what_one_does(train, latents, tmp_path):
    """Without what depends on the rank (mixup, drop-path, batch norm), two ranks make the same steps as one."""
    arguments = [
        str(latents),
        "--model",
        "test_convnext",
        "--global-batch-size",
        "8",
        "--epochs",
        "2",
        "--cache",
        "shards",
    ]
    arguments += ["--stem-hidden-channels", "0"]  # a stem of two has a batch norm
    arguments += ["--flip", "none", "--shift-cells", "0"]  # drawn by each rank for itself
    single = train(*arguments, "--output", tmp_path / "one")
    under_torchrun([*arguments, "--output", str(tmp_path / "two")])
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)
    history = json.loads((tmp_path / "two" / "result.json").read_text())["history"]
    assert [row["top1"] for row in history] == [row["top1"] for row in single["history"]]


@pytest.mark.slow
def test_it_learns(train, latents, tmp_path):
    arguments = [
        "--model",
        "test_convnext",
        "--global-batch-size",
        "8",
        "--epochs",
        "12",
        "--lr",
        "4e-3",
        "--cache",
        "shards",
    ]
    arguments += ["--flip", "none", "--shift-cells", "0"]
    history = train(latents, *arguments, "--val-split", "train", "--output", tmp_path)["history"]
    assert history[-1]["top1"] > 60  # of the pictures it trained on; chance is 10
    assert history[-1]["loss"] < history[0]["loss"] - 0.3


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("model", "geometry"), [("test_vit", "pixel_grid"), ("test_convnext", "skip_early")])
def test_a_pixel_model_is_folded_and_fine_tuned(model, geometry, latents, imagenette_folder, tmp_path):
    result = load_example("finetune_folded").main(
        [str(latents), "--train-pictures", str(imagenette_folder), "--val-pictures", str(imagenette_folder),
         "--model", model, "--geometry", geometry, "--pixel-epochs", "8", "--lr", "4e-3", "--epochs", "1",
         "--batch-size", "20", "--stem-epochs", "8", "--output", str(tmp_path)]
    )  # fmt: skip
    assert set(result) == {"pixels", "copied, stem random", "before fine-tuning", "fine-tuned", "from scratch"}
    assert (tmp_path / "model" / "codec" / "codec.json").exists()
    assert result["pixels"] > 20  # of the pictures it trained on; chance is 10
    if geometry == "pixel_grid":
        assert result["before fine-tuning"] > result["pixels"] - 15


ACCELERATE = ["--model", "test_convnext", "--epochs", "2", "--batch-size", "8"]


@pytest.mark.slow
def test_the_accelerate_variant_stays_under_sixty_lines_and_trains(latents, tmp_path):
    pytest.importorskip("accelerate")
    body = (ROOT / "examples" / "train_accelerate.py").read_text().partition("from accelerate")[2]
    assert len(body.splitlines()) < 60
    accuracy = load_example("train_accelerate").main([str(latents), *ACCELERATE, "--output", str(tmp_path / "model")])
    assert 0 <= accuracy <= 1
    assert load_latent_model(tmp_path / "model").num_classes == 10


def windows_by_hand(latents: Path, *, accumulate: int, epochs: int) -> dict[str, torch.Tensor]:
    """Steps on the mean gradient of whole windows of batches, in plain torch: what accumulation must come to."""
    torch.manual_seed(0)
    train = LatentDataset(latents, shuffle=True)
    model = create_latent_model("test_convnext", dataset=train)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-5)
    loader = train.loader(batch_size=8, drop_last=True)
    for epoch in range(epochs):
        scheduler.step(epoch)
        batches = list(loader)
        for first in range(0, len(batches), accumulate):
            window = batches[first : first + accumulate]
            z, labels = torch.cat([z for z, _ in window]), torch.cat([labels for _, labels in window])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(z), labels).backward()
            optimizer.step()
    return model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [3, 7])
def test_accumulated_gradients_of_a_short_last_window_are_stepped_in_their_own_epoch(latents, tmp_path, accumulate):
    """Five batches an epoch: windows of 3 and 2, or one of 5; the two processes below have 2, 2, 1."""
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    load_example("train_accelerate").main(
        [str(latents), *ACCELERATE, "--accumulate", str(accumulate), "--output", str(tmp_path / "model")]
    )
    expected = windows_by_hand(latents, accumulate=accumulate, epochs=2)
    for name, value in load_latent_model(tmp_path / "model").state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_two_processes_accumulate_what_one_does(latents, tmp_path):
    pytest.importorskip("accelerate")
    script = str(ROOT / "examples" / "train_accelerate.py")
    # Each process draws its first weights for itself, and rank 0's are sent to the other: so a seed for both.
    seeded = f"import runpy, sys, torch; torch.manual_seed(0); runpy.run_path({script!r}, run_name='__main__')"
    arguments = [
        str(latents),
        *ACCELERATE,
        "--batch-size",
        "4",
        "--accumulate",
        "2",
        "--output",
        str(tmp_path / "model"),
    ]
    (tmp_path / "seeded.py").write_text(seeded)
    command = [tmp_path / "seeded.py", *arguments]
    warm.launch(command, world_size=2, cwd=tmp_path, env={"ACCELERATE_USE_CPU": "true"}, preload=("timm",))
    expected = windows_by_hand(latents, accumulate=2, epochs=2)
    for name, value in load_latent_model(tmp_path / "model").state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_explains_itself(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    shown = capsys.readouterr()
    assert (stopped.value.code, shown.err) == (0, "")
    assert shown.out.startswith(f"usage: {path.name}")
    assert path.read_text().split('"""')[1].splitlines()[0] in shown.out


@pytest.mark.slow
def test_the_split_to_validate_on_is_found_or_named(train, imagenette_folder, tmp_path):
    data = tmp_path / "latents"
    encode_dataset(imagenette_folder, data, split="fit", size_px=32, progress=False)
    own = [str(data), "--model", "test_convnext", "--epochs", "1", "--train-split", "fit"]
    arguments, each = [*own, "--global-batch-size", "8"], [*own, "--batch-size", "8"]
    with pytest.raises(
        FormatError, match=r"no split to validate on; it has \['fit'\]: encode one, or choose one of these"
    ):
        train(*arguments, "--output", tmp_path / "run")
    encode_dataset(imagenette_folder, data, split="test", size_px=32, progress=False)
    assert len(train(*arguments, "--output", tmp_path / "run")["history"]) == 1
    accuracy = load_example("train_accelerate").main([*each, "--output", str(tmp_path / "accelerate")])
    assert 0 <= accuracy <= 1
    folded = ["--train-pictures", imagenette_folder, "--val-pictures", imagenette_folder, "--pixel-epochs", "1"]
    folded = [*each, *map(str, folded), "--geometry", "pixel_grid", "--output", str(tmp_path / "folded")]
    assert "fine-tuned" in load_example("finetune_folded").main(folded)
    with pytest.raises(FormatError, match=r"no split 'nowhere'; it has"):
        train(*arguments, "--val-split", "nowhere", "--output", tmp_path / "other")


def test_the_recipe_follows_what_is_stored_and_how_long_the_training_is(latents, imagenette_folder, tmp_path):
    example = load_example("train_timm")

    def recipe(data: Path, *arguments: str) -> tuple[Any, ...]:
        args = example.parse([str(data), *arguments], description=None)
        example.fill_in_recipe(args, LatentDataset(data, split="train"))
        return args.size_cells, args.crops, args.shift_cells, args.flip, args.mixup, args.cutmix

    assert recipe(latents) == (12, "whole", 2, "fitted", 0, 0)
    assert recipe(latents, "--size-cells", "8") == (8, "random", 0, "fitted", 0, 0)
    assert recipe(latents, "--epochs", "80") == (12, "whole", 2, "fitted", 0.2, 1.0)
    given = ["--epochs", "80", "--flip", "none", "--shift-cells", "0", "--mixup", "0", "--cutmix", "0.5"]
    assert recipe(latents, *given) == (12, "whole", 0, "none", 0, 0.5)
    mirrored = tmp_path / "mirrored"
    encode_dataset(imagenette_folder, mirrored, split="train", size_px=32, mirror=True, progress=False)
    assert recipe(mirrored)[3] == "stored"
    bare = tmp_path / "bare"
    shutil.copytree(latents, bare)
    (bare / "codec" / "operators.safetensors").unlink()
    assert recipe(bare)[3] == "none"


@pytest.mark.slow
def test_the_walkthrough_runs_from_a_source_to_a_saved_model(imagenette_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hub_to_model.py", str(imagenette_folder), "--epochs", "1"])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    runpy.run_path(str(ROOT / "examples" / "hub_to_model.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "epoch 0: validation" in out
    assert "saved to" in out


@pytest.mark.slow
@pytest.mark.parametrize("val_cells", [[], ["--channels-last", "--val-cells", "9"], ["--val-cells", "12"]])
def test_crops_grow_to_a_size_below_the_stored_one_and_serving_sees_what_validation_saw(
    train, latents, imagenette_folder, tmp_path, val_cells
):
    arguments = [latents, *COMMON[:-4], "--cache", "shards", "--flip", "fitted", "--epochs", "3", "--output", tmp_path]
    result = train(*arguments, *val_cells, "--size-cells", "8", "--progressive-from", "6", "--mix-from", "0.5")
    assert [line["size_cells"] for line in result["history"]] == [6, 7, 8]
    assert result["input_shape"] == (12, *2 * [int(val_cells[-1]) if val_cells else 8])
    classifier = load_classifier(tmp_path / "model")
    assert classifier.config.view == ("whole" if "12" in val_cells else "resize")
    paths = sorted(imagenette_folder.rglob("*.JPEG"))
    names = [prediction.name for prediction in classifier.predict_files(paths)]
    right = sum(name == path.parent.name for name, path in zip(names, paths, strict=True))
    assert 100 * right / len(paths) == pytest.approx(result["history"][-1]["ema_top1"], abs=1e-9)
    with pytest.raises(SystemExit, match="grows random crops: store latents larger than --size-cells"):
        train(*arguments, "--progressive-from", "6")


@pytest.mark.parametrize("option", [["--val-cells", "8"], ["--progressive-from", "4"]])
def test_a_network_of_one_size_refuses_others_before_it_trains(train, latents, tmp_path, option):
    small = ["--model", "vit_tiny_patch16_224", "--model-kwargs", '{"depth": 1}']
    arguments = [latents, *small, "--global-batch-size", "8", "--epochs", "1", "--output", tmp_path]
    with pytest.raises(
        SystemExit, match=r"vit_tiny_patch16_224 takes \d cells a side only, not \d .*: leave out --val-cells"
    ):
        train(*arguments, "--size-cells", "6", *option)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_saved_model_is_fine_tuned_for_the_classes_of_the_data_set(train, latents, tmp_path):
    """From a model of another size, with other classes: as `walloc-data adapt` leaves one."""
    data = LatentDataset(latents, split="train")
    size = {"input_shape": (12, 8, 8), "view": "resize", "stem_hidden_channels": 8, "stem_blocks": 0}
    first = create_latent_model("test_convnext", dataset=data, num_classes=7, geometry="pixel_grid", **size)
    folders = [save_latent_model(first, tmp_path / "0"), tmp_path / "1" / "model", tmp_path / "2" / "model"]
    for given, made in itertools.pairwise(folders):
        common = ["--global-batch-size", "8", "--cache", "shards", "--lr", "1e-12", "--output", made.parent]
        result = train(latents, "--init", given, "--epochs", "1", *common)
        assert (result["model"], result["geometry"]) == ("test_convnext", "pixel_grid")
        assert result["input_shape"] == (12, 8, 8)
    models = [load_latent_model(folder) for folder in folders]
    for model in models[1:]:
        assert latent_config(model).class_names == data.class_names
        assert latent_config(model).view == "resize"
        torch.testing.assert_close(stem_of(model).weight, stem_of(first).weight)
    torch.testing.assert_close(models[2].get_classifier().weight, models[1].get_classifier().weight)  # kept
    with pytest.raises(SystemExit, match="stored with 12 cells a side: none gives an input of 16"):
        train(latents, "--size-cells", "16", *common, "--output", tmp_path / "3")
    with pytest.raises(TransformError, match=r"no factor of .* shrinks 12 cells to 11"):  # before any epoch
        train(latents, "--model", "test_convnext", "--size-cells", "11", *common, "--output", tmp_path / "3")
    with pytest.raises(SystemExit, match=r"has --model test_convnext, not resnet18: leave it out"):
        train(latents, "--init", folders[0], "--model", "resnet18", "--output", tmp_path / "3")
    with pytest.raises(SystemExit, match=r"begun with other arguments.* --init .*0 -> .*1/model.* another --output"):
        train(latents, "--init", folders[1], "--epochs", "2", *common[:-1], tmp_path / "1")
    assert train(latents, "--init", folders[0], "--size-cells", "6", "--epochs", "1", *common[:-1], tmp_path / "4")[
        "input_shape"
    ] == (12, 8, 8)


def test_a_mistake_ends_in_one_line(latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_train = tmp_path / "only-train"
    shutil.copytree(latents, only_train)
    manifest = json.loads((only_train / "walloc.json").read_text())
    del manifest["splits"]["val"]
    (only_train / "walloc.json").write_text(json.dumps(manifest))
    for arguments, message in (
        ([latents, "--target", "age"], "no column 'age' in its index; it has ["),
        ([latents, "--val-split", "held-out"], "no split 'held-out'; it has ['train', 'val']"),
        ([only_train], "no split to validate on; it has ['train']"),
        ([tmp_path / "nowhere"], "nowhere: no walloc.json: not a data set of latents"),
        ([latents, "--global-batch-size", "4096"], "samples do not fill one batch of 4096"),
    ):
        common = ["--model", "test_convnext", "--cache", "shards", "--output", tmp_path / "run"]
        monkeypatch.setattr(sys, "argv", [str(part) for part in (EXAMPLE, *arguments, *common)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        assert str(stopped.value.code).startswith("error: ")  # which Python prints; it exits with 1
        assert message in str(stopped.value.code)
        assert "\n" not in str(stopped.value.code)
    assert not (tmp_path / "run").exists()
