"""Trained networks of `benchmarks.learning.frontier` at other sizes; on latents also encoded at each size.

    python -m benchmarks.learning.frontier_sizes PICTURES .frontier RUNS --work SCRATCH

Scores every finished run of RUNS whose weights were kept (--keep-weights) on the validation pictures of .frontier,
shrunk to each size; on latents, too, on PICTURES/val encoded at that size. Writes results/frontier-sizes.json, where
results of pictures stored at another size stay.
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
    lines = lines_of(args.runs / "frontier.jsonl")
    rows: list[dict[str, Any]] = []
    for kind in dict.fromkeys(ARMS[line["arm"]] for line in lines):
        data = load(args.packed, kind)
        shrunk = views(data, list(SIZES[data.size_px]))
        encoded = {}
        if kind == "latents":
            encoded = {cells: encoded_at(args.pictures, args.work, size_px=8 * cells) for cells in shrunk}
        if any(not torch.equal(labels, data.labels["val"]) for _, labels in encoded.values()):
            raise SystemExit("the packed pictures are others, or in another order")
        for line in lines:
            if ARMS[line["arm"]] != kind or line["size_px"] != data.size_px:
                continue
            options: Any = SimpleNamespace(**{"cells_before": [], **line}, graphs=False, matmul_gradients=False)
            run = Run(line["arm"], data, options, seed=line["seed"], epochs=line["epochs"], lr=line["lr"])
            path = run.path(args.runs / "checkpoints", ".weights.pt")
            if not path.exists():
                continue
            run.model.load_state_dict(torch.load(path, weights_only=True))
            facts = {name: line[name] for name in ("arm", "seed", "epochs")} | {"stored_px": data.size_px}
            for cells, view in shrunk.items():
                top1 = {"shrunk": run.accuracy(view)}
                if encoded:
                    top1["encoded"] = run.accuracy(encoded[cells][0])
                rows.append(facts | {"size_px": 8 * cells} | top1)
                print(rows[-1], flush=True)
    path = RESULTS / "frontier-sizes.json"
    others = json.loads(path.read_text())["rows"] if path.exists() else []
    scored = {row["stored_px"] for row in rows}
    value = {
        "command": "python -m benchmarks.learning.frontier_sizes PICTURES PACKED RUNS --work SCRATCH",
        "rows": [row for row in others if row["stored_px"] not in scored] + rows,
    }
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
