"""Creation of timm models that map int8 latents to logits: `create_latent_model`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from walloc_data.adapters.config import LatentModelConfig, Task, View, latent_config, unwrap
from walloc_data.adapters.families import find_family
from walloc_data.adapters.feature_maps import LatentFeatures
from walloc_data.adapters.folding import copy_pixel_weights
from walloc_data.adapters.macs import check_input_shape, count_macs
from walloc_data.adapters.outputs import HasTarget, Outputs, names_of_target, outputs_of, task_of
from walloc_data.adapters.pretrained import Pretrained, pixel_model
from walloc_data.adapters.residual_stem import ResidualStem
from walloc_data.adapters.sites import Geometry, Grid
from walloc_data.adapters.stem import LatentConv2d, Normalization, TwoLayerStem, normalization_buffers
from walloc_data.errors import FormatError, ModelError
from walloc_data.format import ChannelStatistics, CodecSpec, EncodeSettings, Manifest
from walloc_data.storage import Store, read_manifest

__all__ = ["LatentModelSummary", "assemble", "build", "create_latent_model", "features_of", "summarize"]


@runtime_checkable
class HasManifest(Protocol):
    """Interface of a `LatentDataset`, or another object with a manifest."""

    @property
    def manifest(self) -> Manifest: ...


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
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    geometry: Geometry | None = None,
    pretrained: Pretrained = False,
    normalization: Normalization = "standard",
    input_shape: tuple[int, int, int] | None = None,
    view: View | None = None,
    stem_kernel_cells: int | None = None,
    stem_bias: bool | None = None,
    stem_padding: Literal["zeros", "circular"] = "zeros",
    stem_hidden_channels: int | None = None,
    stem_blocks: int | None = None,
    codec: CodecSpec | None = None,
    statistics: ChannelStatistics | None = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """Create a timm model that maps int8 latents (N, latent_dim, h, w) to logits (N, num_classes).

    The first layer standardises the stored integers. Floats in the same units (after mixup or a transform) are also
    accepted. Build optimizer and EMA after this call.

    Args:
        name: a timm model, e.g. "vit_tiny_patch16_224"; see `walloc_data.adapters.FAMILIES` for supported families.
        dataset: a `LatentDataset`, a `LatentMixture`, a `Manifest`, or the path or URL of an encoded data set, for the
            codec, the statistics, the shape of latents and the number of classes.
        split: split whose statistics and shape are used; default: that of a `LatentDataset`, else "train".
        num_classes: default: by the target of the data set: the number of classes of a label, 1 for a number, K for
            lists of K values (such as several labels).
        features_only: return feature maps of the kept stages instead of logits, like timm: a list of (N, C, h, w),
            described by the model's `feature_info` (see `LatentFeatures`).
        out_indices: indices of the maps among the kept stages; None: all, or the last three of ViTs.
        geometry: "skip_early", "all_stages" or "pixel_grid" (see `walloc_data.adapters.families`); default: the
            family's first.
        pretrained: pixel weights to copy: True for timm's; the path of a state dict (safetensors or torch.save);
            "hf_hub:OWNER/REPOSITORY"; or a pixel model of the same name. The new stem, and norms that changed width,
            are randomly initialised; use `walloc_data.adapt_model` for a working classifier.
        normalization: "standard", or "expand" to undo the codec's companding by a table first.
        input_shape: (latent_dim, h, w), if the shapes of the data set vary, or a transform crops or resizes.
        view: conversion of stored latents to `input_shape` in validation, which serving repeats: "resize"
            (`transforms.Resize`), "crop" (`transforms.CenterCrop`), or "whole" (unchanged). Must be given if
            `input_shape` is not the stored shape.
        stem_kernel_cells, stem_bias, stem_padding: kernel size, bias and padding of the stem; default: the family's.
        stem_hidden_channels: use a `TwoLayerStem` with this number of hidden channels, for training from scratch. With
            48, a ViT of 32-px patches gained eight points for 7 % more MACs (benchmarks/learning).
        stem_blocks: number of residual blocks between these layers (`ResidualStem`), for models with pixel weights,
            trained by `walloc_data.adapt_model`; 0: a linear map of rank stem_hidden_channels.
        codec, statistics: used instead of `dataset`.
        timm_kwargs: passed to `timm.create_model` (drop_path_rate, window_size, depth, ...).

    Returns:
        timm's module, or a `LatentFeatures` around it, with `latent_config` (LatentModelConfig) and a `pretrained_cfg`
        for latents.

    Raises:
        ModelError: the family is not supported, the model cannot take latents of this size, or arguments are missing.

    Example:
        >>> from walloc_data import LatentDataset, create_latent_model
        >>> train = LatentDataset("my-latents")
        >>> model = create_latent_model("resnet18", dataset=train)
        >>> latents, labels = next(iter(train.loader(batch_size=8)))  # (8, 12, 12, 12) int8
        >>> model(latents).shape
        torch.Size([8, 2])
    """
    outputs: Outputs = None, None
    task: Task = "classes"
    sizes: dict[str, Any] = {}
    stored: tuple[int, int, int] | None = None
    if dataset is not None:
        manifest = _manifest(dataset)
        codec, sizes = codec or manifest.codec, _sizes(manifest.settings)
        if isinstance(dataset, HasTarget) and split in (None, dataset.split_name):
            statistics, stored = statistics or dataset.statistics, dataset.latent_shape
            if not features_only:
                outputs = outputs_of(dataset) if num_classes is None else (num_classes, names_of_target(dataset))
                task = task_of(dataset, num_classes=outputs[0] or 0)
        else:
            record = manifest.split(
                str(split or "train"),
                context=str(getattr(dataset, "url", dataset if isinstance(dataset, str | os.PathLike) else name)),
            )
            statistics, stored = statistics or record.statistics, record.latent_shape
            names = manifest.class_names
            outputs = (None if names is None else len(names)), names
    if features_only:
        if num_classes:
            raise ModelError(f"{name}: features_only=True has no logits: leave out num_classes")
        outputs, num_classes = (0, None), 0
    elif out_indices is not None:
        raise ModelError(f"{name}: out_indices needs features_only=True")
    if codec is None or statistics is None:
        raise ModelError(f"{name}: pass dataset=, or both codec= and statistics=")
    input_shape = input_shape or stored
    if input_shape is None:
        raise ModelError(f"{name}: latent shapes vary in this data set: pass input_shape=({codec.latent_dim}, h, w)")
    view = _checked_view(view, input_shape, stored=stored, name=name)
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
        task=task,
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
        copy_pixel_weights(model, pixel)
    return LatentFeatures(model, out_indices=out_indices) if features_only else model


def _checked_view(view: View | None, input_shape: Any, *, stored: tuple[int, int, int] | None, name: str) -> View:
    """Return the view, "whole" if inputs are as stored; raise ModelError if it must be given or cannot be had."""
    if not isinstance(input_shape, tuple | list) or len(input_shape) != 3:
        raise ModelError(f"{name}: input_shape must be (latent_dim, h, w), not {input_shape!r}")
    if stored is None or tuple(input_shape) == tuple(stored):
        return view or "whole"
    sides = f"{name}: input_shape is {tuple(input_shape)}, and latents are stored as {tuple(stored)}"
    if view is None:
        raise ModelError(
            f'{sides}: pass view="resize" (transforms.Resize), "crop" (transforms.CenterCrop) or "whole" (as stored), '
            "for what validation and serving make of a stored latent"
        )
    if view != "whole" and any(side > most for side, most in zip(input_shape[1:], stored[1:], strict=True)):
        raise ModelError(f"{sides}: latents are only cropped and downscaled, so store larger pictures")
    return view


def build(config: LatentModelConfig, *, buffers: Mapping[str, Tensor]) -> nn.Module:
    """Build the module that a config describes, with fresh weights and these normalisation buffers."""
    model = assemble(config, buffers=buffers)
    try:
        check_input_shape(model, config.input_shape)
    except ModelError as error:
        raise ModelError(f"{config.name}: built as {config.geometry!r} it {error}") from error
    return features_of(model, config)


def assemble(config: LatentModelConfig, *, buffers: Mapping[str, Tensor]) -> nn.Module:
    """Build the same module, without checking that latents of this shape pass through it."""
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
    return cast(nn.Module, model)


def features_of(model: nn.Module, config: LatentModelConfig) -> nn.Module:
    """Return the model, or its feature maps where the config asks for those."""
    return model if config.features is None else LatentFeatures(model, out_indices=config.features)


def grid_of(config: LatentModelConfig) -> Grid:
    """Return the sizes that the config's family builds for."""
    size = config.input_shape[1:]
    return Grid(
        config.geometry, size, config.codec.cell_px, config.timm_kwargs, residual_stem=config.stem_blocks is not None
    )


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
        num_macs=count_macs(unwrap(model), config.input_shape),
    )


def _manifest(dataset: HasManifest | Manifest | str | os.PathLike[str]) -> Manifest:
    if isinstance(dataset, Manifest):
        return dataset
    if isinstance(dataset, (str, os.PathLike)):
        return read_manifest(Store(dataset))
    if isinstance(dataset, HasManifest):
        return dataset.manifest
    raise FormatError(f"dataset must be a LatentDataset, a Manifest or a path, not {type(dataset).__name__}")
