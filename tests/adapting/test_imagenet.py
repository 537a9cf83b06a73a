"""Real ImageNet weights on latents: a network that names photographs goes on naming them."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.adapt_arms import PACKAGE, weights_file
from benchmarks.adapt_plot import MODEL
from walloc_data import adapt_model, encode_dataset
from walloc_data.adapting import AdaptConfig
from walloc_data.cli import main


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"needs the weights of {PACKAGE}")
def test_closed_forms_alone_keep_most_of_an_imagenet_classifier(imagenette_folder, tmp_path, capsys):
    from skimage import data

    latents, weights = tmp_path / "latents", weights_file(tmp_path, MODEL)
    encode_dataset(imagenette_folder, latents, size_px=160, progress=False)
    shared = {"stem_blocks": 0, "stem_channels": 24, "stem_kernel_cells": 3, "epochs": 0.0, "stem_epochs": 0.0}
    errors = {}
    for match in (0, 32):
        config = AdaptConfig(**shared, held_out=8, fold_pictures=12, match_pictures=match)
        _, report = adapt_model(
            MODEL, dataset=latents, pictures=imagenette_folder, pretrained=weights, config=config,
            output=tmp_path / str(match),
        )  # fmt: skip
        errors[match] = report.feature_error
    assert errors[32] < 0.9 * errors[0]
    photograph = Path(tmp_path / "photographs" / "cat.png")
    photograph.parent.mkdir()
    Image.fromarray(data.chelsea()).save(photograph)
    assert main(["predict", str(tmp_path / "32"), str(photograph.parent), "--top", "5"]) == 0
    said = capsys.readouterr().out
    assert any(cat in said for cat in ("tabby", "tiger cat", "Egyptian cat")), said
