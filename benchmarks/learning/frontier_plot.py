"""The table and the plot of `benchmarks.learning.frontier`'s results: `python -m benchmarks.learning.frontier_plot`.

Writes results/frontier.svg: accuracy against the processor's seconds as training goes on, reading included, and
accuracy against multiply-accumulates, where one trained network is scored at several sizes of the stored pictures.
"""

import json
import statistics
from collections import defaultdict
from itertools import accumulate
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
    "latents": ("latent array", "augment, {arm}, {cells} cells"),
    "reduced": ("latent array", "augment, {arm}, {cells} cells"),
    "pixels": ("JPEG files, random crops, {cells} cells",),
}
HEADER = ("input", "network", "epochs", "accuracy, %", "runs", "MMAC", "CPU s an epoch", "before the network")
SIZES = {192: (12, 16, 18, 24), 320: (20, 24, 30, 32)}  # stored px: cells a side that networks are scored at
PROBE_SEED = 1000  # of runs that only chose a rate
Runs = dict[str, list[dict[str, Any]]]


def load(path: Path | None = None) -> list[dict[str, Any]]:
    """Read every finished run; those that only chose a rate are left out."""
    path = path or RESULTS / "frontier.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["seed"] != PROBE_SEED]


def cells_at(epoch: int, *, epochs: int, sizes: list[int]) -> int:
    """Return the side of an epoch's inputs: each size has the same share of the epochs, in their order."""
    return sizes[epoch * len(sizes) // epochs]


def groups(lines: list[dict[str, Any]]) -> dict[tuple[str, int, int], Runs]:
    """Sort runs by network and budget: (network, cells, epochs) to runs by arm."""
    found: dict[tuple[str, int, int], Runs] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        kwargs = line["model_kwargs"]
        network = line["model"]
        if "channels" in kwargs:
            network += f", width x {kwargs['channels'][0] / 64:g}"
        if kwargs.get("geometry") == "skip_early":
            network += ", first stage skipped"
        sizes = [*line.get("cells_before", []), line["cells"]]
        network += f", {8 * sizes[0]} px" if len(sizes) == 1 else f", {8 * sizes[0]} to {8 * sizes[-1]} px"
        found[network, line["cells"], line["epochs"]][line["arm"]].append(line)
    return {
        key: dict(sorted(runs.items(), key=lambda item: list(LABELS).index(item[0]))) for key, runs in found.items()
    }


def seconds_by_epoch(run: dict[str, Any]) -> list[tuple[float, float]] | None:
    """Return CPU seconds of (reading and augmenting, training) of a run's epochs; None for a network not measured."""
    same, sizes = ("model", "model_kwargs", "size_px"), [*run.get("cells_before", []), run["cells"]]
    for found in json.loads((RESULTS / "frontier-speed.json").read_text()):
        if all(run[name] == found[name] for name in same) and set(sizes) <= set(found["cells"]):
            break
    else:
        return None
    seconds = {name: value["median"] for name, value in found["cpu_seconds_a_picture"].items()}
    if f"train, {run['arm']}, {run['cells']} cells" not in seconds:
        return None
    epochs = []
    for epoch in range(run["epochs"]):
        cells = cells_at(epoch, epochs=run["epochs"], sizes=sizes)
        names = (way.format(arm=run["arm"], cells=cells) for way in BEFORE[run["arm"].partition("-")[0]])
        train = seconds[f"train, {run['arm']}, {cells} cells"]
        epochs.append((run["num_samples"] * sum(seconds[name] for name in names), run["num_samples"] * train))
    return epochs


def spread(values: list[float]) -> str:
    """Write a mean and the deviation over seeds; of one run, its accuracy."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def rows() -> list[tuple[str, ...]]:
    """Return the table's rows as text, one an arm and budget."""
    found = []
    for (model, _, epochs), runs_by_arm in groups(load()).items():
        for arm, runs in runs_by_arm.items():
            seconds = seconds_by_epoch(runs[0])
            accuracy, macs = spread([run["top1"] for run in runs]), f"{runs[0]['num_macs'] / 1e6:.0f}"
            times = ("", "")
            if seconds:
                before, train = (statistics.mean(parts) for parts in zip(*seconds, strict=True))
                times = (f"{before + train:.1f}", f"{before:.1f}")
            found.append((LABELS[arm], model, str(epochs), accuracy, str(len(runs)), macs, *times))
    return found


def by_size_rows(stored_px: int) -> list[tuple[str, ...]]:
    """Return rows of accuracy at several sizes; of latents, shrunk from those stored and encoded at the size."""
    found = []
    scored = json.loads((RESULTS / "frontier-sizes.json").read_text())["rows"]
    names = sorted({(row["arm"], row["epochs"]) for row in scored if row["stored_px"] == stored_px}, key=_order)
    for arm, epochs in names:
        for how, text in {"shrunk": ": shrunk", "encoded": ": encoded at that size"}.items():
            mine = [row for row in scored if (row["arm"], row["epochs"], row["stored_px"]) == (arm, epochs, stored_px)]
            at = [
                [row[how] for row in mine if row["size_px"] == 8 * cells and how in row] for cells in SIZES[stored_px]
            ]
            if any(at):
                label = LABELS[arm] + text * arm.startswith("latents")
                found.append((label, *(spread(values) if values else "" for values in at)))
    return found


def _order(name: tuple[str, int]) -> tuple[int, int]:
    return list(LABELS).index(name[0]), name[1]


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
            if seconds := seconds_by_epoch(runs[0]):
                total = list(accumulate(map(sum, seconds)))
                stops = sorted(int(epoch) for epoch in runs[0]["top1_by_epoch"])
                means = [statistics.mean(run["top1_by_epoch"][str(stop)] for run in runs) for stop in stops]
                course.plot([total[stop - 1] for stop in stops], means, style, **line)
            sizes = [size for size in SIZES[runs[0]["size_px"]] if str(size) in runs[0]["top1_by_cells"]]
            means = [statistics.mean(run["top1_by_cells"][str(size)] for run in runs) for size in sizes]
            macs = [runs[0]["num_macs"] / 1e6 * (size / cells) ** 2 for size in sizes]
            cost.plot(macs, means, style, linewidth=0.5, **(line | {"marker": "s", "ms": 5}))
    course.set(xlabel="CPU seconds, reading, augmenting and training", ylabel="validation accuracy, %")
    cost.set(xlabel="million multiply-accumulates a picture, of several sizes")
    for axis in (course, cost):
        axis.set_xscale("log")
        axis.grid(visible=True, alpha=0.25)
    figure.legend(handles=cost.get_legend_handles_labels()[0], loc="lower center", ncol=2, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    print(f"written to {plot()}")
