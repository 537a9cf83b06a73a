"""The training example learns, resumes to the bit after a real kill, and runs under torchrun."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from walloc_data import LatentDataset, encode_dataset
from walloc_data.adapters import load_latent_model

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "train_timm.py"
COMMON = [
    "--model",
    "test_convnext",
    "--model-kwargs",
    '{"drop_path_rate": 0.1}',
    "--batch-size",
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


def test_a_killed_run_goes_on_to_the_same_weights_as_an_uninterrupted_one(train, latents, tmp_path, capsys):
    arguments = [str(latents), *COMMON, "--epochs", "3", "--checkpoint-steps", "1"]
    train(*arguments, "--output", tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), *arguments, "--output", str(tmp_path / "killed")],
        env=environment(),
        stderr=subprocess.DEVNULL,
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


def in_two_processes(arguments: list[str]) -> None:
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


def test_two_processes_score_the_model_that_they_save(latents, tmp_path):
    """With a batch norm, whose statistics each rank gathers from batches of its own."""
    arguments = [str(latents), "--model", "test_vit", "--batch-size", "8", "--epochs", "3", "--lr", "4e-3"]
    in_two_processes([*arguments, "--output", str(tmp_path)])
    model = load_latent_model(tmp_path / "model")
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    correct = total = 0
    for batch, labels in LatentDataset(latents, split="val").loader(batch_size=8):
        with torch.inference_mode():
            correct, total = correct + int((model(batch).argmax(1) == labels).sum()), total + len(labels)
    last = json.loads((tmp_path / "result.json").read_text())["history"][-1]
    assert last["ema_top1"] == pytest.approx(100 * correct / total)


def test_two_processes_train_what_one_does(train, latents, tmp_path):
    """Without what depends on the rank (mixup, drop-path, batch norm), two ranks make the same steps as one."""
    arguments = [str(latents), "--model", "test_convnext", "--batch-size", "8", "--epochs", "2", "--cache", "shards"]
    arguments += ["--stem-hidden-channels", "0"]  # a stem of two has a batch norm
    single = train(*arguments, "--output", tmp_path / "one")
    in_two_processes([*arguments, "--output", str(tmp_path / "two")])
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)
    history = json.loads((tmp_path / "two" / "result.json").read_text())["history"]
    assert [row["top1"] for row in history] == [row["top1"] for row in single["history"]]


def test_it_learns(train, latents, tmp_path):
    arguments = ["--model", "test_convnext", "--batch-size", "8", "--epochs", "12", "--lr", "4e-3", "--cache", "shards"]
    history = train(latents, *arguments, "--val-split", "train", "--output", tmp_path)["history"]
    assert history[-1]["top1"] > 60  # of the pictures it trained on; chance is 10
    assert history[-1]["loss"] < history[0]["loss"] - 0.3


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("model", "geometry"), [("test_vit", "pixel_grid"), ("test_convnext", "skip_early")])
def test_a_pixel_model_is_folded_and_fine_tuned(model, geometry, latents, imagenette_folder, tmp_path):
    result = load_example("finetune_folded").main(
        [str(latents), "--train-pictures", str(imagenette_folder), "--val-pictures", str(imagenette_folder),
         "--model", model, "--geometry", geometry, "--pixel-epochs", "8", "--lr", "4e-3", "--epochs", "1",
         "--batch-size", "20", "--imitate-steps", "20", "--distill", "1.0", "--output", str(tmp_path)]
    )  # fmt: skip
    assert set(result) == {"pixels", "copied, stem random", "before fine-tuning", "fine-tuned", "from scratch"}
    assert (tmp_path / "model" / "codec" / "codec.json").exists()
    assert result["pixels"] > 20  # of the pictures it trained on; chance is 10
    if geometry == "pixel_grid":
        assert result["before fine-tuning"] > result["pixels"] - 15


def test_the_accelerate_variant_stays_under_fifty_lines_and_trains(latents, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    body = (ROOT / "examples" / "train_accelerate.py").read_text().partition("from accelerate")[2]
    assert len(body.splitlines()) < 50
    monkeypatch.chdir(tmp_path)
    accuracy = load_example("train_accelerate").main(str(latents), epochs=2, batch_size=8, model_name="test_convnext")
    assert 0 <= accuracy <= 1
    assert load_latent_model(tmp_path / "runs" / "accelerate").num_classes == 10


def test_the_walkthrough_runs_from_a_source_to_a_saved_model(imagenette_folder, tmp_path, monkeypatch, capsys):
    import runpy

    monkeypatch.setattr(sys, "argv", ["hub_to_model.py", str(imagenette_folder), str(imagenette_folder), "1"])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    runpy.run_path(str(ROOT / "examples" / "hub_to_model.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "epoch 0: validation" in out
    assert "saved to" in out
