"""The table and the plot of `benchmarks.learning.run`'s results.

    python -m benchmarks.learning.plot NAME [NAME ...]

Prints a Markdown table a data set (mean and standard deviation over seeds) and writes results/learning.svg: accuracy
against multiply-accumulates, samples per second and stored bytes.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Runs by (model, arm)."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in (RESULTS / f"{name}.jsonl").read_text().splitlines():
        run = json.loads(line)
        if "arm" in run:
            groups[run["model"], run["arm"]].append(run)
    return groups


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    accuracies = [run["accuracy"] for run in runs]
    return {
        "runs": len(runs),
        "accuracy": statistics.mean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
        "num_macs": runs[0]["num_macs"],
        "samples_per_s": statistics.median(run["samples_per_s"] for run in runs),
        "stored_bytes": runs[0]["stored_bytes"],
    }


def table(name: str) -> str:
    rows = [
        "| model | input | accuracy, % | runs | MMAC | samples/s trained | stored bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, arm), runs in load(name).items():
        s = summary(runs)
        accuracy = f"{s['accuracy']:.1f} ± {s['deviation']:.1f}"
        cost = f"{s['num_macs'] / 1e6:.0f} | {s['samples_per_s']:.0f} | {s['stored_bytes']:.0f}"
        rows.append(f"| {model} | {arm} | {accuracy} | {s['runs']} | {cost} |")
    return "\n".join(rows)


def plot(names: list[str]) -> Path:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    axes_of = (("num_macs", "MAC per sample"), ("samples_per_s", "samples/s trained"), ("stored_bytes", "bytes stored"))
    figure, axes = plt.subplots(len(names), 3, figsize=(13, 4 * len(names)), squeeze=False, sharey="row")
    for row, name in zip(axes, names, strict=True):
        for (model, arm), runs in load(name).items():
            s = summary(runs)
            for axis, (key, label) in zip(row, axes_of, strict=True):
                marker = "o" if model == "vit" else "s"
                axis.errorbar(
                    s[key], s["accuracy"], yerr=s["deviation"], fmt=marker, capsize=3, label=f"{model}: {arm}"
                )
                axis.set(xlabel=label, xscale="log", title=name)
        row[0].set_ylabel("validation accuracy, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, fontsize=7)
    figure.tight_layout(rect=(0, 0.12 / len(names) + 0.06, 1, 1))
    path = RESULTS / "learning.svg"
    figure.savefig(path)
    plt.close(figure)
    return path


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(f"\n{each}\n\n{table(each)}")
    print(f"\nwritten to {plot(sys.argv[1:])}")
