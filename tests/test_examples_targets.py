"""The training example learns several labels and numbers, scores them, and says what a resumed run changed."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from walloc_data import LatentDataset, encode_dataset
from walloc_data.adapters import latent_config, load_latent_model
from walloc_data.errors import ModelError
from walloc_data.serving import load_classifier

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
COLOURS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def latents(imagenette_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 photographs, tinted, with what they are tinted by and how bright they are."""
    from datasets import ClassLabel, Dataset, Features, Sequence, Value
    from datasets import Image as ImageFeature

    rng = np.random.default_rng(0)
    rows = []
    for number, path in enumerate(sorted(imagenette_folder.rglob("*.JPEG"))):
        tints = [i for i in range(3) if (number + 1) >> i & 1]
        strength = rng.uniform(0.2, 1)
        gains = np.array([strength if i in tints else strength / 5 for i in range(3)])
        picture = (np.asarray(Image.open(path).convert("RGB").resize((32, 32))) * gains).astype(np.uint8)
        rows.append(
            {
                "image": Image.fromarray(picture),
                "tints": tints,
                "is_tinted": [i in tints for i in range(3)],
                "brightness": float(picture.mean()) if number != 7 else None,
                "halves": [float(picture[:, :16].mean()), float(picture[:, 16:].mean())],
                "count": len(tints),
                "first": tints[0] if tints else None,
            }
        )
    features = Features(
        {
            "image": ImageFeature(),
            "tints": Sequence(ClassLabel(names=COLOURS)),
            "is_tinted": Sequence(Value("bool"), length=3),
            "brightness": Value("float32"),
            "halves": Sequence(Value("float32"), length=2),
            "count": Value("int64"),
            "first": ClassLabel(names=COLOURS),
        }
    )
    root = tmp_path_factory.mktemp("latents")
    data = Dataset.from_list(rows, features=features)
    for split in ("fit", "held-out"):
        encode_dataset(data, root, split=split, label_column="none", progress=False)
    return root


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(EXAMPLES)
    spec = importlib.util.spec_from_file_location("train_timm", EXAMPLES / "train_timm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def train(example: Any, latents: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(target: str, *arguments: object) -> dict[str, Any]:
        common = [latents, "--model", "test_convnext", "--train-split", "fit", "--val-split", "held-out"]
        common += ["--global-batch-size", 8, "--target", target, "--cache", "shards", "--output", tmp_path / "run"]
        common += ["--flip", "none", "--shift-cells", 0]
        return example.main([str(argument) for argument in (*common, *arguments)])

    return run


def outputs_and(column: str, latents: Path, folder: Path) -> tuple[torch.Tensor, Any]:
    """Return a saved model's outputs for the held-out split, and the stored targets."""
    data = LatentDataset(latents, split="held-out", target=column)
    batch, targets = next(iter(data.loader(batch_size=40)))
    with torch.inference_mode():
        return load_latent_model(folder / "model")(batch), targets


def test_numbers_are_learned_and_given_in_their_own_units(train: Any, latents: Path, tmp_path: Path) -> None:
    history = train("brightness", "--epochs", 8, "--lr", 4e-3, "--mixup", 0.2, "--mix-from", 0.8)["history"]
    outputs, targets = outputs_and("brightness", latents, tmp_path / "run")
    assert outputs.shape == (40, 1)
    known = ~targets.isnan()
    assert known.sum() == 39  # one has no value: it is neither learned nor scored
    error = (outputs[:, 0] - targets)[known].abs().mean()
    assert history[-1]["ema_mae"] == pytest.approx(float(error), rel=1e-4)
    assert latent_config(load_latent_model(tmp_path / "run" / "model")).task == "numbers"
    with pytest.raises(ModelError, match="gives numbers, no classes to name"):
        load_classifier(tmp_path / "run" / "model").predict([np.zeros((32, 32, 3), np.uint8)])
    spread = (targets[known] - targets[known].mean()).abs().mean()
    assert min(row["mae"] for row in history) < 0.6 * spread  # what the mean alone would give


@pytest.mark.parametrize("target", ["tints", "is_tinted"])
def test_several_labels_are_learned_from_lists_of_classes_and_from_flags(
    train: Any, latents: Path, tmp_path: Path, target: str
) -> None:
    history = train(target, "--epochs", 8, "--lr", 4e-3)["history"]
    outputs, _ = outputs_and(target, latents, tmp_path / "run")
    _, truth = outputs_and("is_tinted", latents, tmp_path / "run")
    precisions = []
    for scores, label in zip(outputs.T, truth.T, strict=True):
        order = scores.argsort(descending=True)
        hits = [position for position, row in enumerate(order.tolist(), 1) if label[row]]
        precisions.append(np.mean([number / position for number, position in enumerate(hits, 1)]))
    assert history[-1]["ema_map"] == pytest.approx(100 * np.mean(precisions), rel=1e-6)
    assert max(row["map"] for row in history) > 85  # without a look at the pictures: some 57
    config = latent_config(load_latent_model(tmp_path / "run" / "model"))
    assert (config.num_classes, config.class_names) == (3, tuple(COLOURS) if target == "tints" else None)
    green = np.zeros((32, 32, 3), np.uint8) + np.array([5, 200, 5], np.uint8)
    [found] = load_classifier(tmp_path / "run" / "model").predict([green])
    assert sum(probability for _, probability in found.top) != pytest.approx(1, abs=1e-3)  # each label's own
    assert {name for name, _ in found.top} == ({*COLOURS} if target == "tints" else {"0", "1", "2"})


def test_average_precision_takes_equal_scores_together_and_leaves_out_what_is_unknown(example: Any) -> None:
    precision = sys.modules["timm_training.tasks"].mean_average_precision
    nan = float("nan")
    scores = torch.tensor([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5], [0.6, 0.1]])
    targets = torch.tensor([[1.0, 1], [0, 0], [1, nan], [nan, 0]])
    # First label: hits at 1 of 1 and 2 of 3. Second: one hit among the two that are first together.
    assert precision(scores, targets) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert precision(scores[:, :1], torch.tensor([[1.0], [1], [0], [0]])) == 1
    assert np.isnan(precision(scores, torch.zeros(4, 2)))


def test_the_task_follows_the_column_or_is_asked_for(example: Any, latents: Path) -> None:
    find_task = sys.modules["timm_training.tasks"].find_task

    def task(target: str, kind: str = "auto") -> tuple[str, int]:
        found = find_task(LatentDataset(latents, split="fit", target=target), kind=kind)
        return found.kind, found.num_outputs

    assert task("halves") == ("numbers", 2)
    assert task("count", "numbers") == ("numbers", 1)
    assert task("count", "classes") == ("classes", 4)
    for target, kind, message in (
        ("count", "auto", "int64 without class names: say --task classes or --task numbers"),
        ("label", "auto", "without class names|no class"),
        ("first", "auto", "no class for some samples"),
        ("key", "auto", "holds text"),
    ):
        with pytest.raises(SystemExit, match=message):
            task(target, kind)


def test_a_resumed_run_says_what_changed_and_refuses_what_cannot(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("brightness", "--epochs", 2)
    capsys.readouterr()
    history = train("brightness", "--epochs", 3, "--lr", 2e-3, "--workers", 1)["history"]
    said = capsys.readouterr().err
    assert f"changed since {tmp_path / 'run' / 'checkpoint.pt'} was saved: --epochs 2 -> 3" in said
    assert "--lr 0.001 -> 0.002" in said
    assert "--workers 0 -> 1" in said
    assert "--model" not in said
    assert [row["epoch"] for row in history] == [0, 1, 2]
    optimizer = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["optimizer"]
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(2e-5)  # where the new schedule ends: at 1/100
    for arguments in (("--global-batch-size", 4), ("--stem-hidden-channels", 0), ("--seed", 1)):
        with pytest.raises(SystemExit, match=rf"cannot change within a run: {arguments[0]} \d+ -> {arguments[1]}\. "):
            train("brightness", "--epochs", 3, *arguments)
    with pytest.raises(SystemExit, match="--target brightness -> halves"):
        train("halves")
