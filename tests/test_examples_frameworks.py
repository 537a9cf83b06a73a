"""The examples for Lightning and the Hugging Face Trainer: two processes train what one does, and resume exactly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from walloc_data import encode_dataset

pytestmark = pytest.mark.slow
FRAMEWORKS = ("lightning.pytorch", "transformers.trainer", "timm")
ROOT = Path(__file__).resolve().parents[1]

LAST = 7  # steps; an epoch has five


@pytest.fixture(scope="module")
def latents(imagenette_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("latents")
    encode_dataset(imagenette_folder, root, size_px=32, progress=False)
    return root


def lightning_state(output: Path) -> dict[str, Any]:
    state = torch.load(output / "last.ckpt", weights_only=True)
    assert state["global_step"] == LAST
    moments = state["optimizer_states"][0]["state"]
    return state["state_dict"] | {f"{i}.{name}": value for i, of in moments.items() for name, value in of.items()}


def trainer_state(output: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    folder = output / f"checkpoint-{LAST}"
    moments = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = {f"loss {line['step']}": torch.tensor(line["loss"]) for line in log}
    assert len(losses) == LAST
    weights = load_file(folder / "model.safetensors")
    return weights | losses | {f"{i}.{name}": value for i, of in moments.items() for name, value in of.items()}


@pytest.mark.parametrize(
    ("example", "package", "state_of", "devices"),
    [
        ("train_lightning.py", "lightning", lightning_state, "--devices"),
        ("train_hf.py", "transformers", trainer_state, None),
    ],
    ids=["lightning", "trainer"],
)
def test_two_processes_train_what_one_does_and_resume_within_an_epoch_exactly(
    example: str,
    package: str,
    state_of: Callable[[Path], dict[str, Any]],
    devices: str | None,
    latents: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip(package)
    script = ROOT / "examples" / example

    def run(output: str, world_size: int, max_steps: int) -> None:
        arguments: list[object] = [latents, "--model", "test_convnext", "--save-steps", 1, "--max-steps", max_steps]
        arguments += ["--output", tmp_path / output, "--batch-size", 8 // world_size]
        arguments += [devices, world_size] if devices else []
        warm.launch([script, *arguments], world_size=world_size, cwd=tmp_path, preload=FRAMEWORKS)

    run("straight", 2, LAST)
    run("stopped", 2, 3)
    run("stopped", 2, LAST)
    run("one", 1, LAST)
    straight, stopped, one = (state_of(tmp_path / name) for name in ("straight", "stopped", "one"))
    assert straight.keys() == stopped.keys() == one.keys()
    for name, value in straight.items():
        assert torch.equal(value, stopped[name]), name
        torch.testing.assert_close(value, one[name], rtol=1e-3, atol=1e-4)
