"""The tables and the plot of an ImageNet classifier on latents: `python -m benchmarks.adapt_plot`.

Writes learning/results/adapt.svg: accuracy among the ten breeds of Imagewoof against multiply-accumulates, of one
network at several sizes, on pixels, on reduced pixels and on latents.
"""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "learning" / "results"
MODEL = "tf_efficientnet_lite0"
README_ARMS = {
    "pixels": "pixels",
    "folded, matched, rank 24": "latents, adapted without training, no decoder",
    "decoded": "latents, decoded by the codec",
    "pixels, reduced 16x, matched": "pixels downscaled to as many values, enlarged, adapted likewise",
}
LABELS = {
    "pixels": "pixels",
    "imitating": "latents, a stem of two residual blocks, trained without labels",
    "folded, matched, rank 24": "latents, folded (rank 24, 3 x 3 cells) and matched",
    "decoded": "latents, decoded by the codec",
    "pixels, reduced 16x, matched": "pixels downscaled to as many values and enlarged, matched",
    "pixels, reduced 16x": "pixels downscaled to as many values and enlarged",
}
DRAWN = {
    "pixels": ("#08306b", "pixels, all 3 x 64 values a cell"),
    "folded, matched, rank 24": ("#d62728", "latents, 12 values a cell, adapted"),
    "pixels, reduced 16x, matched": ("#2171b5", "downscaled pixels, 12 values a cell, adapted likewise"),
}
OTHERS = (("imagewoof", "tf_efficientnet_lite2", 224), ("imagenette", MODEL, 160))
TRANSFER = {
    "pixels": "pixels",
    "latents, folded, matched": "latents, adapted, no decoder",
    "pixels, reduced 16x, matched": "pixels downscaled to as many values, adapted likewise",
}


def results_path(kind: str, name: str) -> Path:
    """Return the path of the lines of `adapt_imagenet` (kind "adapt") or `adapt_transfer` ("transfer")."""
    return RESULTS / f"{kind}-{name}.jsonl"


def load(kind: str, name: str) -> list[dict[str, Any]]:
    """Read the lines of `adapt_imagenet` (kind "adapt") or `adapt_transfer` ("transfer") for a set of pictures."""
    path = results_path(kind, name)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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
    lines = [line for line in load("adapt", name) if (line["model"], line["seen_px"]) == (model, seen_px)]
    lines.sort(key=lambda line: -line["among"])
    labels = arms or LABELS
    return [
        (labels[line["arm"]], f"{line['among']:.1f}", f"{line['of_1000']:.1f}", f"{line['gmacs']:.3f}")
        for line in lines
        if line["arm"] in labels
    ]


def size_rows(name: str, *, model: str = MODEL) -> list[tuple[str, ...]]:
    """Return rows (size, GMAC, then among ten and of 1000 for each arm that is drawn), smallest size first."""
    lines = [line for line in load("adapt", name) if line["model"] == model and line["arm"] in DRAWN]
    rows = []
    for size in sorted({line["seen_px"] for line in lines}):
        found = {line["arm"]: line for line in lines if line["seen_px"] == size}
        if set(found) == set(DRAWN):
            texts = [f"{found[arm]['among']:.1f} / {found[arm]['of_1000']:.1f}" for arm in DRAWN]
            rows.append((f"{size} px", f"{found['folded, matched, rank 24']['gmacs']:.3f}", *texts))
    return rows


def other_rows() -> list[tuple[str, ...]]:
    """Return rows (network, pictures, then among ten and of 1000 by arm) of what was not tuned for."""
    rows = []
    for name, model, seen_px in OTHERS:
        found = {
            line["arm"]: line for line in load("adapt", name) if (line["model"], line["seen_px"]) == (model, seen_px)
        }
        texts = [f"{found[arm]['among']:.1f} / {found[arm]['of_1000']:.1f}" for arm in README_ARMS]
        count = found["pixels"]["pictures"]
        rows.append((model, f"{count:,} of {name.capitalize()}, {seen_px} px", *texts))
    return rows


def transfer_header(name: str) -> tuple[str, ...]:
    """Return the header of `transfer_rows`."""
    lines = load("transfer", name)
    size = f"fine-tuned on {name.capitalize()}, {lines[0]['seen_px']} px"
    return (size, *(f"epochs: {count}" for count in sorted({line["epochs"] for line in lines})))


def transfer_rows(name: str) -> list[tuple[str, ...]]:
    """Return rows (arm, then its accuracy at each number of epochs)."""
    lines = load("transfer", name)
    epochs = sorted({line["epochs"] for line in lines})
    found = {(line["arm"], line["epochs"]): f"{line['accuracy']:.1f}" for line in lines}
    return [(label, *(found.get((arm, count), "") for count in epochs)) for arm, label in TRANSFER.items()]


def plot(name: str = "imagewoof", path: Path | None = None) -> Path:
    """Draw accuracy against multiply-accumulates; return the picture's path."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "walloc_data"  # the same results, the same file
    from matplotlib import pyplot as plt

    path = path or RESULTS / "adapt.svg"
    figure, axis = plt.subplots(figsize=(6.2, 3.8))
    lines = [line for line in load("adapt", name) if line["model"] == MODEL]
    for arm, (colour, label) in DRAWN.items():
        of_arm = sorted((line for line in lines if line["arm"] == arm), key=lambda line: line["seen_px"])
        macs, accuracy = [line["gmacs"] for line in of_arm], [line["among"] for line in of_arm]
        axis.plot(macs, accuracy, "o-", color=colour, label=label)
        for line in of_arm if arm == "pixels" else ():
            where = (line["gmacs"], line["among"])
            axis.annotate(
                f"{line['seen_px']} px", where, xytext=(0, 6), textcoords="offset points", fontsize=8, ha="center"
            )
    for line in lines:
        if line["arm"] == "imitating":
            axis.plot(line["gmacs"], line["among"], "*", ms=10, color="#d62728", label="the same, with a trained stem")
    axis.set(xlabel="billion multiply-accumulates a picture", ylabel="accuracy among ten breeds, %")
    axis.grid(visible=True, alpha=0.25)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    print(f"written to {plot()}")
