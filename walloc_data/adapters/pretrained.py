"""Loading of pixel models with pretrained weights, from timm or from a file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from walloc_data.adapters.wrapping import bare_names
from walloc_data.errors import ModelError

__all__ = ["Pretrained", "pixel_model"]

Pretrained = bool | str | os.PathLike[str] | nn.Module

MAX_WEIGHTS_BYTES = 2**34
_HUB_SECONDS = 5.0  # to wait for any answer of the Hub, before timm asks it for weights
_HUB_PREFIXES = ("hf_hub:", "hf-hub:")


def pixel_model(name: str, pretrained: Pretrained, *, num_classes: int | None = None, **timm_kwargs: Any) -> nn.Module:
    """Return the pixel model of a config's name that has pretrained weights.

    Args:
        name: timm's, or "hf_hub:OWNER/REPOSITORY".
        pretrained: True for timm's weights; the path of a state dict (safetensors, or torch.save's); a name that
            begins with "hf_hub:"; a module, which is returned as it is.
        num_classes: if the weights have another number, the classifier is randomly initialised; None keeps theirs.
        timm_kwargs: passed to `timm.create_model`.

    Raises:
        ModelError: the weights cannot be loaded, or do not match this model.

    Example:
        >>> import timm
        >>> from safetensors.torch import save_file
        >>> from walloc_data.adapters import pixel_model
        >>> save_file(timm.create_model("test_vit", num_classes=7).state_dict(), "weights.safetensors")
        >>> pixel_model("test_vit", "weights.safetensors").num_classes
        7
        >>> pixel_model("resnet18", "weights.safetensors")
        Traceback (most recent call last):
        walloc_data.errors.ModelError: weights.safetensors: not the weights of a resnet18 for pixels: ... missing ...
    """
    if isinstance(pretrained, nn.Module):
        return pretrained
    if isinstance(pretrained, str) and pretrained.startswith(_HUB_PREFIXES):
        name, pretrained = pretrained, True
    if isinstance(pretrained, str | os.PathLike):
        return _with_weights(name, num_classes, timm_kwargs, _read_state(Path(pretrained)), context=str(pretrained))
    if pretrained is not True:
        raise ModelError(
            f"pretrained must be True, the path of a state dict or a pixel model, not {type(pretrained).__name__}"
        )
    cached = None if name.startswith(_HUB_PREFIXES) else _cached_weights(name)
    if (problem := _hub_problem()) is not None and not (name.startswith(_HUB_PREFIXES) and _hub_cached(name)):
        if cached is None:
            raise ModelError(
                f"{name}: timm's weights are not in the cache of this machine, and the Hub does not answer "
                f"({problem}): try again with a network, or pass the path of a state dict as pretrained="
            )
        return _with_weights(name, num_classes, timm_kwargs, _read_state(cached), context=str(cached))
    given = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return _create(name, timm_kwargs, pretrained=True, **given)
    except Exception as error:  # timm, huggingface_hub and the network raise what they like
        raise ModelError(
            f"{name}: timm's weights cannot be loaded ({type(error).__name__}: {_first_line(error)}): pass the "
            "path of a state dict, or a pixel model, as pretrained="
        ) from error


def _create(name: str, timm_kwargs: Mapping[str, Any], **kwargs: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, **kwargs, **timm_kwargs)
    return model


def _hub_cached(name: str) -> bool:
    """Return whether the Hub's cache holds a model's config, from which timm begins."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = name.partition(":")[2].partition("@")
    return isinstance(try_to_load_from_cache(repository, "config.json", revision=revision or None), str)


def _cached_weights(name: str) -> Path | None:
    """Return the file of timm's weights in the Hub's cache."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        return None
    names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    found = (try_to_load_from_cache(cfg.hf_hub_id, filename) for filename in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _hub_problem() -> str | None:
    """Return why the Hub cannot be reached; None if it can. Without this check its client retries for a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception as error:  # of whatever HTTP client this version of huggingface_hub uses
        return f"{type(error).__name__}: {_first_line(error)}"
    return None


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or with torch's weights_only unpickler."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(
            f"{path}: no such file; weights are timm's own (pretrained=True, or no --weights), or the path of a "
            "state dict (.safetensors, or .pth of torch.save)"
        )
    if (size := path.stat().st_size) > MAX_WEIGHTS_BYTES:
        raise ModelError(f"{path}: {size} bytes; at most {MAX_WEIGHTS_BYTES} are read")
    try:
        if path.suffix == ".safetensors":
            value: Any = load_file(path)
        else:
            value = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({_first_line(error)})") from error
    except Exception as error:  # the unpickler raises many kinds
        raise ModelError(
            f"{path}: holds more than tensors, or is damaged ({type(error).__name__}: {_first_line(error)}). Pickles "
            "that run code are not opened: save the model's state_dict() with safetensors, and pass that file"
        ) from error
    for key in ("state_dict", "model"):  # the usual checkpoints of a training run
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not value or not all(isinstance(item, Tensor) for item in value.values()):
        raise ModelError(f"{path}: not a state dict: names with tensors, alone or as its 'state_dict' or 'model'")
    return bare_names(value)


def _with_weights(
    name: str, num_classes: int | None, timm_kwargs: Mapping[str, Any], state: dict[str, Tensor], *, context: str
) -> nn.Module:
    """Load pixel weights into timm's module; like in timm, a classifier with another number of classes is skipped."""
    with torch.device("meta"):
        like = _create(name, timm_kwargs)
    cfg: Any = getattr(like, "pretrained_cfg", {})
    heads = [cfg["classifier"]] if isinstance(cfg.get("classifier"), str) else list(cfg.get("classifier") or [])
    sizes = {len(state[f"{head}.weight"]) for head in heads if f"{head}.weight" in state}
    of_weights = sizes.pop() if len(sizes) == 1 else None
    classes = num_classes if num_classes is not None else of_weights
    given = {} if classes is None else {"num_classes": classes}
    # timm converts what other libraries call the parameters, and resamples position embeddings.
    overlay = (
        {"state_dict": state}
        | ({} if of_weights is None else {"num_classes": of_weights})
        | (given if of_weights is None else {})
    )
    try:
        return _create(name, timm_kwargs, pretrained=True, pretrained_cfg_overlay=overlay, **given)
    except Exception as error:  # whatever timm's filters raise on foreign names
        difference = _difference(like.state_dict(), state) or f"{type(error).__name__}: {_first_line(error)}"
        raise ModelError(f"{context}: not the weights of a {name} for pixels: {difference}") from error


def _difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Return in words how a state dict differs from the one that is expected; "" where it does not."""
    found = {
        "missing": [name for name in own if name not in given],
        "left over": [name for name in given if name not in own],
        "of another shape": [name for name in own if name in given and own[name].shape != given[name].shape],
    }
    return ", ".join(f"{len(names)} {what} ({names[0]}, ...)" for what, names in found.items() if names)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:2])[:300]
