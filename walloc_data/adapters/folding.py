"""Conversion of a pixel model to a latent model of the same architecture, without training.

A latent window predicts the pixels under it linearly, x ~ D z + c, with D from running sums alone. A pixel stem
e = W x + b is linear as well, so that W' = W D, b' = W c + b is the best linear prediction of e that the window allows.
Where a nonlinear stage is skipped no such product exists: `fit_stem` regresses the stage's output itself.
Both are initialisations, to be fine-tuned.
"""

import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from walloc_data.adapters.config import LatentModelConfig, latent_config, stem_module, stem_of, unwrap
from walloc_data.adapters.residual_stem import ResidualStem
from walloc_data.adapters.stem import LatentConv2d
from walloc_data.adapters.wrapping import bare_module, bare_names
from walloc_data.errors import ModelError
from walloc_data.latents import expand
from walloc_data.regression import WindowMap, WindowRegression

__all__ = ["PixelPrediction", "copy_pixel_weights", "fit_stem", "fold_stem"]


class PixelPrediction:
    """Running sums for the linear prediction of pixels from latent windows, for all models of one patch size.

    Args:
        latent_dim: channels of the latents.
        window_cells: side of the latent window.
        patch_cells: side of the pixel patch, in cells; also the windows' stride.
        margin_px: pixels around the patch that are predicted as well, for kernels that reach over it.
        cell_px: pixels along one side of a cell.
        expand_bits: the codec's latent_bits to predict from v = expand(z), for models that normalise by "expand".

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from walloc_data.adapters import PixelPrediction
        >>> from walloc_data.codec import load_codec, read_pictures
        >>> codec, info = load_codec()
        >>> pictures = torch.from_numpy(np.stack(list(read_pictures("pictures")))).permute(0, 3, 1, 2)  # (8, 3, H, W)
        >>> sums = PixelPrediction(info.latent_dim, window_cells=2, patch_cells=2)
        >>> sums.update(codec.encode(pictures), pictures)
        >>> sums.solve().weight.shape  # 16 x 16 RGB pixels from 2 x 2 cells
        torch.Size([768, 12, 2, 2])
    """

    def __init__(
        self,
        latent_dim: int = 12,
        *,
        window_cells: int,
        patch_cells: int = 1,
        margin_px: int = 0,
        cell_px: int = 8,
        expand_bits: int | None = None,
    ) -> None:
        self.patch_px, self.margin_px, self.stride_px = patch_cells * cell_px, margin_px, patch_cells * cell_px
        self.expand_bits = expand_bits
        side = self.patch_px + 2 * margin_px
        self.regression = WindowRegression(
            latent_dim,
            num_targets=3 * side * side,
            window_cells=(window_cells, window_cells),
            stride_cells=patch_cells,
            interior_only=True,
        )

    @classmethod
    def for_model(cls, model: nn.Module, pixel_model: nn.Module) -> "PixelPrediction":
        """Return empty sums with the window, patch and margin for folding the stem of `pixel_model` into `model`."""
        config, stem = _linear_stem(model)
        conv = _pixel_stem(pixel_model, unwrap(model).stem_site.path)
        before, after = _reach(model, conv, cell_px=config.codec.cell_px)
        return cls(
            config.codec.latent_dim,
            window_cells=stem.kernel_size[0],
            patch_cells=stem.stride[0],  # 1 in a residual stem: its last layer joins the cells of a patch
            margin_px=max(before, after, 0),
            cell_px=config.codec.cell_px,
            expand_bits=config.codec.latent_bits if config.normalization == "expand" else None,
        )

    def update(self, latents: Tensor, pictures: Tensor) -> None:
        """Add latents (N, C, h, w) int8 and the pictures, uint8 (N, 3, H, W), that they were made from."""
        z = latents.float()
        if self.expand_bits is not None:
            z = expand(z, latent_bits=self.expand_bits)
        self.regression.update(z, self._patches(pictures))

    def _patches(self, pictures: Tensor) -> Tensor:
        n, _, height, width = pictures.shape
        x = F.pad(pictures.float() / 255, (self.margin_px,) * 4)
        grid = (height // self.stride_px, width // self.stride_px)
        return F.unfold(x, self.patch_px + 2 * self.margin_px, stride=self.stride_px).reshape(n, -1, *grid)

    def solve(self) -> WindowMap:
        """Return the map from latents to pixels in [0, 1], (3 * side * side) per window."""
        return self.regression.solve()

    def psnr_db(self, fitted: WindowMap) -> float:
        """Return the PSNR of the map on the pixels seen: 10 log10(1 / mean squared error)."""
        squared = self.regression.relative_error(fitted) * self.regression.variance()
        return float(-10 * squared.mean().log10())


def _linear_stem(model: nn.Module) -> tuple[LatentModelConfig, LatentConv2d]:
    config = latent_config(model)
    if config.stem_hidden_channels is not None and config.stem_blocks is None:
        raise ModelError(
            f"{config.name}: a stem of two layers cannot be folded: create the model without stem_hidden_channels"
        )
    return config, stem_of(model)


def _pixel_stem(pixel_model: nn.Module, path: str) -> nn.Conv2d:
    module: nn.Module = bare_module(pixel_model).get_submodule(path)
    while isinstance(module, nn.Sequential):
        module = module[0]
    if not isinstance(module, nn.Conv2d) or module.groups != 1 or module.in_channels != 3:
        raise ModelError(f"{type(pixel_model).__name__}.{path} is not a plain convolution of three-channel pixels")
    return module


def _reach(model: nn.Module, conv: nn.Conv2d, *, cell_px: int) -> tuple[int, int]:
    """Return the pixels that the stem's outputs of one window reach before and after its patch."""
    site = unwrap(model).stem_site
    patch = site.stride_cells * cell_px
    stride, kernel = conv.stride[0], conv.kernel_size[0]
    if site.feeds is not None or stride * site.shuffle != patch:
        raise ModelError(
            f"a pixel stem of stride {stride} gives {patch // stride} outputs a window, the latent stem "
            f"{site.shuffle}: only geometry 'pixel_grid', or a patch model of equal patch size, can be folded; use "
            "fit_stem for others"
        )
    if isinstance(conv.padding, str):
        raise ModelError("pixel stems with padding='same' as a string are not folded")
    # TensorFlow's SAME padding (timm's Conv2dSame has padding 0) puts the odd pixel after.
    before = (kernel - stride) // 2 if type(conv).__name__ == "Conv2dSame" else conv.padding[0]
    return before, (site.shuffle - 1) * stride + kernel - before - patch


def fold_stem(
    model: nn.Module,
    pixel_model: nn.Module,
    *,
    prediction: "WindowMap | PixelPrediction",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> None:
    """Set the stem of a latent model to the best linear prediction of a pixel model's stem.

    Args:
        model: a model made with `pretrained=` and a stem with a bias; a larger window predicts better (4 cells at
            stride 2, `stem_padding="circular"`, suit patches of 16 pixels).
        pixel_model: the model whose stem is folded.
        prediction: solved `PixelPrediction.for_model(model, pixel_model)`; unsolved for a `ResidualStem`, whose rank
            is spent by the windows' covariance.
        mean, std: the pixel model's normalisation; default: its `pretrained_cfg`.

    Example:
        >>> import timm, torch, numpy as np
        >>> from walloc_data.adapters import PixelPrediction, create_latent_model, fold_stem
        >>> from walloc_data.codec import load_codec, read_pictures
        >>> pixel_model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=2)  # or pretrained=True
        >>> model = create_latent_model("vit_tiny_patch16_224", dataset="my-latents", depth=1, pretrained=pixel_model)
        >>> pictures = torch.from_numpy(np.stack(list(read_pictures("pictures")))).permute(0, 3, 1, 2)  # (8, 3, H, W)
        >>> sums = PixelPrediction.for_model(model, pixel_model)
        >>> sums.update(load_codec()[0].encode(pictures), pictures)
        >>> fold_stem(model, pixel_model, prediction=sums.solve())
        >>> sums.psnr_db(sums.solve()) > 20  # of the pixels that the stem now sees
        True
    """
    config, stem = _linear_stem(model)
    conv = _pixel_stem(pixel_model, unwrap(model).stem_site.path)
    whole = stem_module(model)
    sums, prediction = (
        (prediction, prediction.solve()) if isinstance(prediction, PixelPrediction) else (None, prediction)
    )
    if sums is None and isinstance(whole, ResidualStem):
        raise ModelError("a residual stem is folded from the sums themselves: pass the PixelPrediction, not solve()")
    before, after = _reach(model, conv, cell_px=config.codec.cell_px)
    margin = max(before, after, 0)
    side = stem.stride[0] * config.codec.cell_px + 2 * margin
    if prediction.weight.shape[0] != 3 * side * side:
        raise ModelError(
            f"the prediction has {prediction.weight.shape[0]} targets; this stem needs 3 x {side} x {side}: "
            "make it by PixelPrediction.for_model(model, pixel_model)"
        )
    cfg: Any = getattr(bare_module(pixel_model), "pretrained_cfg", {})
    mu = torch.tensor(mean or cfg["mean"], dtype=torch.float64)[:, None, None]
    sigma = torch.tensor(std or cfg["std"], dtype=torch.float64)[:, None, None]
    kernel = conv.weight.detach().cpu().double() / sigma  # (C_out, 3, k, k), of pixels in [0, 1]
    offset = -(kernel * mu).sum((1, 2, 3))
    if conv.bias is not None:
        offset = offset + conv.bias.detach().cpu().double()
    site = unwrap(model).stem_site
    size, stride, k = site.shuffle, conv.stride[0], conv.kernel_size[0]
    if isinstance(whole, ResidualStem) and site.stride_cells > 1:
        # Each cell of the patch sees its own block of the kernel.
        cell, n = config.codec.cell_px, site.stride_cells
        blocks = kernel.reshape(-1, 3, n, cell, n, cell).permute(2, 4, 0, 1, 3, 5)  # (n, n, C_out, 3, cell, cell)
        flat = blocks.reshape(n * n, kernel.shape[0], -1)
        offset = offset + flat.sum(0) @ prediction.bias.double()
    else:
        # One row of pixel weights for each output position in the window: the kernel, moved.
        rows = torch.zeros(kernel.shape[0], size, size, 3, side, side, dtype=torch.float64)
        for i in range(size):
            for j in range(size):
                top, left = margin - before + i * stride, margin - before + j * stride
                rows[:, i, j, :, top : top + k, left : left + k] = kernel
        flat = rows.reshape(1, kernel.shape[0] * size * size, -1)  # PixelShuffle's own order: channel, row, column
        offset = flat[0] @ prediction.bias.double() + offset.repeat_interleave(size * size)
    weight = flat @ prediction.weight.double().flatten(1)
    if isinstance(whole, ResidualStem) and sums is not None:
        whole.fold(weight, offset, covariance=sums.regression.covariance())
    else:
        stem.fold(weight[0].reshape(-1, *prediction.weight.shape[1:]), offset)


def fit_stem(model: nn.Module, *, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Fit a stem by least squares to the pixel model's features that it replaces, if stages were skipped.

    Args:
        model: a latent model whose stem has a bias.
        batches: (latents int8 (N, C, h, w), targets (N, C_out, h', w')), where the targets are the features of the
            pixel model on the same pictures, before the norm that follows.

    Returns:
        The error on the pictures seen, relative to the targets' variance.

    Example:
        >>> import torch
        >>> from walloc_data import LatentDataset, create_latent_model
        >>> from walloc_data.adapters import fit_stem
        >>> train = LatentDataset("my-latents")
        >>> model = create_latent_model("resnet18", dataset=train, stem_bias=True)
        >>> latents, labels = next(iter(train.loader(batch_size=8)))
        >>> targets = latents[:, :1].float().repeat(1, 64, 1, 1)  # for a pixel model's features
        >>> round(fit_stem(model, batches=[(latents, targets)]), 3)
        0.0
    """
    config, stem = _linear_stem(model)
    if config.stem_blocks is not None:
        raise ModelError(f"{config.name}: a stem with residual blocks is trained, by adapt_model, not fitted")
    kernel = (int(stem.kernel_size[0]), int(stem.kernel_size[1]))
    sums = WindowRegression(
        config.codec.latent_dim,
        num_targets=stem.out_channels,
        window_cells=kernel,
        stride_cells=stem.stride[0],
        interior_only=True,
    )
    for latents, targets in batches:
        z = latents.float()
        if config.normalization == "expand":
            z = expand(z, latent_bits=config.codec.latent_bits)
        sums.update(z, F.pixel_unshuffle(targets, stem.shuffle) if stem.shuffle > 1 else targets)
    fitted = sums.solve()
    stem.fold(fitted.weight.double(), fitted.bias.double())
    return float((sums.relative_error(fitted) * sums.variance()).sum() / sums.variance().sum())


def copy_pixel_weights(model: nn.Module, pixel_model: nn.Module) -> None:
    """Copy all weights except those of the stem from a pixel model of the same name.

    timm's checkpoint filter resamples position embeddings and bias tables. Norms that changed width and stages that
    became Identity are skipped.

    Raises:
        ModelError: other weights are missing, left over or of another shape.

    Example:
        >>> import timm
        >>> import torch
        >>> from walloc_data.adapters import copy_pixel_weights, create_latent_model
        >>> pixel_model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=2)
        >>> model = create_latent_model("vit_tiny_patch16_224", dataset="my-latents", depth=1)
        >>> copy_pixel_weights(model, pixel_model)
        >>> torch.equal(model.head.weight, pixel_model.head.weight), model.pos_embed.shape
        (True, torch.Size([1, 37, 192]))
    """
    config = latent_config(model)
    inner = unwrap(model)
    site = inner.stem_site
    left_out = (site.path, *site.fresh, *site.skipped)
    source = {
        name: value
        for name, value in bare_names(bare_module(pixel_model).state_dict()).items()
        if not any(name == part or name.startswith(part + ".") for part in left_out)
    }
    module: Any = sys.modules[type(inner).__module__]
    if hasattr(module, "checkpoint_filter_fn"):
        with warnings.catch_warnings():
            # timm resamples bias tables by indexing that torch warns of; it is not ours to change.
            warnings.simplefilter("ignore", UserWarning)
            source = module.checkpoint_filter_fn(source, inner)
    classifier = str(inner.pretrained_cfg.get("classifier", "fc"))
    own = inner.state_dict()
    if config.num_classes == 0:  # features: the pixel model's classifier has no place
        heads = inner.pretrained_cfg.get("classifier", "fc")
        heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        source = {name: value for name, value in source.items() if not name.startswith(heads)}
    if f"{classifier}.weight" in source and source[f"{classifier}.weight"].shape != own[f"{classifier}.weight"].shape:
        raise ModelError(
            f"{config.name}: the pixel model has {len(source[f'{classifier}.weight'])} classes, this one "
            f"{config.num_classes}: reset its classifier first, or pass num_classes="
        )
    expected = {name for name in own if not any(name == part or name.startswith(part + ".") for part in left_out)}
    wrong = sorted(name for name in expected & set(source) if own[name].shape != source[name].shape)
    missing, unexpected = sorted(expected - set(source)), sorted(set(source) - expected)
    if wrong or missing or unexpected:
        raise ModelError(
            f"{config.name}: the pixel model does not fit: missing {missing[:5]}, left over {unexpected[:5]}, "
            f"of another shape {wrong[:5]}"
        )
    inner.load_state_dict(source, strict=False)
