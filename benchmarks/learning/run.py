"""Does training on latents pay? One command, every arm, seeds fixed, resumable.

    python -m benchmarks.learning.run PICTURES --size-px 160 --work SCRATCH --name imagenette
    python -m benchmarks.learning.run PICTURES --size-px 256 --work SCRATCH --name imagewoof --patch-cells 8
    python -m benchmarks.learning.plot imagenette imagewoof

PICTURES holds train/ and val/, one folder a class: Imagenette-160 or Imagewoof (github.com/fastai/imagenette; as plain
files also github.com/q878787/imagewoof2-320). Every arm trains the same network on the same pictures for the same
epochs; only the first layer differs, so that each sees its input at the same number of tokens or the same grid.
Validation is of the whole view in every arm. The accuracy reported is the last epoch's, never the best.

Runs are lines in benchmarks/learning/results/NAME.jsonl; what is there already is not run again. These networks are too
small to fill a GPU: there --together trains several runs side by side in one process, each on its stream.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning.arms import ARMS, NETWORKS
from benchmarks.learning.data import Prepared, prepare
from benchmarks.learning.training import train_one

RESULTS = Path(__file__).parent / "results"
KEY = ("model", "arm", "seed", "epochs", "batch_size", "size_px", "patch_cells", "codec")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--size-px", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for arrays: about 0.2 MB a picture at 160 px")
    parser.add_argument("--name", required=True, help="name of the results file")
    parser.add_argument("--codec", help="codec, as for load_codec (default: the bundled one)")
    parser.add_argument("--models", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--longer", type=int, default=1, help="factor of the model's number of epochs (default: 1)")
    parser.add_argument("--patch-cells", type=int, help="side of a ViT's patch, in latent cells of 8 px (default: 4)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--together", type=int, default=1, help="runs that alternate in this process (default: 1)")
    args = parser.parse_args(argv)
    torch.backends.cudnn.benchmark = True
    prepared = prepare(args.pictures, size_px=args.size_px, codec=args.codec, folder=args.work)
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / f"{args.name}.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {tuple(line.get(name) for name in KEY) for line in lines}
    for result in in_turns(due_runs(args, prepared, done), together=args.together, device=torch.device(args.device)):
        with log.open("a") as file:  # a line a run: an interruption loses those under way at most
            file.write(json.dumps(result) + "\n")
        print(f"{result['model']}, {result['arm']}, seed {result['seed']}: {result['accuracy']:.1f} %", flush=True)


def due_runs(args: argparse.Namespace, prepared: Prepared, done: set[tuple[Any, ...]]) -> Iterator[Iterator[Any]]:
    """Yield the runs that are asked for and not done, not begun."""
    for seed in args.seeds:
        for kind in args.models:
            for arm in args.arms:
                epochs = args.longer * NETWORKS[kind].epochs
                cells = args.patch_cells if args.patch_cells and kind == "vit" else NETWORKS[kind].patch_cells
                codec = prepared.manifest.codec.name
                if (kind, arm, seed, epochs, args.batch_size, args.size_px, cells, codec) not in done:
                    yield train_one(
                        kind,
                        arm,
                        seed,
                        prepared,
                        epochs=epochs,
                        batch_size=args.batch_size,
                        patch_cells=cells,
                        device=torch.device(args.device),
                    )


def in_turns(runs: Iterator[Iterator[Any]], *, together: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield results of runs, as they end: `together` of them take turns, a step each, on streams of their own."""
    lanes: list[Any] = [
        [torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else nullcontext(), None]
        for _ in range(together)
    ]
    while True:
        for lane in lanes:
            if lane[1] is None:
                lane[1] = next(runs, None)
        if all(run is None for _, run in lanes):
            return
        for lane in lanes:
            stream, run = lane
            if run is None:
                continue
            with stream:
                result = next(run)
            if result is not None:
                yield result
                lane[1] = None


if __name__ == "__main__":
    main()
