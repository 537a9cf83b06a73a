"""Facts about pixel models that timm knows without their weights: classes, normalisation, input size."""

from torch import nn

from walloc_data.adapters.wrapping import bare_module

__all__ = ["imagenet_classes", "input_normalisation", "input_size"]


def imagenet_classes(num_classes: int) -> list[tuple[str, str]] | None:
    """Return (WordNet id, words) of ImageNet's classes, in the order of a classifier of so many; timm has them offline.

    Returns:
        None where classifiers of so many classes are not ImageNet's.

    Example:
        >>> from walloc_data.adapters import imagenet_classes
        >>> imagenet_classes(1000)[281]
        ('n02123045', 'tabby, tabby cat')
        >>> imagenet_classes(10) is None
        True
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return list(zip(info.label_names(), info.label_descriptions(), strict=True))


def input_normalisation(pixel_model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std) of a pixel model's input in [0, 1]: those of its `pretrained_cfg`, else timm's default.

    Example:
        >>> import timm
        >>> from walloc_data.adapters import input_normalisation
        >>> input_normalisation(timm.create_model("tf_efficientnet_lite0"))
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    from timm.data import resolve_model_data_config

    cfg = resolve_model_data_config(bare_module(pixel_model))
    return tuple(cfg["mean"]), tuple(cfg["std"])


def input_size(model: str | nn.Module) -> tuple[int, int]:
    """Return the (height, width) in pixels that a timm model, or the name of one, was made for.

    Example:
        >>> from walloc_data.adapters import input_size
        >>> input_size("tf_efficientnet_lite0")
        (224, 224)
    """
    import timm

    cfg = (
        timm.get_pretrained_cfg(model)
        if isinstance(model, str)
        else getattr(bare_module(model), "pretrained_cfg", None)
    )
    size = (cfg.get("input_size") if isinstance(cfg, dict) else getattr(cfg, "input_size", None)) or (3, 224, 224)
    return int(size[1]), int(size[2])
