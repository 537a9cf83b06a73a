"""How far do stored latents carry? An ImageNet-sized network from scratch at fastai's budgets, in minutes of one GPU.

    python -m benchmarks.learning.frontier prepare PICTURES --size-px 192 --work SCRATCH --out .frontier
    python -m benchmarks.learning.frontier train .frontier --results RUNS --limit-s 120 [--arms latents-crops ...]

Arms, of one network (resnet50d with Mish, first stage skipped, 16 x 16 cells or 32 x 32 reduced pixels) and one policy:

    latents-crops    stored latents, RandomResizedCrop and flips by the codec's operators
    latents-shifts   stored latents, shrunk whole, shifted by up to two cells, flips by the operators
    reduced-crops    as many values as pixels, torchvision's RandomResizedCrop of the same scales, flips

`train` needs torch, timm, numpy, pillow and safetensors, and of .frontier only the folder of the arms asked for. It
augments a whole epoch at once on the device, trains the seeds of an arm side by side, captured as CUDA graphs, and
writes a line of RUNS/frontier.jsonl a run. First it chooses the rate, by a short run of each with a seed of its own.
Runs that have a line there, or in this folder's results, are not run again; a group of runs that would end after the
limit is not begun, and one that passes it is dropped.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import Lookahead
from torch import Tensor, nn
from torch.nn import functional as F

import walloc_data
from benchmarks.learning.packed import prepare, unpack_split
from benchmarks.learning.pixel_stem import PixelConv2d, replace_module
from walloc_data.adapters import create_latent_model, stem_of, summarize
from walloc_data.format import Manifest
from walloc_data.transforms import LatentOperators, RandomResizedCrop, RandomTranslate, Resize
from walloc_data.transforms.resizing import random_crops

STARTED = time.monotonic()
KNOWN = Path(__file__).parent / "results" / "frontier.jsonl"
ARMS = {"latents-crops": "latents", "latents-shifts": "latents", "reduced-crops": "reduced"}  # arm: folder
SCALE, RATIO = (0.35, 1.0), (3 / 4, 4 / 3)
CELLS = 16  # a side of what is trained on
CELL_PX = 2  # of reduced pixels under one cell
LOOKAHEAD_STEPS = 6  # Ranger's, as fastai's records were trained
WARM_UP_STEPS = 3  # before a graph is captured: libraries choose their kernels, the optimizer makes its state
PROBE_SEED = 1000  # of the runs that choose a rate
KEY = ("arm", "model", "seed", "epochs", "lr", "size_px")


@dataclass(frozen=True)
class Data:
    """One folder of the packed data, on the device."""

    x: dict[str, Tensor]  # by split: (N, 12, h, w) int8 or (N, 3, H, W) uint8
    labels: dict[str, Tensor]
    manifest: Manifest
    operators: LatentOperators
    size_px: int
    decode_s: float


def load(folder: Path, kind: str, device: torch.device) -> Data:
    begun = time.monotonic()
    manifest = Manifest.from_json((folder / kind / "walloc.json").read_bytes(), where=f"{kind}/walloc.json")
    dim = manifest.codec.latent_dim if kind == "latents" else None
    arrays = {split: unpack_split(folder / kind / f"{split}.npz", latent_dim=dim) for split in ("train", "val")}
    decode_s = time.monotonic() - begun
    codec = Path(walloc_data.__file__).parent / "codec" / "bundled" / manifest.codec.name
    return Data(
        {split: torch.from_numpy(x).to(device) for split, (x, _) in arrays.items()},
        {split: torch.from_numpy(labels).to(device) for split, (_, labels) in arrays.items()},
        manifest,
        LatentOperators.load(codec, spec=manifest.codec),
        manifest.settings.size_px or 0,
        decode_s,
    )


def resized_pixels(x: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(N, 3, H, W) to (N, 3, side, side): each sample's box (top, left, height, width), bilinear and antialiased.

    What torchvision does to one picture, as two batched matrix products.
    """

    def weights(start: Tensor, length: Tensor, size: int) -> Tensor:
        scale = (length / side)[:, None, None]
        centres = start[:, None, None] + (torch.arange(side, device=x.device)[None, :, None] + 0.5) * scale - 0.5
        cells = torch.arange(size, device=x.device)[None, None, :]
        inside = (cells >= start[:, None, None]) & (cells < (start + length)[:, None, None])
        w = (1 - (cells - centres).abs() / scale.clamp_min(1)).clamp_min(0) * inside
        return w / w.sum(2, keepdim=True)

    rows, columns = weights(boxes[:, 0], boxes[:, 2], x.shape[2]), weights(boxes[:, 1], boxes[:, 3], x.shape[3])
    return torch.einsum("nih,nchw,njw->ncij", rows, x.float(), columns)


class Pixels(nn.Module):
    """RandomResizedCrop and flips of reduced pixels."""

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, side = len(x), x.shape[2]
        size = random_crops(n, (side, side), SCALE, RATIO, generator=generator).round()
        place = (torch.rand(n, 2, generator=generator) * (side - size + 1)).floor()
        heads = torch.rand(n, generator=generator) < 0.5
        out = resized_pixels(x, torch.cat([place, size], 1).to(x.device), CELLS * CELL_PX)
        return torch.where(heads.to(x.device)[:, None, None, None], out.flip(-1), out)


def augmentation(arm: str, data: Data, device: torch.device) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Whole epochs: a batch and a generator to a batch of floats."""
    if arm == "reduced-crops":
        return Pixels()
    ops = data.operators
    if arm == "latents-crops":
        crop = RandomResizedCrop(CELLS, operators=ops, scale=SCALE, ratio=RATIO, flip_p=0.5).to(device)
        return lambda x, generator: crop(x, generator=generator)
    whole = RandomResizedCrop(CELLS, operators=ops, scale=(1, 1), ratio=(1, 1), flip_p=0.5).to(device)
    shift = RandomTranslate(2, fill=data.manifest.splits["train"].statistics.mean).to(device)  # type: ignore[union-attr]
    return lambda x, generator: shift(whole(x, generator=generator), generator=generator)


def trying_no_kernels() -> Any:
    """For batches of many sizes, each seen once: cuDNN would try every kernel for each."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False)


def in_parts(x: Tensor, function: Callable[[Tensor], Tensor], *, size: int = 16384) -> Tensor:
    """Half-precision results of a large batch, without its intermediates all at once."""
    return torch.cat([function(x[i : i + size]).half() for i in range(0, len(x), size)])


def views(arm: str, data: Data, device: torch.device) -> dict[str, Tensor]:
    """The validation pictures, whole: at the size trained at, and as stored."""
    x = data.x["val"]
    if arm == "reduced-crops":
        side = torch.tensor(float(x.shape[2]), device=device)

        def whole(part: Tensor) -> Tensor:
            boxes = torch.stack([torch.zeros(2, device=device), side.expand(2)]).flatten().expand(len(part), 4)
            return resized_pixels(part, boxes, CELLS * CELL_PX)
    else:
        whole = Resize(CELLS, operators=data.operators).to(device)
    return {"trained": in_parts(x, whole), "stored": x.half()}


class Run:
    """One arm, one seed: model, optimizer, graph."""

    def __init__(self, arm: str, data: Data, args: argparse.Namespace, *, seed: int, epochs: int, lr: float) -> None:
        self.arm, self.data, self.seed, self.epochs, self.args, self.lr = arm, data, seed, epochs, args, lr
        self.device = data.x["train"].device
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        model: Any = create_latent_model(
            args.model,
            codec=data.manifest.codec,
            statistics=data.manifest.splits["train"].statistics,
            input_shape=(data.manifest.codec.latent_dim, CELLS, CELLS),
            num_classes=10,
            stem_hidden_channels=64,
            act_layer="mish",
        )
        self.macs = summarize(model).num_macs
        if arm == "reduced-crops":
            first = stem_of(model)
            pixels = PixelConv2d(first, cell_px=CELL_PX)
            self.macs += CELLS**2 * (pixels.weight.numel() - first.weight.numel())
            replace_module(model, model.pretrained_cfg["first_conv"], pixels)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        cuda = self.device.type == "cuda"
        self.inner = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=torch.tensor(lr, device=self.device) if cuda else lr,
            betas=(0.95, 0.99),
            eps=1e-6,
            fused=cuda,
            capturable=cuda,
        )
        self.lookahead = Lookahead(self.inner, alpha=0.5, k=LOOKAHEAD_STEPS)
        self.augment = augmentation(arm, data, self.device)
        self.steps = len(data.x["train"]) // args.batch_size
        self.stream = torch.cuda.Stream() if cuda else None
        self.graph: Any = None
        self.count = 0
        self.losses: list[float] = []

    def rate(self) -> float:
        """Warm-up over a tenth, flat, cosine over the last 40 per cent."""
        total = self.epochs * self.steps
        done = self.count / total
        if done < 0.1:
            return float(self.lr * max(done, 0.5 / total) * 10)
        return float(self.lr * (1.0 if done < 0.6 else 0.5 + 0.5 * np.cos(np.pi * (done - 0.6) / 0.4)))

    def begin_epoch(self) -> None:
        order = torch.randperm(len(self.data.x["train"]), generator=self.generator).to(self.device)
        x = self.data.x["train"][order]
        with trying_no_kernels():
            self.epoch_x = in_parts(x, lambda part: self.augment(part, self.generator))
        self.epoch_x = self.epoch_x.contiguous(memory_format=torch.channels_last)
        self.epoch_labels = self.data.labels["train"][order]
        self.loss_sum = torch.zeros((), device=self.device)
        self.model.train()

    def step(self, i: int) -> None:
        for group in self.inner.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.rate())
            else:
                group["lr"] = self.rate()
        rows = slice(i * self.args.batch_size, (i + 1) * self.args.batch_size)
        x, target = self.epoch_x[rows], self.epoch_labels[rows]
        if not self.args.graphs or self.count < WARM_UP_STEPS:
            loss = self.learn(x, target)
        else:
            if self.graph is None:
                self.x, self.target, self.graph = x.clone(), target.clone(), torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph, stream=torch.cuda.Stream()):
                    self.loss = self.learn(self.x, self.target)
            self.x.copy_(x)
            self.target.copy_(target)
            self.graph.replay()
            loss = self.loss
        self.count += 1
        if self.count % LOOKAHEAD_STEPS == 0:
            self.lookahead.sync_lookahead()
        self.loss_sum += loss

    def learn(self, x: Tensor, target: Tensor) -> Tensor:
        self.inner.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False):
            logits = self.model(x.float())
        loss = F.cross_entropy(logits.float(), target, label_smoothing=0.1)
        loss.backward()
        self.inner.step()
        return loss.detach()

    def end_epoch(self) -> None:
        self.losses.append(float(self.loss_sum) / max(1, self.steps))

    def accuracy(self, x: Tensor) -> float:
        """Top-1 in percent."""
        self.model.eval()
        correct = torch.zeros((), device=self.device)
        with (
            torch.inference_mode(),
            trying_no_kernels(),
            torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False),
        ):
            for start in range(0, len(x), 512):
                labels = self.data.labels["val"][start : start + 512]
                correct += (self.model(x[start : start + 512].float()).argmax(1) == labels).sum()
        return 100 * float(correct) / len(x)


def train_together(runs: list[Run], *, deadline: float) -> list[dict[str, Any]] | None:
    """Train runs of one arm in turns, a step each on streams of their own; None where the deadline passed."""
    begun = time.monotonic()
    device, epochs = runs[0].device, runs[0].epochs
    for epoch in range(epochs):
        for run in runs:
            run.begin_epoch()
        if device.type == "cuda":
            torch.cuda.synchronize()
        for i in range(runs[0].steps):
            for run in runs:
                with torch.cuda.stream(run.stream):
                    run.step(i)
            if i % 16 == 0 and time.monotonic() > deadline:
                return None
        for run in runs:
            with torch.cuda.stream(run.stream):
                run.end_epoch()
        print(f"  epoch {epoch}: loss {runs[0].losses[-1]:.3f}, {time.monotonic() - begun:.1f} s", flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.monotonic() - begun
    with trying_no_kernels():
        held_out = views(runs[0].arm, runs[0].data, device)
    results = []
    for run in runs:
        top1 = {name: run.accuracy(x) for name, x in held_out.items()}
        results.append(
            {
                "arm": run.arm,
                "model": run.args.model,
                "seed": run.seed,
                "epochs": epochs,
                "lr": run.lr,
                "size_px": run.data.size_px,
                "batch_size": run.args.batch_size,
                "weight_decay": run.args.weight_decay,
                "top1": top1["trained"],
                "top1_stored_size": top1["stored"],
                "loss": run.losses,
                "num_macs": run.macs,
                "num_parameters": sum(p.numel() for p in run.model.parameters()),
                "num_samples": len(run.data.x["train"]),
                "num_val": len(run.data.x["val"]),
                "seconds": seconds,  # of all that were trained together
                "together": len(runs),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
                "torch": torch.__version__,
            }
        )
    return results


def lines_of(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    args.graphs = args.graphs and device.type == "cuda"
    data: dict[str, Data] = {}
    # Decoded before CUDA is touched: the workers are forks.
    for arm in args.arms:
        if ARMS[arm] not in data:
            data[ARMS[arm]] = load(args.folder, ARMS[arm], torch.device("cpu"))
    if args.first:
        for kind, some in data.items():
            part = {split: x[: args.first] for split, x in some.x.items()}
            data[kind] = Data(part, {s: y[: args.first] for s, y in some.labels.items()}, *_rest(some))
    for kind, some in data.items():
        moved = {split: x.to(device) for split, x in some.x.items()}
        data[kind] = Data(moved, {split: y.to(device) for split, y in some.labels.items()}, *_rest(some))
        print(f"{kind}: decoded in {some.decode_s:.1f} s", flush=True)
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
        known = lines_of(KNOWN, log)
        done = {tuple(line.get(name) for name in KEY) for line in known}
        runs = [(seed, best_lr.get(kind, args.lrs[0]) if lr is None else lr) for seed, lr in pairs]
        due = [(seed, lr) for seed, lr in runs if (arm, args.model, seed, epochs, lr, some.size_px) not in done]
        steps = len(some.x["train"]) // args.batch_size * epochs * len(due)
        left = deadline - time.monotonic()
        if due and a_step * steps > left:
            print(f"{arm}, {epochs} epochs: {a_step * steps:.0f} s would pass the limit in {left:.0f} s", flush=True)
            continue
        if due:
            print(f"{arm}, {epochs} epochs, (seed, rate) {due}, {left:.0f} s left", flush=True)
            made = [Run(arm, some, args, seed=seed, epochs=epochs, lr=lr) for seed, lr in due]
            results = train_together(made, deadline=deadline)
            if results is None:
                print("  the limit has passed: dropped", flush=True)
                return
            a_step = results[0]["seconds"] / max(1, steps)
            with log.open("a") as file:
                file.writelines(json.dumps(result) + "\n" for result in results)
            for result in results:
                print(
                    f"  seed {result['seed']}, rate {result['lr']}: {result['top1']:.2f} %, at the stored size "
                    f"{result['top1_stored_size']:.2f} %, {result['seconds']:.1f} s for {result['together']}",
                    flush=True,
                )
        if pairs[0][0] == PROBE_SEED:
            found = [line for line in lines_of(KNOWN, log) if line["seed"] == PROBE_SEED and line["arm"] == arm]
            best_lr[kind] = max(found, key=lambda line: line["top1"])["lr"]


def _rest(some: Data) -> tuple[Manifest, LatentOperators, int, float]:
    return some.manifest, some.operators, some.size_px, some.decode_s


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("prepare")
    packing.add_argument("pictures", type=Path, help="folder with train/ and val/, one folder a class")
    packing.add_argument("--size-px", type=int, default=192)
    packing.add_argument("--work", type=Path, required=True, help="where the data set of latents is kept")
    packing.add_argument("--out", type=Path, default=Path(".frontier"))
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("--results", type=Path, required=True, help="folder for frontier.jsonl")
    training.add_argument("--limit-s", type=float, required=True, help="from the start of the process")
    training.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="most valuable first")
    training.add_argument("--epochs", nargs="+", type=int, default=[5, 20])
    training.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    training.add_argument("--model", default="resnet50d")
    training.add_argument(
        "--lrs",
        nargs="+",
        type=float,
        default=[2e-3, 4e-3, 8e-3],
        help="the best in a short run for latents, and in one for pixels, is taken (default: %(default)s)",
    )
    training.add_argument("--weight-decay", type=float, default=0.05)
    training.add_argument("--batch-size", type=int, default=64)
    training.add_argument("--first", type=int, default=0, help="only so many pictures of each split: to try it")
    training.add_argument("--no-graphs", dest="graphs", action="store_false", help="without CUDA graphs")
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.command == "prepare":
        prepare(args.pictures, size_px=args.size_px, out=args.out, work=args.work)
    else:
        train(args)


if __name__ == "__main__":
    main()
