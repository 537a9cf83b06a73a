"""The config of a latent model, and access to the module inside wrappers, its config and its stem."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from walloc_data.adapters.sites import Geometry
from walloc_data.adapters.stem import LatentConv2d, Normalization
from walloc_data.adapters.wrapping import bare_module
from walloc_data.errors import ModelError
from walloc_data.format import CodecSpec
from walloc_data.format.checks import short_repr

__all__ = ["LatentModelConfig", "Task", "View", "latent_config", "stem_module", "stem_of", "unwrap"]

# Arguments that would download or open files, or have their own parameter: not allowed in configs, which are untrusted.
_RESERVED_KWARGS = {
    "cache_dir", "checkpoint_path", "features_only", "in_chans", "model_name", "num_classes", "out_indices",
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "scriptable",
}  # fmt: skip

Task = Literal["classes", "labels", "numbers"]
View = Literal["whole", "resize", "crop"]


@dataclass(frozen=True)
class LatentModelConfig:
    """Everything needed to build a module again, except its weights.

    Example:
        >>> from walloc_data.adapters import latent_config, load_latent_model
        >>> config = latent_config(load_latent_model("my-model"))
        >>> config.name, config.geometry, config.input_shape, config.timm_kwargs
        ('vit_tiny_patch16_224', 'skip_early', (12, 12, 12), {'depth': 1})
    """

    name: str  # timm's
    geometry: Geometry
    codec: CodecSpec
    input_shape: tuple[int, int, int]  # (latent_dim, h, w) in cells
    num_classes: int
    class_names: tuple[str, ...] | None = None
    task: Task = "classes"  # what outputs stand for: one class of several, any of several labels, or numbers
    normalization: Normalization = "standard"
    stem_kernel_cells: int | None = None  # None: the family's own
    stem_bias: bool | None = None
    stem_padding: Literal["zeros", "circular"] = "zeros"
    stem_hidden_channels: int | None = None  # None: a stem of one layer
    stem_blocks: int | None = None  # residual blocks between the stem's layers; None: no residual stem
    # Resizing of pictures before they were encoded: fields of `EncodeSettings`.
    size_px: int | None = None
    resize: str = "crop"
    filter: Literal["bicubic", "lanczos"] = "bicubic"
    snap: int | None = None
    view: View = "whole"  # conversion of stored latents to input_shape in validation
    features: tuple[int, ...] | None = None  # kept stages whose feature maps are given; None: a classifier's logits
    timm_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_types(self)
        # JSON has no tuples: what was saved and loaded must equal what was made.
        object.__setattr__(self, "timm_kwargs", {key: _frozen(value) for key, value in self.timm_kwargs.items()})
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise ModelError(f"input_shape must be three positive integers, not {self.input_shape!r}")
        if self.input_shape[0] != self.codec.latent_dim:
            raise ModelError(
                f"input_shape {self.input_shape}: the codec's latents have {self.codec.latent_dim} channels"
            )
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ModelError(f"{len(self.class_names)} class names for {self.num_classes} classes")
        if self.num_classes < 0:
            raise ModelError(f"num_classes must be 0 (features only) or more, not {self.num_classes}")
        if self.features is not None and self.num_classes:
            raise ModelError("a model of feature maps has no classes: num_classes must be 0")
        if reserved := sorted(_RESERVED_KWARGS & set(self.timm_kwargs)):
            raise ModelError(f"{reserved} cannot be passed to timm here")
        hidden = self.stem_hidden_channels
        if hidden is not None and (type(hidden) is not int or not 1 <= hidden <= 4096):
            raise ModelError(f"stem_hidden_channels must be 1 to 4096, or None for one layer, not {hidden!r}")
        blocks = self.stem_blocks
        if blocks is not None and (type(blocks) is not int or not 0 <= blocks <= 64 or hidden is None):
            raise ModelError(f"stem_blocks must be 0 to 64, with stem_hidden_channels=, not {blocks!r}")
        choices = {
            "geometry": ("skip_early", "all_stages", "pixel_grid"),
            "normalization": ("standard", "expand"),
            "stem_padding": ("zeros", "circular"),
            "task": ("classes", "labels", "numbers"),
            "view": ("whole", "resize", "crop"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ModelError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `from_dict` is its inverse."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return value | {"codec": self.codec.to_dict(), "timm_kwargs": dict(self.timm_kwargs)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, context: str) -> "LatentModelConfig":
        """Build and check a config from parsed JSON; `context` begins error messages."""
        if unknown := sorted(set(value) - set(cls.__dataclass_fields__)):
            raise ModelError(f"{context}: unknown fields {unknown}; written by a newer walloc_data?")
        try:
            fields = dict(value)
            fields["codec"] = CodecSpec.from_dict(fields["codec"], context=context)
            fields["input_shape"] = tuple(fields["input_shape"])
            if fields.get("features") is not None:
                fields["features"] = tuple(fields["features"])
            if fields.get("class_names") is not None:
                fields["class_names"] = tuple(fields["class_names"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{context}: not the config of a latent model ({error})") from error


def _check_types(config: LatentModelConfig) -> None:
    """Raise ModelError for fields with invalid types."""
    kinds: dict[str, tuple[type, ...]] = {
        "name": (str,), "geometry": (str,), "num_classes": (int,), "normalization": (str,), "stem_padding": (str,),
        "task": (str,), "view": (str,), "stem_bias": (bool, type(None)), "stem_kernel_cells": (int, type(None)),
        "size_px": (int, type(None)),
    }  # fmt: skip
    for name, kind in kinds.items():
        if type(value := getattr(config, name)) not in kind:
            raise ModelError(f"{name} must be {' or '.join(item.__name__ for item in kind)}, not {short_repr(value)}")
        if isinstance(value, int) and not 0 <= value <= 2**24:
            raise ModelError(f"{name} must be from 0 to {2**24}, not {short_repr(value)}")
    if not isinstance(config.timm_kwargs, Mapping) or not all(isinstance(key, str) for key in config.timm_kwargs):
        raise ModelError(f"timm_kwargs must be an object, not {short_repr(config.timm_kwargs)}")
    if not all(type(side) is int and side <= 2**20 for side in config.input_shape):
        raise ModelError(f"input_shape must be three positive integers, not {short_repr(config.input_shape)}")
    features = config.features
    if features is not None and not all(type(stage) is int and 0 <= stage < 2**10 for stage in features):
        raise ModelError(f"features must be numbers of stages or null, not {short_repr(features)}")
    for name in config.class_names or ():
        if not isinstance(name, str):
            raise ModelError(f"class_names must be a list of strings or null, not {short_repr(config.class_names)}")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def unwrap(model: nn.Module) -> Any:
    """Return the module that `create_latent_model` made, from inside DDP, FSDP, EMA or `torch.compile`, in any
    order.
    """
    inner = bare_module(model)
    if not hasattr(inner, "latent_config"):
        raise ModelError(f"{type(inner).__name__} was not made by create_latent_model")
    return inner


def latent_config(model: nn.Module) -> LatentModelConfig:
    """Return a latent model's config, through DDP or `torch.compile`, with the present number of classes.

    Example:
        >>> from walloc_data.adapters import latent_config, load_latent_model
        >>> model = load_latent_model("my-model")
        >>> latent_config(model).class_names
        ('cat', 'coffee')
        >>> model.reset_classifier(10)
        >>> latent_config(model).num_classes, latent_config(model).class_names
        (10, None)
    """
    inner = unwrap(model)
    config: LatentModelConfig = inner.latent_config
    if inner.num_classes != config.num_classes:
        return replace(config, num_classes=inner.num_classes, class_names=None)
    return config


def stem_module(model: nn.Module) -> nn.Module:
    """Return the stem of a latent model: its first layer, or the `TwoLayerStem` with both layers."""
    inner = unwrap(model)
    stem: nn.Module = inner.get_submodule(inner.stem_site.path)
    return stem


def stem_of(model: nn.Module) -> LatentConv2d:
    """Return a latent model's first layer.

    Example:
        >>> from walloc_data.adapters import load_latent_model, stem_of
        >>> stem = stem_of(load_latent_model("my-model"))
        >>> stem.weight.shape, stem.latent_mean.shape
        (torch.Size([192, 12, 2, 2]), torch.Size([12]))
    """
    for module in bare_module(model).modules():
        if isinstance(module, LatentConv2d):
            return module
    raise ModelError(f"{type(bare_module(model)).__name__} was not made by create_latent_model")
