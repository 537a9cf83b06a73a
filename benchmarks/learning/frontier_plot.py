"""The table and the plot of `benchmarks.learning.frontier`'s results: `python -m benchmarks.learning.frontier_plot`.

Writes results/frontier.svg: accuracy against the processor's seconds as training goes on, reading included, and
accuracy against multiply-accumulates, where one trained network is scored at several sizes of the stored pictures.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LABELS = {
    "latents-crops": "latents, random crops",
    "latents-shifts": "latents, shifts by two cells",
    "reduced-crops": "pixels reduced 16x, random crops",
    "pixels-crops": "all pixels, random crops",
}
COLOURS = {
    "latents-crops": "#d62728",
    "latents-shifts": "#ff9f0e",
    "reduced-crops": "#2171b5",
    "pixels-crops": "#08306b",
}
# What a picture costs before the network: latents and reduced pixels are read from the array that is kept of decoded
# samples, as many bytes; pixels from files, cropped as they are decoded.
BEFORE = {
    "latents": ("latent array", "augment, {arm}"),
    "reduced": ("latent array", "augment, {arm}"),
    "pixels": ("JPEG files, random crops",),
}
HEADER = ("input", "network", "epochs", "accuracy, %", "runs", "MMAC", "CPU s an epoch", "before the network")
SIZES = (12, 16, 18, 24)  # cells a side, of by_size_rows
PROBE_SEED = 1000  # of runs that only chose a rate
Runs = dict[str, list[dict[str, Any]]]


def load(path: Path | None = None) -> list[dict[str, Any]]:
    """Read every finished run; those that only chose a rate are left out."""
    path = path or RESULTS / "frontier.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["seed"] != PROBE_SEED]


def groups(lines: list[dict[str, Any]]) -> dict[tuple[str, int, int], Runs]:
    """Sort runs by network and budget: (network, cells, epochs) to runs by arm."""
    found: dict[tuple[str, int, int], Runs] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        kwargs = line["model_kwargs"]
        width = f", width x {kwargs['channels'][0] / 64:g}" if "channels" in kwargs else ""
        found[line["model"] + width, line["cells"], line["epochs"]][line["arm"]].append(line)
    return {
        key: dict(sorted(runs.items(), key=lambda item: list(LABELS).index(item[0]))) for key, runs in found.items()
    }


def seconds_an_epoch(runs: list[dict[str, Any]]) -> tuple[float, float] | None:
    """Return CPU seconds of (reading and augmenting, training) of runs of one arm; None for a network not measured."""
    found = json.loads((RESULTS / "frontier-speed.json").read_text())
    run, seconds = runs[0], found["cpu_seconds_a_picture"]
    if any(run[name] != found[name] for name in ("model", "model_kwargs", "size_px", "cells")):
        return None
    before = sum(seconds[way.format(arm=run["arm"])]["median"] for way in BEFORE[run["arm"].partition("-")[0]])
    return run["num_samples"] * before, run["num_samples"] * float(seconds[f"train, {run['arm']}"]["median"])


def spread(values: list[float]) -> str:
    """Write a mean and the deviation over seeds; of one run, its accuracy."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def rows() -> list[tuple[str, ...]]:
    """Return the table's rows as text, one an arm and budget."""
    found = []
    for (model, _, epochs), runs_by_arm in groups(load()).items():
        for arm, runs in runs_by_arm.items():
            seconds = seconds_an_epoch(runs)
            accuracy, macs = spread([run["top1"] for run in runs]), f"{runs[0]['num_macs'] / 1e6:.0f}"
            times = (f"{sum(seconds):.1f}", f"{seconds[0]:.1f}") if seconds else ("", "")
            found.append((LABELS[arm], model, str(epochs), accuracy, str(len(runs)), macs, *times))
    return found


def by_size_rows() -> list[tuple[str, ...]]:
    """Return rows of accuracy at several sizes; of latents, shrunk from those stored and encoded at the size."""
    found = []
    scored = json.loads((RESULTS / "frontier-sizes.json").read_text())["rows"]
    for runs_by_arm in groups(load()).values():
        for arm, runs in runs_by_arm.items():
            texts = [spread([run["top1_by_cells"][str(cells)] for run in runs]) for cells in SIZES]
            found.append((LABELS[arm] + ": shrunk" * arm.startswith("latents"), *texts))
            at = [[row["encoded"] for row in scored if (row["arm"], row["size_px"]) == (arm, 8 * c)] for c in SIZES]
            if all(at):
                found.append((LABELS[arm] + ": encoded at that size", *map(spread, at)))
    return found


def plot(path: Path | None = None) -> Path:
    """Draw the results; return the picture's path."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "walloc_data"  # the same results, the same file
    from matplotlib import pyplot as plt

    path = path or RESULTS / "frontier.svg"
    figure, (course, cost) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    styles = ("-", "--", ":", "-.")
    for style, ((model, cells, epochs), runs_by_arm) in zip(styles, groups(load()).items(), strict=False):
        for arm, runs in runs_by_arm.items():
            line = {"marker": "o", "ms": 3, "color": COLOURS[arm], "label": f"{LABELS[arm]}: {model}, {epochs} epochs"}
            if seconds := seconds_an_epoch(runs):
                stops = sorted(int(epoch) for epoch in runs[0]["top1_by_epoch"])
                means = [statistics.mean(run["top1_by_epoch"][str(stop)] for run in runs) for stop in stops]
                course.plot([stop * sum(seconds) for stop in stops], means, style, **line)
            means = [statistics.mean(run["top1_by_cells"][str(size)] for run in runs) for size in SIZES]
            macs = [runs[0]["num_macs"] / 1e6 * (size / cells) ** 2 for size in SIZES]
            cost.plot(macs, means, style, linewidth=0.5, **(line | {"marker": "s", "ms": 5}))
    course.set(xlabel="CPU seconds, reading, augmenting and training", ylabel="validation accuracy, %")
    cost.set(xlabel=f"million multiply-accumulates a picture, scored at {', '.join(str(8 * s) for s in SIZES)} px")
    for axis in (course, cost):
        axis.grid(visible=True, alpha=0.25)
    figure.legend(handles=cost.get_legend_handles_labels()[0], loc="lower center", ncol=2, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    print(f"written to {plot()}")
