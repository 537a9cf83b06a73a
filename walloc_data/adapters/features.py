"""Outputs of a model's stages, for comparing a latent model with its pixel model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from walloc_data.adapters.config import latent_config, unwrap
from walloc_data.adapters.sites import Grid
from walloc_data.adapters.wrapping import bare_module
from walloc_data.errors import ModelError

__all__ = ["compared_stages", "picture_size", "relative_error", "stage_output", "stage_outputs"]

_MOST_STAGES = 4


class _StopForward(Exception):  # noqa: N818
    """Raised after the last requested stage."""


def stage_outputs(
    model: nn.Module, inputs: Tensor, paths: Sequence[str], *, stop: bool = False
) -> tuple[list[Tensor], Tensor | None]:
    """Run a model and return the outputs of some of its modules, with gradients.

    Args:
        model: any module; a compiled one runs uncompiled.
        inputs: inputs of the model.
        paths: names of the modules.
        stop: stop after the last of them.

    Returns:
        The outputs of the modules in the order of `paths`, and the output of the model, None if it was stopped.

    Example:
        >>> import timm
        >>> import torch
        >>> from walloc_data.adapters import stage_outputs
        >>> pixel_model = timm.create_model("resnet18", num_classes=2)
        >>> [features], logits = stage_outputs(pixel_model, torch.zeros(2, 3, 96, 96), ["layer2"])
        >>> features.shape, logits.shape
        (torch.Size([2, 128, 12, 12]), torch.Size([2, 2]))
    """
    model = bare_module(model)  # a compiled one calls no hooks
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            seen[path] = output
            if stop and len(seen) == len(set(paths)):
                raise _StopForward

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    logits: Tensor | None = None
    try:
        logits = model(inputs)
    except _StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [seen[path] for path in paths], logits


def stage_output(model: nn.Module, inputs: Tensor, *, latent_model: nn.Module) -> Tensor:
    """Return the output of the first kept stage, for imitation if earlier stages were skipped.

    The output is compared, not the input, because a stage whose stride was removed expects another grid than in the
    pixel model. Train the stem, `stem_site.fresh` and, if its stride was removed, the stage.

    Args:
        model: the latent model, or its pixel model.
        inputs: latents, or normalised pictures.
        latent_model: the latent model, which determines the stage.

    Returns:
        The output of the stage, with gradient; its shape is the same for both models.

    Example:
        >>> import timm
        >>> import torch
        >>> from walloc_data.adapters import create_latent_model, stage_output
        >>> pixel_model = timm.create_model("resnet18", num_classes=2)
        >>> model = create_latent_model("resnet18", dataset="my-latents", pretrained=pixel_model)
        >>> stage_output(pixel_model, torch.zeros(2, 3, 96, 96), latent_model=model).shape
        torch.Size([2, 128, 12, 12])
        >>> stage_output(model, torch.zeros(2, 12, 12, 12), latent_model=model).shape
        torch.Size([2, 128, 12, 12])
    """
    path = unwrap(latent_model).stem_site.feeds
    if path is None:
        raise ModelError("no stage was skipped in this model: fold its stem, there is nothing to imitate")
    outputs, _ = stage_outputs(model, inputs, [path], stop=True)
    return outputs[0]


def picture_size(model: nn.Module) -> tuple[int, int]:
    """Return the (height, width) in pixels of pictures whose features in the pixel model have a latent model's grid.

    Example:
        >>> from walloc_data.adapters import create_latent_model, picture_size
        >>> latents = {"dataset": "my-latents"}  # of 96 x 96 px pictures
        >>> [picture_size(create_latent_model("resnet18", geometry=g, **latents)) for g in ("skip_early", "all_stages")]
        [(96, 96), (48, 48)]
    """
    config = latent_config(model)
    return Grid(config.geometry, config.input_shape[1:], config.codec.cell_px, config.timm_kwargs).picture


@torch.no_grad()
def compared_stages(model: nn.Module, pixel_model: nn.Module) -> list[str]:
    """Return the names of the stages whose outputs have one shape in both models, four at most, the earliest first.

    Example:
        >>> import timm
        >>> from walloc_data.adapters import compared_stages, create_latent_model
        >>> pixel_model = timm.create_model("resnet18", num_classes=2)
        >>> compared_stages(create_latent_model("resnet18", dataset="my-latents", num_classes=2), pixel_model)
        ['layer2', 'layer3', 'layer4']

    Raises:
        ModelError: the pixel model cannot take pictures of the latents' size, or shares no stage.
    """
    inner, pixel = unwrap(model), bare_module(pixel_model)
    names = {name for name, _ in inner.named_modules()} & {name for name, _ in pixel.named_modules()}
    infos = [str(info["module"]) for info in list(getattr(pixel, "feature_info", []))]
    feeds = inner.stem_site.feeds
    paths = [path for path in dict.fromkeys([*([feeds] if feeds else []), *infos]) if path in names]
    device = next(pixel.parameters()).device
    size, training = picture_size(model), (inner.training, pixel.training)
    try:
        inner.eval(), pixel.eval()
        given = torch.zeros(1, *latent_config(model).input_shape, device=device)
        ours, _ = stage_outputs(inner, given, paths)
        theirs, _ = stage_outputs(pixel, torch.zeros(1, 3, *size, device=device), paths)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"{latent_config(model).name}: the pixel model does not take pictures of {size[0]} x {size[1]} px, for "
            f"which these latents stand ({str(error).strip().splitlines()[0]}): create it with img_size={size}"
        ) from error
    finally:
        inner.train(training[0]), pixel.train(training[1])
    equal = [path for path, a, b in zip(paths, ours, theirs, strict=True) if a.shape == b.shape]
    if not equal:
        raise ModelError(f"{latent_config(model).name}: no stage gives one shape in the pixel model and in this one")
    if len(equal) > _MOST_STAGES:
        wanted = torch.linspace(0, len(equal) - 1, _MOST_STAGES).round().int().tolist()
        equal = [equal[i] for i in wanted]
    return equal


def relative_error(given: Tensor, target: Tensor, *, channels_last: bool = False) -> Tensor:
    """Return the squared error relative to the variance about each channel's mean: 1 for the means alone.

    Example:
        >>> import torch
        >>> from walloc_data.adapters import relative_error
        >>> target = torch.randn(8, 16, 12, 12)
        >>> means = target.mean((0, 2, 3), keepdim=True).expand_as(target)
        >>> round(relative_error(means, target).item(), 3)
        1.0
    """
    axis = target.ndim - 1 if channels_last or target.ndim == 3 else 1
    others = [i for i in range(target.ndim) if i != axis]
    variance = (target - target.mean(others, keepdim=True)).square().mean()
    return (given - target).square().mean() / variance.clamp_min(1e-12)
