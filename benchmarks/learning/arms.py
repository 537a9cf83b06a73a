"""The arms of the experiment: ways of giving one network the same pictures, and the first layer that each needs."""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.learning.data import Prepared
from benchmarks.learning.pixel_stem import IMAGENET_MEAN, IMAGENET_STD, PixelConv2d, replace_module
from walloc_data.adapters import PixelPrediction, create_latent_model, fold_stem, stem_of, summarize
from walloc_data.regression import WindowMap

FIRST_LAYER_CHANNELS = 48  # of a stem of two layers
FOLD_PICTURES = 2000  # that the linear prediction of pixels is fitted on
_predictions: dict[Any, WindowMap] = {}  # fitted once for all seeds


@dataclass(frozen=True)
class Arm:
    """One way of giving a network the pictures."""

    array: Literal["pixels", "reduced", "jpeg", "latents"]
    flip: Literal["none", "exact", "naive", "fitted", "stored", "stem", "encoded"]
    normalization: Literal["standard", "expand", "one scale"] = "standard"
    extra_window_cells: int = 0  # stem windows that overlap
    stem: Literal["one layer", "two layers", "folded"] = "one layer"


ARMS = {
    "pixels, full resolution": Arm("pixels", "exact"),
    "pixels, reduced 16x": Arm("reduced", "exact"),
    "pixels, JPEG of the latents' bytes": Arm("jpeg", "exact"),
    "pixels, full resolution, two-layer stem": Arm("pixels", "exact", stem="two layers"),
    "pixels, reduced 16x, two-layer stem": Arm("reduced", "exact", stem="two layers"),
    "latents, no flip": Arm("latents", "none"),
    "latents, cells reversed": Arm("latents", "naive"),
    "latents, fitted flip": Arm("latents", "fitted"),
    "latents, mirrored stem": Arm("latents", "stem"),
    "latents, stored mirrors": Arm("latents", "stored"),
    "latents, stored mirrors, expanded": Arm("latents", "stored", normalization="expand"),
    "latents, stored mirrors, one scale": Arm("latents", "stored", normalization="one scale"),
    "latents, stored mirrors, overlapping stem": Arm("latents", "stored", extra_window_cells=2),
    "latents, stored mirrors, two-layer stem": Arm("latents", "stored", stem="two layers"),
    "latents, stored mirrors, folded start": Arm("latents", "stored", stem="folded"),
    # Not a data set of latents: what augmentation finer than a cell would give.
    "latents, encoded after augmenting pixels": Arm("latents", "encoded"),
}


@dataclass(frozen=True)
class Network:
    """Network body that the arms share."""

    name: str  # timm's
    options: dict[str, Any]
    patch_cells: int  # one token, or one cell of the first grid, covers so many latent cells a side
    lr: float
    epochs: int


# Of one cost: at 160 px both take about 70 million multiply-accumulates.
NETWORKS = {
    "vit": Network("vit_tiny_patch16_224", {"depth": 6}, patch_cells=4, lr=1e-3, epochs=14),
    "resnet": Network(
        "resnet18", {"channels": (32, 64, 128, 256), "geometry": "all_stages"}, patch_cells=1, lr=2e-3, epochs=8
    ),
}


class MirroredStem(nn.Module):
    """Two first layers in training: one for latents, one of its own for latents whose cells were reversed.

    The second learns what a mirrored cell looks like; validation uses the first alone. Its start is the first
    composed with nothing: the fitted operator is not needed.
    """

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.plain, self.mirrored = stem, copy.deepcopy(stem)
        self.reversed_rows: Tensor | None = None  # (N, 1, 1, 1) bool of the batch to come

    def forward(self, latents: Tensor) -> Tensor:
        out: Tensor = self.plain(latents)
        if not self.training or self.reversed_rows is None:
            return out
        return torch.where(self.reversed_rows, self.mirrored(latents), out)


def make_model(kind: str, arm: Arm, prepared: Prepared, *, side_px: int, patch_cells: int) -> nn.Module:
    """Build the arm's network: the same body for all, with the stem that its input needs.

    Args:
        side_px: side of the arm's pixels; for latents, of their grid.
        patch_cells: side of a ViT's patch.

    Returns:
        The model; its `num_macs` are multiply-accumulates a sample.
    """
    network = NETWORKS[kind]
    kwargs = dict(network.options)
    if kind == "vit":
        kwargs["patch_size"] = patch_cells
    window = None if not arm.extra_window_cells else (patch_cells if kind == "vit" else 3) + arm.extra_window_cells
    model: Any = create_latent_model(
        network.name,
        dataset=prepared.manifest,
        normalization="standard" if arm.normalization == "one scale" else arm.normalization,
        stem_kernel_cells=window,
        stem_bias=True if arm.stem == "folded" else None,
        stem_hidden_channels=FIRST_LAYER_CHANNELS if arm.stem == "two layers" else None,
        **kwargs,
    )
    model.num_macs = summarize(model).num_macs
    stem: Any = stem_of(model)
    if arm.normalization == "one scale":  # channels keep their natural proportions
        stem.latent_std.fill_(stem.latent_std.square().mean().sqrt())
    cells = prepared.manifest.splits["train"].latent_shape[1]  # type: ignore[index]
    if arm.stem == "folded":
        _fold(model, prepared)
    path = model.pretrained_cfg["first_conv"]
    if arm.array != "latents":
        pixel_stem = PixelConv2d(stem, cell_px=side_px // cells)  # pixels of this arm under one cell
        model.num_macs += (cells // stem.stride[0]) ** 2 * (pixel_stem.weight.numel() - stem.weight.numel())
        replace_module(model, path, pixel_stem)
        if kind == "vit":
            model.patch_embed.img_size = None  # its check is in cells
    if arm.flip == "stem":
        replace_module(model, path, MirroredStem(stem))
    return model  # type: ignore[no-any-return]


def _fold(model: Any, prepared: Prepared) -> None:
    """Start where a network of pixels starts: its random stem, predicted from latents."""
    pixel_model = copy.deepcopy(model)
    replace_module(pixel_model, model.stem_site.path, PixelConv2d(stem_of(model), cell_px=8))
    fold_stem(
        model,
        pixel_model,
        prediction=_prediction(prepared, model, pixel_model),
        mean=tuple(value / 255 for value in IMAGENET_MEAN),
        std=tuple(value / 255 for value in IMAGENET_STD),
    )


def _prediction(prepared: Prepared, model: Any, pixel_model: nn.Module) -> WindowMap:
    """Fit the pixels that the stem of `pixel_model` sees, from the latents that the stem of `model` sees."""
    sums = PixelPrediction.for_model(model, pixel_model)
    key = (prepared.folder, stem_of(model).kernel_size, sums.patch_px, sums.margin_px)
    if key not in _predictions:
        latents, pictures = prepared.array("latents", "train"), prepared.array("pixels", "train")
        rows = np.sort(np.random.default_rng(0).permutation(len(latents))[:FOLD_PICTURES])
        for some in np.array_split(rows, -(-len(rows) // 100)):
            sums.update(torch.from_numpy(latents[some]), torch.from_numpy(pictures[some]))
        _predictions[key] = sums.solve()
    return _predictions[key]
