"""Saving and loading of latent models, as a folder of `model.safetensors` and `config.json`, without pickle."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from walloc_data.adapters.config import LatentModelConfig, latent_config
from walloc_data.adapters.models import HasManifest, assemble, build, features_of
from walloc_data.adapters.wrapping import bare_names, whole_state
from walloc_data.devices import usable_device
from walloc_data.errors import ModelError, StorageError
from walloc_data.files import atomic_file, check_regular, read_regular
from walloc_data.format import CodecSpec, Manifest, dump_json, load_json

__all__ = ["check_codec", "load_latent_model", "model_from_config", "save_latent_model"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_CONFIG_BYTES = 2**20
_SPARE_TENSORS, _SPARE_NUMBERS = 64, 2**24  # of what is replaced while a model is built
MAX_MODEL_BYTES = 2**34  # of weights: the largest that timm knows have half of it


def save_latent_model(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write a latent model atomically.

    Args:
        model: a model made by `create_latent_model`, also wrapped in DDP, FSDP, EMA or `torch.compile`. With FSDP, call
            this on every rank; rank 0 writes.
        folder: folder to write, created if absent.

    Example:
        >>> from walloc_data.adapters import create_latent_model, save_latent_model
        >>> model = create_latent_model("vit_tiny_patch16_224", dataset="my-latents", depth=1)
        >>> sorted(path.name for path in save_latent_model(model, "runs/first").iterdir())
        ['config.json', 'model.safetensors']
    """
    from safetensors.torch import save

    config = latent_config(model)
    weights = whole_state(model)
    target = Path(folder)
    if weights is None:
        return target  # rank 0 has them, and writes
    target.mkdir(parents=True, exist_ok=True)
    with atomic_file(target / WEIGHTS) as unfinished:
        unfinished.write_bytes(save(weights, metadata={"format": "walloc_data-model"}))
    with atomic_file(target / CONFIG) as unfinished:
        unfinished.write_text(dump_json({"format": "walloc_data-model", "format_version": 1} | config.to_dict()))
    return target


def load_latent_model(
    folder: str | os.PathLike[str], *, dataset: HasManifest | Manifest | CodecSpec | None = None, device: str = "cpu"
) -> nn.Module:
    """Rebuild a saved latent model, in eval mode.

    Args:
        folder: folder written by `save_latent_model`.
        dataset: data set whose codec must be that of the model.
        device: device of the model.

    Raises:
        ModelError: the folder is not a model, the weights do not match, or the data set has another codec.
        DeviceError: the device cannot be used here.

    Example:
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.adapters import load_latent_model
        >>> data = LatentDataset("my-latents")
        >>> model = load_latent_model("my-model", dataset=data)
        >>> latents, labels = next(iter(data.loader(batch_size=8)))
        >>> (model(latents).argmax(1) == labels).float().mean().item()
        1.0
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    target = usable_device(device)
    source = Path(folder)
    try:
        value = load_json(read_regular(source / CONFIG, max_bytes=MAX_CONFIG_BYTES), context=str(source / CONFIG))
    except OSError as error:
        raise StorageError(f"{source}: no saved latent model there ({CONFIG}: {error.strerror})") from error
    if value.pop("format", None) != "walloc_data-model" or value.pop("format_version", None) != 1:
        raise ModelError(f"{source / CONFIG}: not a model of this walloc_data; save_latent_model writes them")
    config = LatentModelConfig.from_dict(value, context=str(source / CONFIG))
    try:
        check_regular(source / WEIGHTS, max_bytes=MAX_MODEL_BYTES)
        weights = load_file(source / WEIGHTS)
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise ModelError(f"{source / WEIGHTS}: cannot be read ({error})") from error
    model = model_from_config(config, weights=weights, context=str(source / WEIGHTS))
    if dataset is not None:
        check_codec(model, dataset)
    return model.to(target).eval()


def model_from_config(config: LatentModelConfig, *, weights: dict[str, Tensor], context: str) -> nn.Module:
    """Build the module of a config and load a state dict into it, for custom training checkpoints.

    Args:
        config: e.g. `LatentModelConfig.from_dict(checkpoint["config"], context=path)`.
        weights: the model's `state_dict()`, also that of a compiled or DDP model.
        context: named in errors.

    Example:
        >>> import torch
        >>> from walloc_data.adapters import LatentModelConfig, latent_config, load_latent_model, model_from_config
        >>> model = load_latent_model("my-model")
        >>> torch.save({"config": latent_config(model).to_dict(), "model": model.state_dict()}, "last.pt")
        >>> checkpoint = torch.load("last.pt")
        >>> config = LatentModelConfig.from_dict(checkpoint["config"], context="last.pt")
        >>> again = model_from_config(config, weights=checkpoint["model"], context="last.pt")
        >>> torch.equal(again.head.weight, model.head.weight)
        True
    """
    channels = config.codec.latent_dim
    if config.normalization == "standard":
        buffers = {"latent_mean": torch.zeros(channels), "latent_std": torch.ones(channels)}
    else:
        buffers = {"latent_table": torch.zeros(channels, 2**config.codec.latent_bits)}
    weights = bare_names(weights)
    own = _described(config, buffers=buffers, weights=weights, context=context)
    missing, left_over = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    other_shape = sorted(name for name in set(own) & set(weights) if own[name].shape != weights[name].shape)
    if missing or left_over or other_shape:
        found = {"missing": missing, "left over": left_over, "of another shape": other_shape}
        said = ", ".join(f"{len(names)} {what} ({names[0]}, ...)" for what, names in found.items() if names)
        raise ModelError(f"{context}: the weights do not fit {config.name} as its config describes it: {said}")
    model = build(config, buffers=buffers)
    model.load_state_dict(weights)
    return model


def _described(
    config: LatentModelConfig, *, buffers: Mapping[str, Tensor], weights: Mapping[str, Tensor], context: str
) -> dict[str, Tensor]:
    """Return the state dict of the module that a config describes, on the "meta" device: shapes without memory.

    The config is untrusted and may request any number of blocks, so building stops at four times the size of the
    weights (some families are built twice, and parts are replaced).
    """
    # Of feature maps, stages after the last that is wanted were left out, and are built all the same.
    spare_tensors, spare_numbers = (_SPARE_TENSORS, _SPARE_NUMBERS) if config.features is None else (2**12, 2**28)
    most_tensors = 4 * len(weights) + spare_tensors
    most_numbers = 4 * sum(tensor.numel() for tensor in weights.values()) + spare_numbers
    tensors = numbers = 0

    def count(_: nn.Module, __: str, tensor: Tensor | None) -> None:
        nonlocal tensors, numbers
        if tensor is None:
            return
        tensors, numbers = tensors + 1, numbers + tensor.numel()
        if tensors > most_tensors or numbers > most_numbers:
            raise ModelError(f"{context}: has much less than {config.name} would have by its config")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        with torch.device("meta"):
            shapes = {name: buffer.to("meta") for name, buffer in buffers.items()}
            model = features_of(assemble(config, buffers=shapes), config)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Tensor] = model.state_dict()
    return found


def check_codec(model: nn.Module, dataset: HasManifest | Manifest | CodecSpec) -> None:
    """Check that latents are of the codec of the model, because latents of different encoders are not compatible.

    Raises:
        ModelError: the codecs differ.

    Example:
        >>> from walloc_data.adapters import check_codec, load_latent_model
        >>> from walloc_data.codec import load_codec
        >>> check_codec(load_latent_model("my-model"), load_codec("klt-16x")[1].spec)
        Traceback (most recent call last):
        walloc_data.errors.ModelError: the model was made for latents of codec 'rgb-16x-v1' (...), these are ...
    """
    own = latent_config(model).codec
    other = (
        dataset
        if isinstance(dataset, CodecSpec)
        else (dataset if isinstance(dataset, Manifest) else dataset.manifest).codec
    )
    if own.encoder_sha256 != other.encoder_sha256:
        raise ModelError(
            f"the model was made for latents of codec {own.name!r} ({own.encoder_sha256[:12]}), these are of "
            f"{other.name!r} ({other.encoder_sha256[:12]}): encode the pictures with the model's codec, or train again"
        )
