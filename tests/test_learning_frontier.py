"""The frontier experiment: from pictures to lines, each once; a stopped run goes on to the same weights."""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.learning import frontier, frontier_plot, frontier_run, frontier_sizes, frontier_speed, frontier_views
from benchmarks.learning import packed as packing
from benchmarks.learning.matmul_gradients import with_matmul_gradients

MODEL = ["--model", "test_resnet", "--model-kwargs", '{"stem_hidden_channels": 8}', "--cells", "4"]
OPTIONS = [*MODEL, "--limit-s", "1e9", "--batch-size", "16", "--lrs", "4e-3", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def packed(imagenette_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier")
    for split in packing.SPLITS:
        (folder / "pictures").mkdir(exist_ok=True)
        (folder / "pictures" / split).symlink_to(imagenette_folder)
    arguments = ["--size-px", "48", "--work", str(folder / "latents"), "--out", str(folder / "packed"), "--pixels"]
    frontier.main(["prepare", str(folder / "pictures"), *arguments])
    return folder / "packed"


@pytest.mark.slow
def test_every_arm_trains_once_on_as_many_tokens_and_is_drawn(packed, tmp_path, monkeypatch):
    sizes = (3, 4, 6)
    monkeypatch.setattr(frontier_run, "VIEWS", sizes)
    for module in (frontier_plot, frontier_sizes):
        monkeypatch.setattr(module, "SIZES", {48: sizes})
    for module in (frontier_plot, frontier_sizes, frontier_speed):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    arms = list(frontier_views.ARMS)
    arguments = ["train", str(packed), "--results", str(tmp_path), *OPTIONS, "--epochs", "1", "--seeds", "0"]
    arguments += ["--validate-every", "1", "--keep-weights"]
    frontier.main([*arguments, "--arms", *arms])
    log = tmp_path / "frontier.jsonl"
    before = log.read_text()
    lines = {line["arm"]: line for line in map(json.loads, before.splitlines())}
    assert list(lines) == arms
    # As many values cost as much; all pixels cost more, in the first layer alone.
    assert lines["latents-crops"]["num_macs"] == lines["reduced-crops"]["num_macs"]
    hidden, taps = 8, 9
    extra = (3 * 64 - 12) * taps * hidden * 4 * 4
    assert lines["pixels-crops"]["num_macs"] == lines["latents-crops"]["num_macs"] + extra
    # Scored at every size that the stored one, 6 cells, can be shrunk to, and where pixels can be had.
    assert lines["latents-crops"]["top1_by_cells"]["4"] == lines["latents-crops"]["top1"]
    frontier.main([*arguments, "--arms", *arms])
    assert log.read_text() == before  # nothing is run twice
    pictures, latents = packed.parent / "pictures", packed.parent / "latents"
    frontier_sizes.main([str(pictures), str(packed), str(tmp_path), "--work", str(tmp_path / "work")])
    scored = json.loads((tmp_path / "frontier-sizes.json").read_text())["rows"]
    assert [(row["arm"], row["size_px"]) for row in scored[:3]] == [("latents-crops", 8 * size) for size in sizes]
    stored = scored[2]  # encoded again at the stored size: the same latents, so the same score, the weights' own
    assert stored["shrunk"] == stored["encoded"] == lines["latents-crops"]["top1_by_cells"]["6"]
    rounds = ["--rounds", "1", "--batch-size", "16"]
    frontier_speed.main([str(pictures), str(latents), str(packed), *MODEL, *rounds])
    frontier_speed.main([str(pictures), str(latents), str(packed), *MODEL, *rounds])  # in the place of the first
    assert len(json.loads((tmp_path / "frontier-speed.json").read_text())) == 1
    assert [row[0] for row in frontier_plot.rows()] == list(frontier_plot.LABELS.values())
    seconds = {arm: frontier_plot.seconds_by_epoch(lines[arm])[0] for arm in arms}
    assert all(before > 0 and train > 0 for before, train in seconds.values())
    assert seconds["pixels-crops"][0] > seconds["latents-crops"][0]  # files are decoded
    assert frontier_plot.seconds_by_epoch(lines["latents-crops"] | {"model": "another"}) is None
    assert len(frontier_plot.by_size_rows(48)) == len(arms) + 2  # of latents, the encoded beside the shrunk
    assert frontier_plot.plot(tmp_path / "plot.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(packed, tmp_path):
    data = frontier_views.load(packed, "latents")
    args = argparse.Namespace(
        model="test_resnet",
        model_kwargs={"stem_hidden_channels": 8},
        cells=4,
        cells_before=[3],
        batch_size=16,
        weight_decay=0.05,
        graphs=False,
        matmul_gradients=True,
        validate_every=1,
        keep_weights=True,
    )

    def run() -> frontier_run.Run:
        return frontier_run.Run("latents-crops", data, args, seed=0, epochs=2, lr=4e-3)

    deadline = float("inf")
    [whole] = frontier_run.train_together([run()], deadline=deadline, checkpoints=tmp_path / "whole")
    stopped = run()
    assert stopped.cells == 3
    stopped.begin_epoch()
    for i in range(stopped.steps):
        stopped.step(i)
    stopped.end_epoch()
    stopped.save(tmp_path / "stopped")
    again = run()
    [resumed] = frontier_run.train_together([again], deadline=deadline, checkpoints=tmp_path / "stopped")
    assert resumed["cells_before"] == [3]
    assert resumed["loss"] == whole["loss"]
    assert resumed["top1"] == whole["top1"]
    assert [path.suffixes for path in (tmp_path / "stopped").iterdir()] == [[".weights", ".pt"]]
    first, second = (
        torch.load(next((tmp_path / name).glob("*.weights.pt")), weights_only=True) for name in ("whole", "stopped")
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_boxes_of_pixels_are_resized_as_pillow_does():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 40, 48), dtype=np.uint8))
    boxes = torch.tensor([[4.0, 6.0, 32.0, 36.0], [0.0, 0.0, 40.0, 48.0], [3.0, 1.0, 16.0, 16.0]])  # and one enlarged
    ours = frontier_views.resized_pixels(pixels, boxes, 24)
    assert (ours - frontier_views.resized_one_by_one(pixels, boxes, 24)).abs().max() < 1.5
    for picture, (top, left, height, width), found in zip(pixels, boxes.int().tolist(), ours, strict=True):
        part = Image.fromarray(picture.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.abs(found.numpy() - expected).max() < 1.5  # Pillow rounds twice


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (1, 0)])
@pytest.mark.parametrize("side", [6, 12])  # few cells, whose gradient is a product, and many
def test_gradients_by_products_are_those_of_torch(side, kernel, padding, stride):
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(5, 7, kernel, stride=stride, padding=padding).double()
    ours = with_matmul_gradients(copy.deepcopy(plain))
    x = [torch.randn(2, 5, side, side, dtype=torch.double, requires_grad=True)]
    x.append(x[0].detach().clone().requires_grad_())
    y = [conv(some) for conv, some in zip((plain, ours), x, strict=True)]
    torch.testing.assert_close(y[1], y[0])
    for some in y:
        (some * torch.arange(some.numel(), dtype=torch.double).view_as(some)).sum().backward()
    torch.testing.assert_close(x[1].grad, x[0].grad)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
