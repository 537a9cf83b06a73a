"""The experiment runs from pictures to table, resumes, and gives every arm the same body."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.learning import arms, plot, run, speed


@pytest.fixture
def pictures(imagenette_folder: Path, tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    root.mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(imagenette_folder)
    return root


@pytest.mark.slow
def test_from_pictures_to_table(pictures, tmp_path, monkeypatch, capsys):
    for module in (run, plot, speed):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(arms.NETWORKS, "vit", dataclasses.replace(arms.NETWORKS["vit"], epochs=1))
    chosen = ["pixels, full resolution", "pixels, reduced 16x", "latents, fitted flip", "latents, stored mirrors"]
    chosen += ["latents, stored mirrors, folded start"]
    arguments = [str(pictures), "--size-px", "64", "--work", str(tmp_path / "work"), "--name", "tiny"]
    arguments += ["--patch-cells", "2"]
    arguments += ["--seeds", "0", "--batch-size", "20", "--models", "vit", "--arms", *chosen]
    run.main(arguments)
    log = tmp_path / "results" / "tiny.jsonl"
    before = log.read_text()
    run.main(arguments)
    assert log.read_text() == before  # nothing is run twice
    lines = [json.loads(line) for line in before.splitlines()]
    runs = {line["arm"]: line for line in lines if "arm" in line}
    assert set(runs) == set(chosen)
    # Sixteen times fewer values: the first layers cost the same, and the bodies are the same.
    assert runs["pixels, reduced 16x"]["num_macs"] == runs["latents, fitted flip"]["num_macs"]
    assert runs["pixels, reduced 16x"]["num_parameters"] == runs["latents, fitted flip"]["num_parameters"]
    assert runs["pixels, full resolution"]["num_macs"] > runs["pixels, reduced 16x"]["num_macs"]
    assert runs["latents, stored mirrors"]["stored_bytes"] == 2 * runs["latents, fitted flip"]["stored_bytes"]
    assert "| vit | latents, fitted flip |" in plot.table("tiny")
    assert plot.plot(["tiny"]).read_text().startswith("<?xml")
    monkeypatch.setattr(speed, "NETWORKS", {"vit": arms.NETWORKS["vit"]})
    monkeypatch.setattr(speed, "ARMS", {name: arms.ARMS[name] for name in chosen})
    speed.main([*arguments[:9], "--rounds", "1"])
    measured = json.loads((tmp_path / "results" / "tiny-speed.json").read_text())
    assert set(measured["train_samples_per_s"]["vit"]) == set(chosen)
    assert all(found["min"] > 0 for found in measured["read_samples_per_s"].values())
    first, later = plot.seconds_a_sample(measured, "vit", "latents, fitted flip")
    shards, array = (1 / measured["read_samples_per_s"][form]["median"] for form in ("latent shards", "latent array"))
    assert first - later == pytest.approx(shards - array, abs=1e-9)
    assert plot.plot(["tiny"]).read_text().count("seconds on one core") == 1
