"""Accuracy of one network trained from scratch on inputs that differ by arm; one line a run.

    python -m benchmarks.learning.frontier prepare PICTURES --size-px 192 --work SCRATCH --out .frontier --pixels
    python -m benchmarks.learning.frontier train .frontier --results RUNS --limit-s 120 [--arms latents-crops ...]

Arms, of one network on 16 x 16 tokens and one policy:

    latents-crops    stored latents, RandomResizedCrop and flips by the codec's operators
    latents-shifts   stored latents, shrunk whole, shifted by up to two cells, flips by the operators
    reduced-crops    as many values as pixels, torchvision's RandomResizedCrop of the same scales, flips
    pixels-crops     all pixels, the same, to as many tokens: only where `prepare` was told --pixels

The default network is resnet50d with Mish, its first stage skipped, at fastai's budgets of 5 and 20 epochs: minutes of
one GPU, which trains the seeds of an arm side by side, captured as CUDA graphs. On a CPU give --threads 1 and a smaller
network, as in README.md. `train` augments a whole epoch at once, and needs of .frontier only the folders of the arms
asked for. Of several rates it takes the best of a short run of each with a seed of its own.

A run is a line of RUNS/frontier.jsonl; those there, or in this folder's results, are not run again. One that was killed
goes on from its last epoch's checkpoint in RUNS/checkpoints (only of runs that train alone). A group of runs that would
end after the limit is not begun, and one that passes it is stopped.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning.frontier_plot import PROBE_SEED
from benchmarks.learning.frontier_run import Run, key_of, train_together
from benchmarks.learning.frontier_views import ARMS, Data, load
from benchmarks.learning.packed import prepare

STARTED = time.monotonic()
KNOWN = Path(__file__).parent / "results" / "frontier.jsonl"
MODEL_KWARGS = {"stem_hidden_channels": 64, "act_layer": "mish"}


def lines_of(*paths: Path) -> list[dict[str, Any]]:
    """Read every line of results there is."""
    return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]


def train(args: argparse.Namespace) -> None:
    """Do the runs asked for that have no line yet."""
    device = torch.device(args.device)
    args.graphs = args.graphs and device.type == "cuda"
    if args.threads:
        torch.set_num_threads(args.threads)
    data: dict[str, Data] = {}
    # Decoded before CUDA is touched: the workers are forks.
    for kind in dict.fromkeys(ARMS[arm] for arm in args.arms):
        data[kind] = load(args.folder, kind)
        print(f"{kind}: read in {data[kind].decode_s:.1f} s", flush=True)
        if args.first:
            data[kind] = data[kind].first(args.first)
    data = {kind: some.to(device) for kind, some in data.items()}
    torch.backends.cudnn.benchmark = True
    args.results.mkdir(parents=True, exist_ok=True)
    log = args.results / "frontier.jsonl"
    deadline = STARTED + args.limit_s
    best_lr: dict[str, float] = {}  # by kind of data
    a_step = 0.0  # seconds of one run's step, as far as measured
    probes = [(args.epochs[0], arm, [(PROBE_SEED, lr) for lr in args.lrs]) for arm in args.arms if len(args.lrs) > 1]
    wanted = [(epochs, arm, [(seed, None) for seed in args.seeds]) for epochs in args.epochs for arm in args.arms]
    for epochs, arm, pairs in probes + wanted:
        kind = ARMS[arm]
        some = data[kind]
        if pairs[0][0] == PROBE_SEED and kind in best_lr:
            continue  # arms of one kind share their rate
        done = {key_of(line) for line in lines_of(KNOWN, log)}
        runs = [(seed, best_lr.get(kind, args.lrs[0]) if lr is None else lr) for seed, lr in pairs]
        made = [Run(arm, some, args, seed=seed, epochs=epochs, lr=lr) for seed, lr in runs]
        made = [run for run in made if key_of(run.facts()) not in done]
        due = [(run.seed, run.lr) for run in made]
        steps = len(some.x["train"]) // args.batch_size * epochs * len(due)
        left = deadline - time.monotonic()
        if due and a_step * steps > left:
            print(f"{arm}, {epochs} epochs: {a_step * steps:.0f} s would pass the limit in {left:.0f} s", flush=True)
            continue
        if due:
            print(f"{arm}, {epochs} epochs, (seed, rate) {due}, {left:.0f} s left", flush=True)
            results = train_together(made, deadline=deadline, checkpoints=args.results / "checkpoints")
            if results is None:
                print("  the limit has passed: stopped", flush=True)
                return
            a_step = results[0]["seconds"] / max(1, steps)
            with log.open("a") as file:
                file.writelines(json.dumps(result) + "\n" for result in results)
            for result in results:
                print(
                    f"  seed {result['seed']}, rate {result['lr']}: {result['top1']:.2f} %, "
                    f"{result['seconds']:.1f} s for {result['together']}",
                    flush=True,
                )
        if pairs[0][0] == PROBE_SEED:
            found = [line for line in lines_of(KNOWN, log) if line["seed"] == PROBE_SEED and line["arm"] == arm]
            best_lr[kind] = max(found, key=lambda line: line["top1"])["lr"]


def main(argv: list[str] | None = None) -> None:
    """Pack the data, or train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("prepare")
    packing.add_argument("pictures", type=Path, help="folder with train/ and val/, with one folder per class")
    packing.add_argument("--size-px", type=int, default=192)
    packing.add_argument("--work", type=Path, required=True, help="folder for the data set of latents")
    packing.add_argument("--out", type=Path, default=Path(".frontier"))
    packing.add_argument("--pixels", action="store_true", help="all pixels as well: 0.11 MB a picture at 192 px")
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("--results", type=Path, required=True, help="folder for frontier.jsonl")
    training.add_argument("--limit-s", type=float, required=True, help="time limit from the start of the process")
    training.add_argument(
        "--arms", nargs="+", default=list(ARMS)[:3], choices=list(ARMS), help="arms to run, most important first"
    )
    training.add_argument("--epochs", nargs="+", type=int, default=[5, 20])
    training.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    training.add_argument("--model", default="resnet50d")
    training.add_argument(
        "--model-kwargs",
        type=json.loads,
        default=MODEL_KWARGS,
        help="arguments of create_latent_model as JSON (default: %(default)s)",
    )
    training.add_argument("--cells", type=int, default=16, help="side of the training input (default: 16)")
    training.add_argument(
        "--cells-before",
        nargs="+",
        type=int,
        default=[],
        help="progressive resizing: sides of the input before --cells, each for the same share of the epochs",
    )
    training.add_argument(
        "--lrs",
        nargs="+",
        type=float,
        default=[2e-3, 4e-3, 8e-3],
        help="the best in a short run for latents, and in one for pixels, is taken (default: %(default)s)",
    )
    training.add_argument("--weight-decay", type=float, default=0.05)
    training.add_argument("--batch-size", type=int, default=64)
    training.add_argument("--first", type=int, default=0, help="use only N pictures per split, for a trial")
    training.add_argument("--validate-every", type=int, default=0, help="validate every N epochs, besides at the end")
    training.add_argument("--keep-weights", action="store_true", help="keep the weights in RUNS/checkpoints")
    training.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    training.add_argument(
        "--matmul-gradients", action="store_true", help="quicker on a CPU with bfloat16 units (matmul_gradients.py)"
    )
    training.add_argument("--no-graphs", dest="graphs", action="store_false", help="do not use CUDA graphs")
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.command == "prepare":
        prepare(args.pictures, size_px=args.size_px, out=args.out, work=args.work, pixels=args.pixels)
    else:
        train(args)


if __name__ == "__main__":
    main()
