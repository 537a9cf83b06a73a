"""Supported families of timm models, and their changes for latents.

A latent cell is 8 x 8 pixels (for codecs of three wavelet levels), so latents have the resolution of a pixel model's
stride-8 features: stage 1 of the usual 4/8/16/32 pyramid. Three geometries follow (for 224-pixel pictures, 28 x 28
cells):

    skip_early   the stem feeds the stage at stride 8; earlier stages become Identity. The token grid is the pixel
                 model's, and the computation of the early stages is saved.
    all_stages   the stem feeds the stage at stride 4: every stage is kept, and pictures of twice the resolution
                 (448 pixels, 56 x 56 cells) cost what the pixel model costs at 224.
    pixel_grid   one convolution and a PixelShuffle give every stage the grid of the pixel model, at the same cost; for
                 folding pixel-pretrained weights. For patch models the same as skip_early.

Cells of another size, 2^J pixels, go in at the same stages: with cells of 16 pixels these see a grid half as fine, with
4 pixels twice as fine. What is counted in pixels follows the cells: the patches of patch models, and pixel_grid.

Every hierarchical model is built by timm for the pixel size of its later stages, so that windows, position biases and
embeddings have the right size; then its stem is replaced and the first strides are removed.

A stem with residual blocks (`ResidualStem`) also replaces the first block kept by `skip_early` if that block's stride
would have to be removed (ResNet, RegNet, EfficientNet).
"""

import difflib
from typing import Any

import torch
from torch import nn

from walloc_data.adapters.sites import (
    Create,
    Family,
    Geometry,
    Grid,
    StemSite,
    first_conv,
    is_strided,
    next_width,
    resize_norm,
    unstride,
)
from walloc_data.errors import ModelError

__all__ = ["FAMILIES", "Family", "Geometry", "StemSite", "find_family"]


def _build_vit(create: Create, grid: Grid) -> tuple[Any, StemSite]:
    with torch.device("meta"):
        embed = create().patch_embed
    if not isinstance(getattr(embed, "proj", None), nn.Conv2d):
        raise ModelError(f"its patch embedding is {type(embed).__name__}, not one convolution: nothing to replace")
    size = grid.size
    cells = max(1, round(embed.patch_size[0] / grid.cell_px)) * (2 if grid.geometry == "all_stages" else 1)
    cells = grid.given.get("patch_size", cells)
    if not grid.given.get("dynamic_img_pad") and (size[0] % cells or size[1] % cells):
        raise ModelError(
            f"{size[0]} x {size[1]} cells do not split into patches of {cells}: pass patch_size= or another size"
        )
    model = create(img_size=size, patch_size=cells)
    return model, StemSite("patch_embed.proj", embed.proj.out_channels, cells, cells, bias=embed.proj.bias is not None)


def _build_swin(create: Create, grid: Grid) -> tuple[Any, StemSite]:
    size, shuffle = grid.size, grid.shuffle(stride_px=4)
    kwargs: dict[str, Any] = {"img_size": grid.picture}
    if "window_size" not in grid.given:
        with torch.device("meta"):
            default = create().layers[0].blocks[0].window_size
        if size[0] % default[0] or size[1] % default[1]:
            # A window that does not divide is padded by timm: correct, but much of it is padding.
            side = max((n for n in range(3, 13) if size[0] % n == 0 and size[1] % n == 0), default=None)
            kwargs |= {"window_size": side} if side else {}
    model = create(**kwargs)
    embed = model.patch_embed
    skipped: tuple[str, ...] = ()
    channels = embed.proj.out_channels
    if grid.geometry == "skip_early":
        channels = _first_block_width(model.layers[1])
        if not isinstance(embed.norm, nn.Identity):
            resize_norm(embed.norm, channels)
        model.layers[0], model.layers[1].downsample = nn.Identity(), nn.Identity()
        skipped = ("layers.0", "layers.1.downsample")
    embed.patch_size = (1, 1)  # cells
    embed.img_size = size
    if shuffle == 1:
        embed.grid_size = size
        embed.num_patches = size[0] * size[1]
    site = StemSite(
        "patch_embed.proj",
        channels,
        3,
        shuffle=shuffle,
        fresh=("patch_embed.norm",) * bool(skipped),
        skipped=skipped,
        feeds="layers.1.blocks" if skipped else None,
    )
    return model, site


def _first_block_width(stage: Any) -> int:
    return int(stage.blocks[0].norm1.normalized_shape[0])


def _build_convnext(create: Create, grid: Grid) -> tuple[Any, StemSite]:
    model = create()
    conv, norm = model.stem[0], model.stem[-1]
    overlapping = len(model.stem) != 2
    if overlapping:  # two strided convolutions: one takes the place of both
        conv = model.stem[-2]
        model.stem = nn.Sequential(conv, norm)
    channels, shuffle = conv.out_channels, grid.shuffle(stride_px=4)
    skipped: tuple[str, ...] = ()
    if grid.geometry == "skip_early":
        channels = _convnext_width(model.stages[1])
        resize_norm(norm, channels)
        model.stages[0], model.stages[1].downsample = nn.Identity(), nn.Identity()
        skipped = ("stages.0", "stages.1.downsample")
    site = StemSite(
        "stem.0",
        channels,
        3,
        shuffle=shuffle,
        bias=conv.bias is not None,
        fresh=("stem",) * (overlapping or bool(skipped)),
        skipped=skipped,
        feeds="stages.1.blocks" if skipped else None,
    )
    return model, site


def _convnext_width(stage: Any) -> int:
    return int(stage.blocks[0].conv_dw.in_channels)


def _build_resnet(create: Create, grid: Grid) -> tuple[Any, StemSite]:
    model = create()
    deep = isinstance(model.conv1, nn.Sequential)
    first = first_conv(model.conv1, what="conv1")
    if grid.geometry == "pixel_grid":
        return model, StemSite(
            "conv1.0" if deep else "conv1", first.out_channels, 5, shuffle=grid.shuffle(stride_px=2), bias=False
        )
    model.maxpool = nn.Identity()
    if grid.geometry == "all_stages":
        return model, StemSite("conv1.0" if deep else "conv1", first.out_channels, 3, bias=False, skipped=("maxpool",))
    model.conv1 = nn.Identity()  # a deep stem's other layers have the wrong width
    model.layer1 = nn.Identity()
    if grid.residual_stem:
        channels = next_width(*model.layer2[1:], model.layer3)
        model.bn1, model.layer2[0] = nn.Identity(), nn.Identity()
        return model, StemSite("conv1", channels, 3, skipped=("layer1", "maxpool", "bn1", "layer2.0"), feeds="layer2.0")
    channels = first_conv(model.layer2[0], what="layer2").in_channels
    resize_norm(model.bn1, channels)
    unstride(model.layer2[0], what="layer2")
    return model, StemSite(
        "conv1", channels, 3, bias=False, fresh=("bn1",), skipped=("layer1", "maxpool"), feeds="layer2"
    )


def _build_regnet(create: Create, grid: Grid) -> tuple[Any, StemSite]:
    model = create()
    path = "stem" if isinstance(model.stem, nn.Conv2d) else "stem.conv"
    stem = model.get_submodule(path)
    if grid.geometry == "pixel_grid":
        return model, StemSite(path, stem.out_channels, 5, shuffle=grid.shuffle(stride_px=2), bias=False)
    if grid.geometry == "all_stages":
        unstride(model.s1.b1, what="s1")
        return model, StemSite(path, stem.out_channels, 3, bias=False)
    if grid.residual_stem:
        channels = next_width(*list(model.s2.children())[1:], model.s3)
        norm = ("stem.bn",) if path == "stem.conv" else ()
        if norm:
            model.stem.bn = nn.Identity()
        model.s1, model.s2.b1 = nn.Identity(), nn.Identity()
        return model, StemSite(path, channels, 3, skipped=("s1", "s2.b1", *norm), feeds="s2.b1")
    channels = first_conv(model.s2.b1, what="s2").in_channels
    fresh: tuple[str, ...] = ()
    if path == "stem.conv":
        resize_norm(model.stem.bn, channels)
        fresh = ("stem.bn",)
    model.s1 = nn.Identity()
    unstride(model.s2.b1, what="s2")
    return model, StemSite(path, channels, 3, bias=False, fresh=fresh, skipped=("s1",), feeds="s2")


def _build_efficientnet(create: Create, grid: Grid) -> tuple[Any, StemSite]:
    model = create()
    stem = model.conv_stem
    if grid.geometry == "pixel_grid":
        return model, StemSite("conv_stem", stem.out_channels, 5, shuffle=grid.shuffle(stride_px=2), bias=False)
    strided = [i for i, stage in enumerate(model.blocks) if any(is_strided(module) for module in stage.modules())]
    if len(strided) < 3:
        raise ModelError(f"only {len(strided)} of its stages have a stride: not a 4/8/16/32 pyramid")
    if grid.geometry == "all_stages":
        unstride(model.blocks[strided[0]], what=f"blocks.{strided[0]}")
        return model, StemSite("conv_stem", stem.out_channels, 3, bias=False)
    first = strided[1]
    if grid.residual_stem:
        channels = next_width(*model.blocks[first][1:], *model.blocks[first + 1 :], model.conv_head)
        model.bn1 = nn.Identity()
        for i in range(first):
            model.blocks[i] = nn.Identity()
        model.blocks[first][0] = nn.Identity()
        skipped = ("bn1", *(f"blocks.{i}" for i in range(first)), f"blocks.{first}.0")
        return model, StemSite("conv_stem", channels, 3, skipped=skipped, feeds=f"blocks.{first}.0")
    channels = first_conv(model.blocks[first], what=f"blocks.{first}").in_channels
    resize_norm(model.bn1, channels)
    for i in range(first):
        model.blocks[i] = nn.Identity()
    unstride(model.blocks[first], what=f"blocks.{first}")
    skipped = tuple(f"blocks.{i}" for i in range(first))
    return model, StemSite(
        "conv_stem", channels, 3, bias=False, fresh=("bn1",), skipped=skipped, feeds=f"blocks.{first}"
    )


def _build_maxvit(create: Create, grid: Grid) -> tuple[Any, StemSite]:
    size, multiple = grid.size, max(1, 32 // grid.stage_px)
    if size[0] % multiple or size[1] % multiple:
        raise ModelError(
            f"{size[0]} x {size[1]} cells: {grid.geometry!r} halves them until its windows are 1/{multiple} of the "
            f"side, so both sides must be multiples of {multiple}"
        )
    model = create(img_size=grid.picture)
    bias = model.stem.conv1.bias is not None
    if grid.geometry == "pixel_grid":
        return model, StemSite(
            "stem.conv1", model.stem.conv1.out_channels, 5, shuffle=grid.shuffle(stride_px=2), bias=bias
        )
    if grid.geometry == "all_stages":
        unstride(model.stages[0], what="stages.0")
        return model, StemSite("stem.conv1", model.stem.conv1.out_channels, 3, bias=bias)
    # The stem keeps its two convolutions; the second gives the width that stage 1 expects.
    channels = _stage_width(model.stages[1])
    old = model.stem.conv2
    model.stem.conv2 = type(old)(
        old.in_channels, channels, old.kernel_size, padding=old.padding, bias=old.bias is not None
    )
    model.stages[0] = nn.Identity()
    unstride(model.stages[1], what="stages.1")
    site = StemSite(
        "stem.conv1",
        model.stem.conv1.out_channels,
        3,
        bias=bias,
        fresh=("stem.norm1", "stem.conv2"),
        skipped=("stages.0",),
        feeds="stages.1",
    )
    return model, site


def _stage_width(stage: nn.Module) -> int:
    """Return the input channels of a MaxViT or CoAtNet stage, by its first norm."""
    for module in stage.modules():
        if isinstance(module, nn.BatchNorm2d):
            return int(module.num_features)
        if isinstance(module, nn.LayerNorm):
            return int(module.normalized_shape[0])
    raise ModelError("its stages have no norm to read a width from")


def _build_hiera(create: Create, grid: Grid) -> tuple[Any, StemSite]:
    shuffle = grid.shuffle(stride_px=4)
    img_size = (grid.size[0] * shuffle, grid.size[1] * shuffle)
    if img_size[0] % 8 or img_size[1] % 8:
        raise ModelError(
            f"{grid.size[0]} x {grid.size[1]} cells: Hiera pools three times inside its mask units, so both sides must "
            f"be multiples of {max(1, 8 // shuffle)}"
        )
    model = create(img_size=img_size, patch_kernel=(3, 3), patch_stride=(1, 1), patch_padding=(1, 1))
    return model, StemSite("patch_embed.proj", model.patch_embed.proj.out_channels, 3, shuffle=shuffle)


_ALL: tuple[Geometry, ...] = ("skip_early", "all_stages", "pixel_grid")

FAMILIES = (
    Family(
        "ViT, DeiT, EVA", ("vision_transformer", "deit", "eva"), _ALL, "vit_tiny_patch16_224", _build_vit, sized=True
    ),
    Family(
        "Swin, SwinV2",
        ("swin_transformer", "swin_transformer_v2"),
        _ALL,
        "swin_tiny_patch4_window7_224",
        _build_swin,
        sized=True,
    ),
    Family("ConvNeXt, ConvNeXt V2", ("convnext",), _ALL, "convnext_atto", _build_convnext),
    Family("ResNet, ResNeXt, SE-ResNet", ("resnet",), _ALL, "resnet18, resnet50", _build_resnet),
    Family("RegNet", ("regnet",), _ALL, "regnety_004", _build_regnet),
    Family(
        "EfficientNet, MobileNetV3, MobileNetV4",
        ("efficientnet", "mobilenetv3"),
        _ALL,
        "efficientnet_b0, mobilenetv4_conv_small",
        _build_efficientnet,
    ),
    Family("MaxViT, CoAtNet", ("maxxvit",), _ALL, "maxvit_tiny_rw_224, coatnet_0_rw_224", _build_maxvit, sized=True),
    Family("Hiera", ("hiera",), ("all_stages", "pixel_grid"), "hiera_tiny_224", _build_hiera, sized=True),
)


def find_family(name: str) -> Family:
    """Return the family of a timm model, by the module that defines it.

    Example:
        >>> from walloc_data.adapters import find_family
        >>> find_family("resnet50d").name
        'ResNet, ResNeXt, SE-ResNet'

    Raises:
        ModelError: timm has no such model, or the family is not supported; the message lists supported families.
    """
    import timm

    bare = name.partition(".")[0]
    if not timm.is_model(bare):
        close = difflib.get_close_matches(bare, timm.list_models(), n=5)
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise ModelError(f"timm has no model {name!r}{hint}")
    module = timm.model_entrypoint(bare).__module__.rpartition(".")[2]
    for family in FAMILIES:
        if module in family.modules:
            return family
    works = "; ".join(f"{family.name} ({family.examples})" for family in FAMILIES)
    raise ModelError(
        f"{name!r} (timm.models.{module}) is not supported: no replacement for its first layers is known. Supported "
        f"families: {works}"
    )
