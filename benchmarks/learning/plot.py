"""The tables and the plot of `benchmarks.learning.run`'s results.

    python -m benchmarks.learning.plot NAME [NAME ...]

Prints a Markdown table a data set (mean and standard deviation over seeds) and writes results/learning.svg: accuracy
against multiply-accumulates, against the seconds that training took on one core with reading (where
`benchmarks.learning.speed` has been run), and against stored bytes.
"""

import itertools
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.learning.arms import ARMS

RESULTS = Path(__file__).parent / "results"
TITLES = {"imagenette": "Imagenette, 160 px", "imagewoof": "Imagewoof, 256 px"}
# What an arm reads in its first epoch, and in those after it: decoded once, 4 to 12 kB a picture are kept as an array,
# of latents and of reduced pixels alike, which are as many bytes; pixels in full are decoded every time.
READS = {
    "pixels": ("JPEG files as they came",) * 2,
    "jpeg": ("JPEG files of the latents' bytes",) * 2,
    "reduced": ("reduced pictures, lossless WebP", "latent array"),
    "latents": ("latent shards", "latent array"),
}
Runs = dict[tuple[str, str], list[dict[str, Any]]]


def load(name: str) -> Runs:
    """Read runs by (model, arm), in the order of `ARMS`."""
    groups: Runs = defaultdict(list)
    for line in (RESULTS / f"{name}.jsonl").read_text().splitlines():
        run = json.loads(line)
        groups[run["model"], run["arm"]].append(run)
    order = list(ARMS)
    return dict(sorted(groups.items(), key=lambda item: (item[0][0] != "vit", order.index(item[0][1]))))


def load_speed(name: str) -> dict[str, Any] | None:
    """Read samples per second, where they were measured."""
    path = RESULTS / f"{name}-speed.json"
    return json.loads(path.read_text()) if path.exists() else None


def seconds_a_sample(speed: dict[str, Any] | None, model: str, arm: str) -> tuple[float, float] | None:
    """Return one core's seconds a sample, reading and training: (in the first epoch, later); None if not measured."""
    if speed is None or arm not in speed["train_samples_per_s"][model]:
        return None
    train = 1 / speed["train_samples_per_s"][model][arm]["median"]
    reads = READS["pixels" if ARMS[arm].flip == "encoded" else ARMS[arm].array]
    first, later = (1 / speed["read_samples_per_s"][form]["median"] for form in reads)
    return train + first, train + later


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Summarise the runs of all seeds."""
    accuracies = [run["accuracy"] for run in runs]
    return {
        "runs": len(runs),
        "accuracy": statistics.mean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
        "num_macs": runs[0]["num_macs"],
        "stored_bytes": runs[0]["stored_bytes"],
    }


def accuracy_text(runs: list[dict[str, Any]]) -> str:
    """Write mean and deviation over seeds; of one run, its accuracy; of none, nothing."""
    if not runs:
        return ""
    s = summary(runs)
    return f"{s['accuracy']:.1f} ± {s['deviation']:.1f}" if len(runs) > 1 else f"{s['accuracy']:.1f}"


def rows(name: str) -> list[tuple[str, ...]]:
    """Return rows of (model, input, accuracy, runs, MMAC, samples/s, stored bytes), as text."""
    speed = load_speed(name)
    found = []
    for (model, arm), runs in load(name).items():
        s = summary(runs)
        seconds = seconds_a_sample(speed, model, arm)
        rate = f"{1 / seconds[1]:.0f}" if seconds else ""
        macs, stored_bytes = f"{s['num_macs'] / 1e6:.0f}", f"{s['stored_bytes']:,.0f}"
        found.append((model, arm, accuracy_text(runs), str(s["runs"]), macs, rate, stored_bytes))
    return found


HEADER = ("network", "input", "accuracy, %", "runs", "MMAC", "samples/s", "stored bytes")


def table(name: str) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|" + "---:|" * (len(HEADER) - 2)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows(name)])


def _time_course(runs: list[dict[str, Any]], seconds: tuple[float, float], num_samples: int) -> tuple[Any, Any]:
    """Return (seconds, mean accuracy) after each epoch."""
    epochs = min(len(run["history"]) for run in runs)
    accuracy = [statistics.mean(run["history"][e]["accuracy"] for run in runs) for e in range(epochs)]
    first, later = seconds
    return [num_samples * (first + e * later) for e in range(epochs)], accuracy


def plot(names: list[str]) -> Path:
    """Write results/learning.svg."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "walloc_data"  # the same results, the same file
    from matplotlib import pyplot as plt

    # Pixels are blue, latents anything warmer.
    cool = iter(("#08306b", "#2171b5", "#6baed6", "#00bfff", "#9ecae1"))
    some = ("#7f7f7f", "#bcbd22", "#ff7f0e", "#8c564b", "#2ca02c", "#e377c2", "#9467bd", "#98df8a")
    warm = itertools.chain(some, ("#d62728", "#ffbb78", "#c5b0d5"))
    colours = {arm: next(cool if arm.startswith("pixels") else warm) for arm in ARMS}
    seen = {arm for name in names for _, arm in load(name)}
    markers = {"vit": "o", "resnet": "s"}
    figure, axes = plt.subplots(len(names), 3, figsize=(13, 3.8 * len(names)), squeeze=False, sharey="row")
    for row, name in zip(axes, names, strict=True):
        speed = load_speed(name)
        for (model, arm), runs in load(name).items():
            s = summary(runs)
            style: dict[str, Any] = {"color": colours[arm], "marker": markers[model], "markersize": 5}
            for axis, x in ((row[0], s["num_macs"] / 1e6), (row[2], s["stored_bytes"])):
                axis.errorbar(x, s["accuracy"], yerr=s["deviation"], capsize=3, linestyle="", **style)
            if seconds := seconds_a_sample(speed, model, arm):
                course = _time_course(runs, seconds, runs[0]["num_samples"])
                row[1].plot(
                    *course, linestyle="-" if model == "vit" else "--", linewidth=1, **(style | {"markersize": 3})
                )
        row[0].set(xlabel="million multiply-accumulates a sample", ylabel="validation accuracy, %")
        row[0].set_title(TITLES.get(name, name))
        row[1].set(xlabel="seconds on one core, reading and training", xscale="log")
        row[2].set(xlabel="stored bytes a sample", xscale="log")
        for axis in row:
            axis.grid(visible=True, alpha=0.25)
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colours[arm], marker="o", linestyle="", label=arm) for arm in ARMS if arm in seen]
    networks = {"vit": "ViT (solid)", "resnet": "ResNet (dashed)"}
    handles += [
        Line2D([], [], color="black", fillstyle="none", marker=markers[m], linestyle="", label=text)
        for m, text in networks.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncol=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 1.15 / (3.8 * len(names)), 1, 1))
    path = RESULTS / "learning.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(f"\n{each}\n\n{table(each)}")
    print(f"\nwritten to {plot(sys.argv[1:])}")
