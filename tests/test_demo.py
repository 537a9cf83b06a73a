import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from walloc_data import demo
from walloc_data.cli import main


@pytest.mark.slow
def test_the_demonstration_encodes_trains_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "PHOTOGRAPHS", ("astronaut", "brick", "coffee"))
    monkeypatch.setattr(demo, "CROPS", {"train": 128, "validation": 20})
    assert main(["demo", str(tmp_path), "--epochs", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["chance"] == pytest.approx(1 / 3)
    assert result["accuracy"] > 1.5 * result["chance"], "held-out crops are told apart"
    assert 0.1 < result["bits_per_pixel"] < 2
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 500
    assert main(["verify", str(tmp_path / "latents")]) == 0


def test_train_and_validation_crops_come_from_different_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A photograph whose red says how far to the right a pixel is: the border at two thirds is red 170.
    ramp = np.zeros((200, 300, 3), np.uint8)
    ramp[:, :, 0] = np.linspace(0, 255, 300).astype(np.uint8)
    monkeypatch.setattr(demo, "PHOTOGRAPHS", ("ramp",))
    monkeypatch.setattr(demo, "CROPS", {"train": 30, "validation": 10})
    monkeypatch.setattr(demo, "_photograph", lambda name: ramp)
    demo.write_crops(tmp_path)
    reds = {}
    for split, number in demo.CROPS.items():
        paths = sorted((tmp_path / split / "ramp").iterdir())
        assert len(paths) == number
        crops = np.stack([np.asarray(Image.open(path)) for path in paths])
        assert crops.shape == (number, 96, 96, 3)
        reds[split] = crops[..., 0]
    assert reds["train"].max() < 170 <= reds["validation"].min()
