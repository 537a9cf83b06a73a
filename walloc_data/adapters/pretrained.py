"""A pixel model whose weights a latent model begins with: timm's own, or those in a file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from walloc_data.adapters.wrapping import bare_names
from walloc_data.errors import ModelError

if TYPE_CHECKING:
    from walloc_data.adapters.models import LatentModelConfig

__all__ = ["Pretrained", "pixel_model"]

Pretrained = bool | str | os.PathLike[str] | nn.Module

_HUB_SECONDS = 5.0  # to wait for any answer of the Hub, before timm asks it for weights


def pixel_model(config: "LatentModelConfig", pretrained: Pretrained) -> nn.Module:
    """The pixel model of a config's name that has pretrained weights.

    Raises:
        ModelError: the weights cannot be had or read, or are not those of this model.
    """
    if isinstance(pretrained, nn.Module):
        return pretrained
    if isinstance(pretrained, str | os.PathLike):
        return _with_weights(config, _read_state(Path(pretrained)), where=str(pretrained))
    if pretrained is not True:
        raise ModelError(
            f"pretrained must be True, the path of a state dict or a pixel model, not {type(pretrained).__name__}"
        )
    cached = _cached_weights(config.name)
    if (problem := _hub_problem()) is not None:
        if cached is None:
            raise ModelError(
                f"{config.name}: timm's weights are not in the cache of this machine, and the Hub does not answer "
                f"({problem}): try again with a network, or pass the path of a state dict as pretrained="
            )
        return _with_weights(config, _read_state(cached), where=str(cached))
    try:
        return _create(config, pretrained=True, num_classes=config.num_classes)
    except Exception as error:  # timm, huggingface_hub and the network raise what they like
        raise ModelError(
            f"{config.name}: timm's weights cannot be had ({type(error).__name__}: {_first_line(error)}): pass the "
            "path of a state dict, or a pixel model, as pretrained="
        ) from error


def _create(config: "LatentModelConfig", **kwargs: Any) -> nn.Module:
    import timm

    kept = {key: value for key, value in config.timm_kwargs.items() if key not in ("img_size", "patch_size")}
    model: nn.Module = timm.create_model(config.name, **kwargs, **kept)
    return model


def _cached_weights(name: str) -> Path | None:
    """The file of timm's weights in the Hub's cache."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        return None
    names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    found = (try_to_load_from_cache(cfg.hf_hub_id, filename) for filename in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _hub_problem() -> str | None:
    """Return why the Hub cannot be reached, None where it answers; without this its client retries for a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception as error:  # of whatever HTTP client this version of huggingface_hub uses
        return f"{type(error).__name__}: {_first_line(error)}"
    return None


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors, or from what torch.save wrote, by its unpickler that builds tensors alone."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(
            f"{path}: no such file: pretrained= takes True for timm's own weights, the path of a state dict "
            "(.safetensors, or .pth of torch.save), or a pixel model"
        )
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


def _with_weights(config: "LatentModelConfig", state: dict[str, Tensor], *, where: str) -> nn.Module:
    """timm's module with weights of pixels; a classifier of another number of classes is left fresh, as timm does."""
    cfg: Any = getattr(_on_meta(config), "pretrained_cfg", {})
    heads = [cfg["classifier"]] if isinstance(cfg.get("classifier"), str) else list(cfg.get("classifier") or [])
    sizes = {len(state[f"{head}.weight"]) for head in heads if f"{head}.weight" in state}
    num_classes = sizes.pop() if len(sizes) == 1 else config.num_classes
    # timm converts what other libraries call the parameters, and resamples position embeddings.
    overlay = {"state_dict": state, "num_classes": num_classes}
    try:
        return _create(config, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=config.num_classes)
    except Exception as error:  # whatever timm's filters raise on foreign names
        raise ModelError(
            f"{where}: not the weights of a {config.name} for pixels ({type(error).__name__}: {_first_line(error)})"
        ) from error


def _on_meta(config: "LatentModelConfig") -> nn.Module:
    with torch.device("meta"):
        return _create(config)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:2])[:300]
