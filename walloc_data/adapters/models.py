"""timm models over latents: int8 in, logits out, everything in between timm's own."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from walloc_data.adapters.families import find_family
from walloc_data.adapters.macs import count_macs
from walloc_data.adapters.outputs import HasTarget, Outputs, outputs_of
from walloc_data.adapters.pretrained import Pretrained, pixel_model
from walloc_data.adapters.residual_stem import ResidualStem
from walloc_data.adapters.sites import Geometry, Grid
from walloc_data.adapters.stem import LatentConv2d, Normalization, TwoLayerStem, normalization_buffers
from walloc_data.adapters.wrapping import bare_module
from walloc_data.errors import FormatError, ModelError
from walloc_data.format import ChannelStatistics, CodecSpec, EncodeSettings, Manifest
from walloc_data.format.checks import shown
from walloc_data.storage import Store, read_manifest

__all__ = ["LatentModelConfig", "LatentModelSummary", "create_latent_model", "latent_config", "stem_of", "summarize"]

# What would fetch or open other files, or is a parameter of its own. A saved model's config is not trusted with these.
_RESERVED_KWARGS = {
    "cache_dir", "checkpoint_path", "features_only", "in_chans", "model_name", "num_classes", "pretrained",
    "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "scriptable",
}  # fmt: skip

View = Literal["whole", "resize", "crop"]


@runtime_checkable
class HasManifest(Protocol):
    """A `LatentDataset`, or anything else that knows its manifest."""

    @property
    def manifest(self) -> Manifest: ...


@dataclass(frozen=True)
class LatentModelConfig:
    """All that is needed to build the same module again, besides its weights.

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
    normalization: Normalization = "standard"
    stem_kernel_cells: int | None = None  # None: the family's own
    stem_bias: bool | None = None
    stem_padding: Literal["zeros", "circular"] = "zeros"
    stem_hidden_channels: int | None = None  # None: a stem of one layer
    stem_blocks: int | None = None  # residual blocks between the stem's layers; None: no residual stem
    # How pictures came to their size before they were encoded: fields of `EncodeSettings`.
    size_px: int | None = None
    resize: str = "crop"
    filter: Literal["bicubic", "lanczos"] = "bicubic"
    snap: int | None = None
    view: View = "whole"  # how stored latents come to input_shape in validation
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
        if reserved := sorted(_RESERVED_KWARGS & set(self.timm_kwargs)):
            raise ModelError(f"{reserved} cannot be passed on to timm here")
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
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> "LatentModelConfig":
        """Build and check from parsed JSON; `where` is named in errors."""
        if unknown := sorted(set(value) - set(cls.__dataclass_fields__)):
            raise ModelError(f"{where}: unknown fields {unknown}; written by a newer walloc_data?")
        try:
            fields = dict(value)
            fields["codec"] = CodecSpec.from_dict(fields["codec"], where=where)
            fields["input_shape"] = tuple(fields["input_shape"])
            if fields.get("class_names") is not None:
                fields["class_names"] = tuple(fields["class_names"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{where}: not the config of a latent model ({error})") from error


def _check_types(config: LatentModelConfig) -> None:
    """Raise ModelError for fields of other types than a config has; nothing is built on the word of a wrong one."""
    kinds: dict[str, tuple[type, ...]] = {
        "name": (str,), "geometry": (str,), "num_classes": (int,), "normalization": (str,), "stem_padding": (str,),
        "view": (str,), "stem_bias": (bool, type(None)), "stem_kernel_cells": (int, type(None)),
        "size_px": (int, type(None)),
    }  # fmt: skip
    for name, kind in kinds.items():
        if type(value := getattr(config, name)) not in kind or (isinstance(value, int) and not 0 <= value <= 2**24):
            raise ModelError(f"{name} must be {' or '.join(item.__name__ for item in kind)}, not {shown(value)}")
    if not isinstance(config.timm_kwargs, Mapping) or not all(isinstance(key, str) for key in config.timm_kwargs):
        raise ModelError(f"timm_kwargs must be an object, not {shown(config.timm_kwargs)}")
    if not all(type(side) is int and side <= 2**20 for side in config.input_shape):
        raise ModelError(f"input_shape must be three positive integers, not {shown(config.input_shape)}")
    for name in config.class_names or ():
        if not isinstance(name, str):
            raise ModelError(f"class_names must be a list of strings or null, not {shown(config.class_names)}")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class LatentModelSummary:
    """Cost of a model.

    Example:
        >>> from walloc_data.adapters import load_latent_model, summarize
        >>> summary = summarize(load_latent_model("my-model"))
        >>> summary.picture_shape_px, summary.num_parameters
        ((3, 96, 96), 462338)
    """

    name: str
    geometry: Geometry
    input_shape: tuple[int, int, int]  # (latent_dim, h, w)
    picture_shape_px: tuple[int, int, int]  # (channels, height, width) that such a latent stands for
    num_parameters: int
    num_macs: int  # multiply-accumulates of convolutions and matrix products, per sample

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.geometry}): latents {self.input_shape} of {self.picture_shape_px[1]} x "
            f"{self.picture_shape_px[2]} px pictures, {self.num_parameters / 1e6:.2f} M parameters, "
            f"{self.num_macs / 1e9:.3f} GMAC"
        )


def _sizes(settings: EncodeSettings) -> dict[str, Any]:
    """Return what the config keeps of a data set's settings."""
    return {name: getattr(settings, name) for name in ("size_px", "resize", "filter", "snap")}


def create_latent_model(
    name: str,
    *,
    dataset: HasManifest | Manifest | str | os.PathLike[str] | None = None,
    split: str | None = None,
    num_classes: int | None = None,
    geometry: Geometry | None = None,
    pretrained: Pretrained = False,
    normalization: Normalization = "standard",
    input_shape: tuple[int, int, int] | None = None,
    view: View = "whole",
    stem_kernel_cells: int | None = None,
    stem_bias: bool | None = None,
    stem_padding: Literal["zeros", "circular"] = "zeros",
    stem_hidden_channels: int | None = None,
    stem_blocks: int | None = None,
    codec: CodecSpec | None = None,
    statistics: ChannelStatistics | None = None,
    **timm_kwargs: Any,
) -> Any:
    """Build a timm model that takes int8 latents (N, latent_dim, h, w) and gives logits (N, num_classes).

    The stored integers are standardised inside, in the first layer, on the model's device. Floats in the same units
    (after a mixup or a transform) are taken as well. Build optimizer and EMA after this call.

    Args:
        name: a timm model, e.g. "vit_tiny_patch16_224"; `walloc_data.adapters.FAMILIES` lists what works.
        dataset: a `LatentDataset`, a `LatentMixture`, a `Manifest`, or the path or URL of an encoded data set. Gives
            the codec, the statistics, the latents' shape and the number of classes.
        split: whose statistics and shape are taken; default: that of a `LatentDataset`, else "train".
        num_classes: default: the data set's, by its target: the classes of a label, 1 of a number to regress, K of
            lists of K values, several labels say.
        geometry: "skip_early", "all_stages" or "pixel_grid" (see `walloc_data.adapters.families`); default: the
            family's first.
        pretrained: True loads timm's weights for pixels; a path those of a state dict (safetensors, or torch.save's);
            "hf_hub:OWNER/REPOSITORY" those of a model on the Hub; a module is a pixel model of the same name, whose
            weights are copied. The new stem, and norms that changed width, keep their fresh weights:
            `walloc_data.adapt_model` makes a whole classifier of it.
        normalization: "standard", or "expand" to undo the codec's companding by a table first.
        input_shape: (latent_dim, h, w) where the data set's shapes vary, or a transform crops or resizes.
        view: how whole stored latents come to `input_shape` in validation, which serving then repeats: "resize"
            (`transforms.Resize`), "crop" (`transforms.CenterCrop`), or "whole", as they are.
        stem_kernel_cells, stem_bias, stem_padding: the stem's window and bias, where the family's own do not suit.
        stem_hidden_channels: a `TwoLayerStem` with so many channels between its layers, for training from scratch.
            With 48, a ViT of 32-px patches gained eight points for 7 % more work (benchmarks/learning).
        stem_blocks: so many residual blocks between those layers (`ResidualStem`; 0: a linear map of the rank
            stem_hidden_channels, the cheapest stem that can be folded), for models that begin with pixel
            weights; `walloc_data.adapting.adapt_model` trains them.
        codec, statistics: in place of `dataset`.
        timm_kwargs: passed to `timm.create_model` (drop_path_rate, window_size, depth, ...).

    Returns:
        timm's module, with `latent_config` (LatentModelConfig) and a true `pretrained_cfg`.

    Raises:
        ModelError: for a family without a latent stem, a size that the model cannot take, or missing facts.

    Example:
        >>> from walloc_data import LatentDataset, create_latent_model
        >>> train = LatentDataset("my-latents")
        >>> model = create_latent_model("resnet18", dataset=train)
        >>> latents, labels = next(iter(train.loader(batch_size=8)))  # (8, 12, 12, 12) int8
        >>> model(latents).shape
        torch.Size([8, 2])
    """
    outputs: Outputs = None, None
    sizes: dict[str, Any] = {}
    if dataset is not None:
        manifest = _manifest(dataset)
        codec, sizes = codec or manifest.codec, _sizes(manifest.settings)
        if isinstance(dataset, HasTarget) and split in (None, dataset.split_name):
            statistics, input_shape = statistics or dataset.statistics, input_shape or dataset.latent_shape
            if num_classes is None:
                outputs = outputs_of(dataset)
            elif dataset.form.target in (None, "label"):
                outputs = num_classes, dataset.class_names
        else:
            record = manifest.split(
                str(split or "train"),
                where=str(getattr(dataset, "url", dataset if isinstance(dataset, str | os.PathLike) else name)),
            )
            statistics, input_shape = statistics or record.statistics, input_shape or record.latent_shape
            names = manifest.class_names
            outputs = (None if names is None else len(names)), names
    if codec is None or statistics is None:
        raise ModelError(f"{name}: pass dataset=, or both codec= and statistics=")
    if input_shape is None:
        raise ModelError(f"{name}: latent shapes vary in this data set: pass input_shape=({codec.latent_dim}, h, w)")
    num_classes = outputs[0] if num_classes is None else num_classes
    class_names = outputs[1]
    if num_classes is None:
        raise ModelError(f"{name}: the data set names no classes: pass num_classes=")
    family = find_family(name)
    config = LatentModelConfig(
        name=name,
        geometry=geometry or family.geometries[0],
        codec=codec,
        input_shape=(int(input_shape[0]), int(input_shape[1]), int(input_shape[2])),
        num_classes=num_classes,
        class_names=class_names if class_names is not None and len(class_names) == num_classes else None,
        normalization=normalization,
        stem_kernel_cells=stem_kernel_cells,
        stem_bias=stem_bias,
        stem_padding=stem_padding,
        stem_hidden_channels=stem_hidden_channels,
        stem_blocks=stem_blocks,
        view=view,
        timm_kwargs=timm_kwargs,
        **sizes,
    )
    # Sizes are the latent model's: timm resamples what depends on them when the weights are copied.
    kept = {key: value for key, value in timm_kwargs.items() if key not in ("img_size", "patch_size")}
    pixel = None if pretrained is False else pixel_model(name, pretrained, num_classes=num_classes, **kept)
    model = build(config, buffers=normalization_buffers(statistics, kind=normalization))
    if pixel is not None:
        from walloc_data.adapters.folding import copy_pixel_weights

        copy_pixel_weights(model, pixel)
    return model


def build(config: LatentModelConfig, *, buffers: Mapping[str, Tensor]) -> Any:
    """Build the module that a config describes, with fresh weights and these normalisation buffers."""
    import timm

    family = find_family(config.name)
    if config.geometry not in family.geometries:
        raise ModelError(
            f"{config.name}: {family.name} cannot be built as {config.geometry!r}, only as {family.geometries}"
        )

    def create(**kwargs: Any) -> Any:
        given = {"in_chans": config.input_shape[0], "num_classes": config.num_classes}
        return timm.create_model(config.name.partition(".")[0], **(given | kwargs | dict(config.timm_kwargs)))

    try:
        grid = grid_of(config)
        model, site = family.build(create, grid)
    except ModelError as error:
        raise ModelError(f"{config.name}: {error}") from error
    except (AttributeError, TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ModelError(
            f"{config.name}: timm cannot build it for {config.geometry!r} at {config.input_shape}: {error}"
        ) from error
    options: dict[str, Any] = {
        "out_channels": site.out_channels,
        "kernel_cells": config.stem_kernel_cells or site.kernel_cells,
        "stride_cells": site.stride_cells,
        "shuffle": site.shuffle,
        "bias": site.bias if config.stem_bias is None else config.stem_bias,
        "padding_mode": config.stem_padding,
        "buffers": dict(buffers),
    }
    stem: nn.Module
    if config.stem_hidden_channels is None:
        stem = LatentConv2d(config.input_shape[0], **options)
    elif config.stem_blocks is not None:
        options.pop("bias")  # its last layer always has one
        stem = ResidualStem(
            config.input_shape[0], hidden_channels=config.stem_hidden_channels, blocks=config.stem_blocks, **options
        )
    else:
        stem = TwoLayerStem(config.input_shape[0], hidden_channels=config.stem_hidden_channels, **options)
    parent, _, leaf = site.path.rpartition(".")
    owner = model.get_submodule(parent)
    if isinstance(owner, nn.Sequential):
        owner[int(leaf)] = stem
    else:
        setattr(owner, leaf, stem)
    model.in_chans = config.input_shape[0]
    model.latent_config = config
    model.stem_site = site
    cfg = dict(model.pretrained_cfg)
    # From here on this is a model of latents: no pixel file's address, no pixel statistics.
    for stale in ("url", "file", "hf_hub_id", "hf_hub_filename", "test_input_size", "test_crop_pct", "notes"):
        cfg.pop(stale, None)
    channels = config.input_shape[0]
    cfg |= {
        "architecture": config.name.partition(".")[0],
        "input_size": config.input_shape,
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "crop_pct": 1.0,
        "num_classes": config.num_classes,
        "first_conv": site.path if config.stem_hidden_channels is None else f"{site.path}.0",
    }
    model.pretrained_cfg = model.default_cfg = cfg
    count_macs(model, config)  # also the proof that such a latent goes through
    return model


def grid_of(config: LatentModelConfig) -> Grid:
    """Return the sizes that the config's family builds for."""
    size = config.input_shape[1:]
    return Grid(
        config.geometry, size, config.codec.cell_px, config.timm_kwargs, residual_stem=config.stem_blocks is not None
    )


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
    """Return a latent model's whole stem: its first layer, or both of a `TwoLayerStem`."""
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


def summarize(model: nn.Module) -> LatentModelSummary:
    """Return the input shape, parameters and MACs of a latent model.

    Example:
        >>> from walloc_data.adapters import load_latent_model, summarize
        >>> print(summarize(load_latent_model("my-model")))
        vit_tiny_patch16_224 (skip_early): latents (12, 12, 12) of 96 x 96 px pictures, 0.46 M parameters, 0.017 GMAC
    """
    config = latent_config(model)
    channels, h, w = config.input_shape
    cell = config.codec.cell_px
    return LatentModelSummary(
        name=config.name,
        geometry=config.geometry,
        input_shape=(channels, h, w),
        picture_shape_px=(config.codec.channels, h * cell, w * cell),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_macs=count_macs(unwrap(model), config),
    )


def _manifest(dataset: HasManifest | Manifest | str | os.PathLike[str]) -> Manifest:
    if isinstance(dataset, Manifest):
        return dataset
    if isinstance(dataset, (str, os.PathLike)):
        return read_manifest(Store(dataset))
    if isinstance(dataset, HasManifest):
        return dataset.manifest
    raise FormatError(f"dataset must be a LatentDataset, a Manifest or a path, not {type(dataset).__name__}")
