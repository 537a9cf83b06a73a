"""Correction of normalisation layers of a latent model, in closed form and without labels.

A linear prediction of pixels is blurred, so the activations of a network trained on sharp pictures become smaller and
shifted, more with every layer. From the first to the last normalisation layer, the statistics (batch norm) or the scale
and bias (layer norm) are set so that the output has the same mean and standard deviation as in the pixel model on the
same pictures. Statistics of latents alone would also remove differences between data sets.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from walloc_data.adapters.config import stem_module
from walloc_data.adapters.wrapping import bare_module

__all__ = ["match_moments"]

# Limit of the scaling of a channel, because the variance of nearly constant channels is unreliable.
_LARGEST_SCALE = 4.0

_Moments = tuple[Tensor, Tensor]


@torch.no_grad()
def match_moments(model: nn.Module, pixel_model: nn.Module, *, inputs: Tensor, pictures: Tensor) -> int:
    """Match the outputs of the normalisation layers to those of the pixel model, layer by layer, on one batch.

    Args:
        model: a latent model with the weights of the pixel model, whose stem is folded or trained; or a copy of the
            pixel model, for other kinds of pictures.
        pixel_model: the pixel model.
        inputs: inputs of the model: latents (N, C, h, w). A hundred pictures suffice; each model runs once.
        pictures: (N, 3, H, W), the same pictures, normalised for the pixel model.

    Returns:
        The number of matched layers, which have the same name and shape in both models; those of the stem are skipped.

    Example:
        >>> import timm
        >>> import torch
        >>> from walloc_data.adapters import create_latent_model, match_moments
        >>> pixel_model = timm.create_model("resnet18", num_classes=2)
        >>> model = create_latent_model("resnet18", dataset="my-latents", geometry="pixel_grid", pretrained=pixel_model)
        >>> latents, pictures = torch.randn(4, 12, 12, 12), torch.randn(4, 3, 96, 96)
        >>> match_moments(model, pixel_model, inputs=latents, pictures=pictures)
        20
    """
    inner, pixel = bare_module(model), bare_module(pixel_model)
    own = _norms(inner)
    stem = stem_module(inner).modules() if hasattr(inner, "latent_config") else ()
    own_stem = {id(module) for module in stem}
    names = [name for name in own if id(own[name]) not in own_stem and name in _norms(pixel)]
    modes = inner.training, pixel.training
    inner.eval(), pixel.eval()
    try:
        wanted: dict[str, _Moments] = {}
        with _Hooks(pixel, names, lambda name, module, given: wanted.setdefault(name, _moments(module, given))):
            pixel(pictures)
        matched: list[str] = []

        def match(name: str, module: nn.Module, given: Tensor) -> None:
            if name in wanted and len(wanted[name][0]) == len(_moments(module, given)[0]):
                _set(module, _moments(module, given), wanted[name])
                matched.append(name)

        # A layer is set before it runs, so that later layers get its corrected output.
        with _Hooks(inner, names, match):
            inner(inputs)
    finally:
        inner.train(modes[0]), pixel.train(modes[1])
    return len(matched)


class _Hooks:
    """Context: call a function with each norm and its input, before it runs."""

    def __init__(self, model: Any, names: Iterable[str], call: Callable[[str, nn.Module, Tensor], Any]) -> None:
        self.handles = [
            model.get_submodule(name).register_forward_pre_hook(
                lambda module, given, name=name: call(name, module, given[0]) and None
            )
            for name in names
        ]

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def _norms(model: nn.Module) -> dict[str, nn.Module]:
    """Batch norms, and layer norms with a scale and a bias, in the order of the modules."""
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.BatchNorm2d) and module.track_running_stats)
        or (isinstance(module, nn.LayerNorm) and module.weight is not None and module.bias is not None)
    }


def _is_channels_first(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) or type(module).__name__.startswith("LayerNorm2d")


def _moments(module: nn.Module, given: Tensor) -> _Moments:
    """(C,) mean and standard deviation, float64, of what a norm's scale and bias act upon."""
    x = given
    if isinstance(module, nn.LayerNorm):
        axis = 1 if _is_channels_first(module) else -1
        centred = x - x.mean(axis, keepdim=True)
        x = centred / (centred.square().mean(axis, keepdim=True) + module.eps).sqrt()
    others = [i for i in range(x.ndim) if i != (1 if _is_channels_first(module) else x.ndim - 1)]
    variance, mean = torch.var_mean(x.float(), others, correction=0)
    return mean.double(), variance.double().clamp_min(1e-12).sqrt()


def _set(module: Any, found: _Moments, wanted: _Moments) -> None:
    """Change a norm so that inputs with the moments `found` give the outputs that inputs with `wanted` give now."""
    scale = (found[1] / wanted[1]).clamp(1 / _LARGEST_SCALE, _LARGEST_SCALE)
    if isinstance(module, nn.BatchNorm2d):
        # (x - m') / s' of the one equals (x - m) / s of the other.
        power = (module.running_var.double() + module.eps) * scale.square() - module.eps  # type: ignore[union-attr]
        centre = found[0] - scale * (wanted[0] - module.running_mean.double())  # type: ignore[union-attr]
        module.running_var.copy_(power.clamp_min(0))  # type: ignore[union-attr]
        module.running_mean.copy_(centre)  # type: ignore[union-attr]
        return
    weight = module.weight.double() / scale
    module.bias.copy_(module.bias.double() + module.weight.double() * wanted[0] - weight * found[0])
    module.weight.copy_(weight)
