"""Parameter groups and freezing for pretrained models with a new stem."""

from typing import Any

from torch import nn

from walloc_data.adapters.config import stem_module, unwrap
from walloc_data.errors import ModelError

__all__ = ["freeze_except", "parameter_groups", "unfreeze"]


def parameter_groups(
    model: nn.Module, *, weight_decay: float = 0.05, layer_decay: float | None = None, stem_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Return timm's parameter groups, with separate groups for the stem.

    Layer decay gives the first layer the lowest learning rate, but a latent stem is new and needs the highest. timm's
    schedulers multiply by the `lr_scale` of each group; without timm's schedulers, apply it yourself.

    Args:
        model: a model made by `create_latent_model`, after any freezing.
        weight_decay: weight decay of matrices and kernels; biases, norms and exempt parameters get none.
        layer_decay: factor from each layer to the previous one; None: no decay.
        stem_lr_scale: learning rate of the stem relative to that of the head.

    Returns:
        Groups for `timm.optim.create_optimizer_v2`; the last ones are the stem's, with `name` "stem".

    Example:
        >>> from walloc_data.adapters import load_latent_model, parameter_groups
        >>> groups = parameter_groups(load_latent_model("my-model"), weight_decay=0.1, stem_lr_scale=2.0)
        >>> [(group["name"], group["weight_decay"], group["lr_scale"]) for group in groups]
        [('body', 0.0, 1.0), ('body', 0.1, 1.0), ('stem', 0.0, 2.0), ('stem', 0.1, 2.0)]
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    inner = unwrap(model)
    exempt = inner.no_weight_decay() if hasattr(inner, "no_weight_decay") else ()
    groups: list[dict[str, Any]]
    if layer_decay is None:
        groups = param_groups_weight_decay(inner, weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(inner, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay)
    stem = {id(parameter) for parameter in stem_module(model).parameters()}
    result, stem_groups = [], []
    for group in groups:
        group = {"lr_scale": 1.0} | group
        ours = [parameter for parameter in group["params"] if id(parameter) in stem]
        others = [parameter for parameter in group["params"] if id(parameter) not in stem]
        if others:
            result.append(group | {"params": others, "name": "body"})
        if ours:
            stem_groups.append(group | {"params": ours, "name": "stem", "lr_scale": stem_lr_scale})
    return result + stem_groups


def freeze_except(model: nn.Module, *parts: str) -> list[str]:
    """Freeze all parameters except some parts: "stem", "head", or prefixes of parameter names.

    Batch norms still update their running statistics in train mode, which a new stem needs.

    Returns:
        The names of the trainable parameters.

    Example:
        >>> from walloc_data.adapters import freeze_except, load_latent_model
        >>> freeze_except(load_latent_model("my-model"), "stem", "head")
        ['patch_embed.proj.weight', 'patch_embed.proj.bias', 'head.weight', 'head.bias']
    """
    inner = unwrap(model)
    head = str(inner.pretrained_cfg.get("classifier", "head"))
    stem = {id(parameter) for parameter in stem_module(model).parameters()}
    prefixes = tuple(head if part == "head" else part for part in parts if part != "stem")
    training = []
    for name, parameter in inner.named_parameters():
        wanted = ("stem" in parts and id(parameter) in stem) or any(
            name == prefix or name.startswith(prefix + ".") for prefix in prefixes
        )
        parameter.requires_grad_(wanted)
        if wanted:
            training.append(name)
    if parts and not training:
        raise ModelError(f"no parameter belongs to {parts}: use 'stem', 'head' or a prefix of a parameter's name")
    return training


def unfreeze(model: nn.Module) -> None:
    """Make all parameters trainable. Build the optimizer afterwards, so that its groups include them.

    Example:
        >>> from walloc_data.adapters import freeze_except, load_latent_model, unfreeze
        >>> model = load_latent_model("my-model")
        >>> training = freeze_except(model, "head")  # first the head alone
        >>> unfreeze(model)
        >>> all(parameter.requires_grad for parameter in model.parameters())
        True
    """
    model.requires_grad_(True)
