"""The demonstration: encode photographs, verify, train a timm model on the latents, draw a contact sheet.

It needs the extra `demo` and no network: the photographs are part of the scikit-image wheel. The task is to classify
crops by the photograph (of twelve) that they come from; crops of the right third are used for validation only.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from walloc_data.adapters import create_latent_model, summarize
from walloc_data.convert import encode_dataset, verify_dataset
from walloc_data.dataset import LatentDataset
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import ConversionError, MissingExtraError
from walloc_data.format import EncodeSettings
from walloc_data.pictures import original_pictures
from walloc_data.report import preview
from walloc_data.sources import open_source

__all__ = ["DemoResult", "run_demo"]

PHOTOGRAPHS = (
    "astronaut", "brick", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
    "immunohistochemistry", "moon", "retina", "rocket",
)  # fmt: skip
CROP_PX = 96
CROPS = {"train": 160, "validation": 40}  # per photograph


@dataclass(frozen=True)
class DemoResult:
    """Measurements of the demonstration.

    Example:
        >>> from walloc_data.demo import DemoResult
        >>> print(DemoResult(0.875, 1 / 12, 0.71, 95.0, 410.0, "demo.png"))
        accuracy 87.5% on crops of the held-out thirds (chance 8.3%), 0.71 bits per pixel, ... look at demo.png
    """

    accuracy: float  # on crops of the held-out third
    chance: float
    bits_per_pixel: float
    encode_samples_per_s: float
    train_samples_per_s: float
    picture: str

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.1%} on crops of the held-out thirds (chance {self.chance:.1%}), "
            f"{self.bits_per_pixel:.2f} bits per pixel, {self.encode_samples_per_s:.0f} samples/s encoded, "
            f"{self.train_samples_per_s:.0f} samples/s trained; look at {self.picture}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def _photograph(name: str) -> npt.NDArray[np.uint8]:
    """Return a photograph, (H, W, 3) uint8."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtraError("scikit-image", extra="demo", purpose="the demonstration") from error
    picture = getattr(data, name)()
    return np.stack([picture] * 3, axis=-1) if picture.ndim == 2 else picture


def write_crops(folder: Path, *, seed: int = 0) -> None:
    """Write square crops of 96 px into class folders: {folder}/{train,validation}/{photograph}/{i}.png."""
    rng = np.random.default_rng(seed)
    for name in PHOTOGRAPHS:
        picture = _photograph(name)
        border = picture.shape[1] * 2 // 3
        for split, part in (("train", picture[:, :border]), ("validation", picture[:, border:])):
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for i in range(CROPS[split]):
                side = int(rng.integers(CROP_PX * 3 // 4, 1 + min(CROP_PX * 3 // 2, *part.shape[:2])))
                top, left = (int(rng.integers(length - side + 1)) for length in part.shape[:2])
                crop = Image.fromarray(part[top : top + side, left : left + side])
                crop.resize((CROP_PX, CROP_PX), Image.Resampling.BICUBIC).save(target / f"{i:03d}.png")


def _train(data: Path, *, epochs: int, log: Callable[[str], None]) -> tuple[float, float]:
    """Return the accuracy on the validation split, and training samples per second."""
    torch.manual_seed(0)
    train = LatentDataset(data, split="train", shuffle=True, seed=0)
    model = create_latent_model(
        "vit_tiny_patch16_224", dataset=train, embed_dim=128, depth=6, num_heads=4, drop_path_rate=0.1
    )
    log(f"train: {summarize(model)}")
    loader = train.loader(batch_size=64, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(loader))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    started, accuracy = time.perf_counter(), 0.0
    for epoch in range(epochs):
        model.train()
        for latents, labels in loader:  # (64, 12, 12, 12) int8, (64,) int64
            loss = criterion(model(latents), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch + 1 == epochs or (epoch + 1) % 5 == 0:
            accuracy = evaluate(model, LatentDataset(data, split="validation"))
            log(f"train: epoch {epoch + 1:2d} of {epochs}, loss {loss.item():.3f}, validation accuracy {accuracy:.1%}")
    seen = epochs * len(loader) * 64
    return accuracy, seen / (time.perf_counter() - started)


@torch.inference_mode()
def evaluate(model: nn.Module, dataset: LatentDataset) -> float:
    """Return the top-1 accuracy over a split."""
    model.eval()
    correct = sum(int((model(latents).argmax(1) == labels).sum()) for latents, labels in dataset.loader(batch_size=256))
    return correct / len(dataset)


@renamed_arguments(out="folder", say="log")
def run_demo(
    folder: str | os.PathLike[str], *, epochs: int = 10, workers: int = 1, log: Callable[[str], None] = print
) -> DemoResult:
    """Encode, verify and train on crops of photographs, and draw a contact sheet.

    Args:
        folder: working folder; crops go to `crops/`, latents to `latents/`, the contact sheet to `demo.png`.
        epochs: training epochs; ten take one to two minutes on two cores.
        workers: processes that encode.
        log: receives each line of progress.

    Example:
        >>> from walloc_data.demo import run_demo
        >>> result = run_demo("walloc-demo", epochs=1)
        encode: train: ... samples and 0 failures in 1 shard; ...
        encode: validation: ... samples and 0 failures in 1 shard; ...
        verify: walloc-demo/latents: OK. ...
        train: vit_tiny_patch16_224 (skip_early): latents (12, 12, 12) of 96 x 96 px pictures, 1.20 M parameters, ...
        train: epoch  1 of 1, loss ..., validation accuracy ...%
    """
    root = Path(folder)
    data = root / "latents"
    write_crops(root / "crops")
    for split in CROPS:
        summary = encode_dataset(root / "crops" / split, data, split=split, workers=workers, overwrite=True)
        log(f"encode: {summary}")
    verification = verify_dataset(data)
    log(f"verify: {verification}")
    if verification.problems:
        raise ConversionError(f"{data}: {verification.problems[0]}")
    accuracy, rate = _train(data, epochs=epochs, log=log)
    original = original_pictures(open_source(root / "crops" / "validation"), settings=EncodeSettings())
    picture = preview(data, root / "demo.png", split="validation", num_samples=6, original=original)
    return DemoResult(
        accuracy=accuracy,
        chance=1 / len(PHOTOGRAPHS),
        bits_per_pixel=summary.bits_per_pixel,
        encode_samples_per_s=summary.samples_per_s,
        train_samples_per_s=rate,
        picture=str(picture),
    )
