"""The tables and the plot of an ImageNet classifier on latents: `python -m benchmarks.adapt_plot`.

Writes learning/results/adapt.svg: accuracy among the ten breeds of Imagewoof against multiply-accumulates, of one
network at several sizes, on pixels, on reduced pixels and on latents.
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "learning" / "results"
MODEL = "tf_efficientnet_lite0"
SHORT = {
    "pixels": "pixels",
    "imitating, rank 24": "latents, adapted by three epochs without labels, no decoder",
    "folded, matched, rank 24": "latents, adapted without training, no decoder",
    "decoded": "latents, decoded by the codec",
    "decoded, matched": "latents, decoded by the codec, adapted without training",
    "reduced pixels, imitating, rank 24": "pixels downscaled to as many values, adapted by the same three epochs",
    "pixels, reduced 16x, matched": "pixels downscaled to as many values, adapted without training",
}
README_ARMS = {arm: label for arm, label in SHORT.items() if arm != "decoded"}
OTHERS_ARMS = {arm: label for arm, label in SHORT.items() if arm != "decoded, matched"}
LABELS = {
    "pixels": "pixels",
    "imitating, rank 24": "latents, folded (rank 24, 3 x 3 cells), then imitating: the stem for 1 epoch, all for 2",
    "imitating": "latents, a stem of two residual blocks, the stem alone imitating for 2 epochs",
    "imitating, skip_early": "latents, first stages replaced by residual blocks: these imitate for 2 epochs, all for 2",
    "folded, matched, rank 24": "latents, folded (rank 24, 3 x 3 cells) and matched",
    "decoded, matched": "latents, decoded by the codec, matched",
    "reduced pixels, imitating, rank 24": "reduced pixels, folded, then imitating, as latents",
    "reduced pixels, folded, matched, rank 24": "reduced pixels, folded and matched, as latents",
    "decoded": "latents, decoded by the codec",
    "pixels, reduced 16x, matched": "pixels downscaled to as many values and enlarged, matched",
    "pixels, reduced 16x": "pixels downscaled to as many values and enlarged",
}
DRAWN = {
    "pixels": ("#08306b", "pixels, all 3 x 64 values a cell"),
    "imitating, rank 24": ("#d62728", "latents, 12 values a cell, adapted by imitation"),
    "folded, matched, rank 24": ("#ff9896", "latents, adapted without training"),
    "reduced pixels, imitating, rank 24": ("#2171b5", "downscaled pixels, 12 values a cell, adapted by imitation"),
    "pixels, reduced 16x, matched": ("#9ecae1", "downscaled pixels, adapted without training"),
}
SINGLE = {
    "imitating": ("*", "#ff9896", "latents, a larger stem, trained alone"),
    "imitating, skip_early": ("P", "#d62728", "latents, first stages replaced, adapted by four epochs"),
}
OTHERS = (("imagewoof", "tf_efficientnet_lite2", 224), ("imagenette", MODEL, 160))
TRANSFER = {
    "pixels": SHORT["pixels"],
    "latents, imitating": SHORT["imitating, rank 24"],
    "latents, folded, matched": SHORT["folded, matched, rank 24"],
    "reduced pixels, imitating": SHORT["reduced pixels, imitating, rank 24"],
    "pixels, reduced 16x, matched": SHORT["pixels, reduced 16x, matched"],
}


def results_path(kind: str, name: str) -> Path:
    """Return the path of the lines of `adapt_imagenet` (kind "adapt") or `adapt_transfer` ("transfer")."""
    return RESULTS / f"{kind}-{name}.jsonl"


def load(kind: str, name: str) -> list[dict[str, Any]]:
    """Read the lines of `adapt_imagenet` (kind "adapt") or `adapt_transfer` ("transfer") for a set of pictures."""
    path = results_path(kind, name)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _own(name: str, **where: Any) -> list[dict[str, Any]]:
    """Return the lines of `adapt_imagenet` of networks that were adapted on the pictures' own set, selected by keys."""
    wanted = (where | {"adapted_on": name}).items()
    return [line for line in load("adapt", name) if wanted <= line.items()]


def frozen_rows(
    name: str, *, arms: dict[str, str] | None = None, seen_px: int = 224, model: str = MODEL
) -> list[tuple[str, ...]]:
    """Return rows (arm, among ten, of 1000, GMAC) of a network at one size, the best among ten first.

    Args:
        name: of the pictures.
        arms: those to show, and their labels; None: all.
        seen_px: side of the pictures that were classified.
        model: timm's name.
    """
    lines = _own(name, model=model, seen_px=seen_px)
    lines.sort(key=lambda line: -line["among"])
    labels = arms or LABELS
    return [
        (labels[line["arm"]], f"{line['among']:.1f}", f"{line['of_1000']:.1f}", f"{line['gmacs']:.3f}")
        for line in lines
        if line["arm"] in labels
    ]


def size_rows(name: str, *, model: str = MODEL) -> list[tuple[str, ...]]:
    """Return rows (size, GMAC, then among ten and of 1000 for each arm that is drawn), smallest size first."""
    lines = [line for line in _own(name, model=model) if line["arm"] in DRAWN]
    rows = []
    for size in sorted({line["seen_px"] for line in lines}):
        found = {line["arm"]: line for line in lines if line["seen_px"] == size}
        texts = [f"{found[arm]['among']:.1f} / {found[arm]['of_1000']:.1f}" if arm in found else "" for arm in DRAWN]
        rows.append((f"{size} px", f"{found['folded, matched, rank 24']['gmacs']:.3f}", *texts))
    return rows


def other_rows() -> list[tuple[str, ...]]:
    """Return rows (network, pictures, then among ten and of 1000 by arm) of what was not tuned for."""
    rows = []
    for name, model, seen_px in OTHERS:
        found = {line["arm"]: line for line in _own(name, model=model, seen_px=seen_px)}
        texts = [
            f"{found[arm]['among']:.1f} / {found[arm]['of_1000']:.1f}" if arm in found else "" for arm in OTHERS_ARMS
        ]
        count = found["pixels"]["pictures"]
        rows.append((model, f"{count:,} of {name.capitalize()}, {seen_px} px", *texts))
    return rows


def elsewhere_rows(name: str, others: str, *, seen_px: int = 160) -> list[tuple[str, ...]]:
    """Return rows (input, then among ten and of 1000 without training, adapted on others' pictures, and on its own).

    Args:
        name: of the pictures that are classified.
        others: name of pictures of other classes.
        seen_px: side of the pictures.
    """

    def cell(arm: str, adapted_on: str) -> str:
        wanted = {"arm": arm, "model": MODEL, "seen_px": seen_px, "adapted_on": adapted_on}
        found = [line for line in load("adapt", name) if wanted.items() <= line.items()]
        return f"{found[-1]['among']:.1f} / {found[-1]['of_1000']:.1f}" if found else ""

    imitating = {"latents": "imitating, rank 24", "pixels downscaled": "reduced pixels, imitating, rank 24"}
    untrained = {"latents": "folded, matched, rank 24", "pixels downscaled": "pixels, reduced 16x, matched"}
    return [
        (label, cell(untrained[label], name), cell(arm, others), cell(arm, name)) for label, arm in imitating.items()
    ]


def _transfer(line: dict[str, Any]) -> tuple[int, bool, int, float]:
    """Return what a line of fine-tuning differs by: side in pixels, classifier fitted first, epochs, learning rate."""
    return line["seen_px"], line["probe"], line["epochs"], line["lr"] if line["epochs"] else 0.0


def _transfers(name: str) -> list[tuple[int, bool, int, float]]:
    """Return the settings of fine-tuning, in order."""
    return sorted({_transfer(line) for line in load("transfer", name)})


def transfer_header(name: str) -> tuple[str, ...]:
    """Return the header of `transfer_rows`."""
    columns = []
    for size, probe, epochs, lr in _transfers(name):
        begin = "linear probe" if probe else "random classifier"
        columns.append(f"{size} px: {begin}" + f", {epochs} epoch{'s' * (epochs > 1)} at {lr:g}" * (epochs > 0))
    return (f"fine-tuned on {name.capitalize()}, accuracy, %", *columns)


def transfer_rows(name: str) -> list[tuple[str, ...]]:
    """Return rows (arm, then its accuracy at each setting)."""
    lines = load("transfer", name)
    found = {(line["arm"], _transfer(line)): f"{line['accuracy']:.1f}" for line in lines}
    rows = [(label, *(found.get((arm, column), "") for column in _transfers(name))) for arm, label in TRANSFER.items()]
    return [row for row in rows if any(row[1:])]


def plot(name: str = "imagewoof", path: Path | None = None) -> Path:
    """Draw accuracy against multiply-accumulates; return the picture's path."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "walloc_data"  # the same results, the same file
    from matplotlib import pyplot as plt

    path = path or RESULTS / "adapt.svg"
    figure, axis = plt.subplots(figsize=(6.2, 4.4))
    lines = _own(name, model=MODEL)
    for arm, (colour, label) in DRAWN.items():
        of_arm = sorted((line for line in lines if line["arm"] == arm), key=lambda line: line["seen_px"])
        macs, accuracy = [line["gmacs"] for line in of_arm], [line["among"] for line in of_arm]
        axis.plot(macs, accuracy, "o-", color=colour, label=label)
        for line in of_arm if arm == "pixels" else ():
            where = (line["gmacs"], line["among"])
            axis.annotate(
                f"{line['seen_px']} px", where, xytext=(0, 6), textcoords="offset points", fontsize=8, ha="center"
            )
    for arm, (marker, colour, label) in SINGLE.items():
        for line in lines:
            if line["arm"] == arm:
                axis.plot(line["gmacs"], line["among"], marker, ms=8, color=colour, label=label)
    axis.set(xlabel="billion multiply-accumulates a picture", ylabel="accuracy among ten breeds, %")
    axis.margins(y=0.1)
    axis.grid(visible=True, alpha=0.25)
    axis.legend(fontsize=7, frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    print(f"written to {plot()}")
