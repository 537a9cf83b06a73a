"""Networks of `benchmarks.learning.frontier` on stored latents shrunk to a size, and on latents encoded at that size.

    python -m benchmarks.learning.frontier_sizes PICTURES .frontier RUNS --work SCRATCH

For every finished run of RUNS on latents whose weights were kept (--keep-weights): encodes PICTURES/val at each size,
and scores both. Writes results/frontier-sizes.json.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.learning.frontier import lines_of
from benchmarks.learning.frontier_plot import RESULTS, SIZES
from benchmarks.learning.frontier_run import Run
from benchmarks.learning.frontier_views import ARMS, load, views
from walloc_data import LatentDataset, encode_dataset


def encoded_at(pictures: Path, work: Path, *, size_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode the validation pictures at a size; return latents (N, 12, h, w) int8 and labels."""
    out = work / f"size-{size_px}"
    encode_dataset(pictures / "val", out, split="val", size_px=size_px, progress=False)
    dataset = LatentDataset(out, split="val")
    batches = list(dataset.loader(batch_size=512))
    return torch.cat([latents for latents, _ in batches]), torch.cat([labels for _, labels in batches])


def main(argv: list[str] | None = None) -> None:
    """Score, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("packed", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = load(args.packed, "latents")
    shrunk = views(data, list(SIZES))
    encoded = {cells: encoded_at(args.pictures, args.work, size_px=8 * cells) for cells in shrunk}
    for _, labels in encoded.values():
        if not torch.equal(labels, data.labels["val"]):
            raise SystemExit("the packed pictures are others, or in another order")
    rows: list[dict[str, Any]] = []
    for line in lines_of(args.runs / "frontier.jsonl"):
        if ARMS[line["arm"]] != "latents":
            continue
        options: Any = SimpleNamespace(**line, graphs=False)
        run = Run(line["arm"], data, options, seed=line["seed"], epochs=line["epochs"], lr=line["lr"])
        path = run.path(args.runs / "checkpoints", ".weights.pt")
        if not path.exists():
            continue
        run.model.load_state_dict(torch.load(path, weights_only=True))
        for cells, view in shrunk.items():
            top1 = {"shrunk": run.accuracy(view), "encoded": run.accuracy(encoded[cells][0])}
            rows.append({"arm": line["arm"], "seed": line["seed"], "size_px": 8 * cells} | top1)
            print(rows[-1], flush=True)
    value = {
        "command": "python -m benchmarks.learning.frontier_sizes PICTURES PACKED RUNS --work SCRATCH",
        "rows": rows,
    }
    (RESULTS / "frontier-sizes.json").write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
