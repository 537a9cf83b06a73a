"""Published WaLLoC checkpoints: ``X.pth`` with ``X.json`` beside it, on disk or on the Hugging Face Hub.

A .pth is a pickle from the network. It is opened by torch's restricted unpickler (weights_only) with two more names
allowed, both inert: types.SimpleNamespace, and a class `Config` of `__main__`, for which an empty class stands in.
Anything else that a pickle asks for is refused before it runs.
"""

import contextlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from walloc_data.codec.info import MAX_CONFIG_BYTES, CodecInfo, read_capped
from walloc_data.codec.model import NoDecoder, WallocCodec
from walloc_data.errors import CodecError, FormatError, MissingExtraError
from walloc_data.files import check_regular
from walloc_data.format import load_json

__all__ = ["load_from_hub", "load_published"]

MAX_CHECKPOINT_BYTES = 2**32
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?/([\w.-]+(?:/[\w.-]+)*\.pth)")


class _Config:
    """Stands in for `__main__.Config`, the class of the settings in some published files. It holds fields, no code."""


_Config.__module__, _Config.__name__, _Config.__qualname__ = "__main__", "Config", "Config"


def load_from_hub(url: str, *, decoder: bool) -> tuple[WallocCodec, CodecInfo]:
    """Load ``hf://owner/repo[@revision]/path.pth``; it is fetched into the Hub's cache unless it is there."""
    if not (match := _HUB.fullmatch(url)) or ".." in url:
        raise CodecError(f"{url!r} is not of the form hf://owner/repo[@revision]/path.pth")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repo, revision, name = match.groups()
    try:
        path = Path(hf_hub_download(repo, name, revision=revision))
        with contextlib.suppress(EntryNotFoundError):  # absent: the checkpoint then carries its settings itself
            hf_hub_download(repo, str(Path(name).with_suffix(".json")), revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CodecError(f"{url}: could not be had from the Hugging Face Hub ({error})") from error
    return load_published(path, decoder=decoder)


def load_published(path: Path, *, decoder: bool) -> tuple[WallocCodec, CodecInfo]:
    """Read a published checkpoint. `decoder` builds diffusers' decoder too, and needs that package."""
    checkpoint = _read_checkpoint(path)
    state = checkpoint.get("model_state_dict")
    if not isinstance(state, Mapping) or not all(map(_is_plain, state.keys(), state.values())):
        raise CodecError(
            f"{path}: holds no model_state_dict of dense float tensors by name: not a published WaLLoC checkpoint"
        )
    settings = _read_settings(path, checkpoint)
    weight = state.get("encoder.0.weight")
    if weight is not None and weight.ndim == 3:
        raise CodecError(f"{path}: a codec for 1-D signals (audio); walloc_data takes codecs for pictures")
    if weight is None or weight.ndim != 4 or settings.get("lightweight_encode") is False:
        raise CodecError(f"{path}: its encoder is not a 1x1 convolution (lightweight_encode); only such run here")
    shape = {name: _whole(settings, name, context=path) for name in ("channels", "J", "latent_dim", "latent_bits")}
    codec = WallocCodec(
        channels=shape["channels"], J=shape["J"], latent_dim=shape["latent_dim"], latent_bits=shape["latent_bits"],
        decoder=NoDecoder(),
    )  # fmt: skip
    if decoder:
        codec.decoder[1] = _build_decoder(
            latent_dim=shape["latent_dim"],
            out_channels=shape["channels"] * 4 ** shape["J"],
            width=_whole(settings, "Nd", context=path),
        )
    else:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}
    _load_state(codec, state, context=path)
    codec.name = re.sub(r"[^a-z0-9_-]", "-", path.stem.lower())
    try:
        spec = codec.spec
    except FormatError as error:
        raise CodecError(f"{path}: {error}") from error
    return codec, CodecInfo(spec=spec, decoder="published" if decoder else "none")


def _is_plain(name: object, tensor: object) -> bool:
    """Return whether an entry of a state dict is a dense float tensor of the CPU that has a value for every element.

    A view of stride 0 takes no bytes in the file, and gigabytes once it is converted to float32.
    """
    return (
        isinstance(name, str)
        and type(tensor) in (Tensor, nn.Parameter)
        and isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_floating_point()
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    try:
        check_regular(path)  # its entries say how much it is
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if (total := sum(entry.file_size for entry in entries)) > MAX_CHECKPOINT_BYTES:
                raise CodecError(f"{path}: unpacks to {total} bytes; at most {MAX_CHECKPOINT_BYTES} are read")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CodecError(f"{path}: has compressed members, which torch.save does not write")
    except OSError as error:
        raise CodecError(f"{path}: cannot be read ({error.strerror or error})") from error
    except zipfile.BadZipFile as error:
        raise CodecError(f"{path}: not a file that torch.save writes (a zip archive)") from error
    try:
        with torch.serialization.safe_globals([SimpleNamespace, _Config]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever kind a hostile file provokes
        reason = str(error).partition("Please file an issue")[0].strip().splitlines() or [type(error).__name__]
        raise CodecError(
            f"{path}: refused. A checkpoint may hold tensors and plain settings only, and nothing in it was run: "
            f"{reason[-1].strip()}"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise CodecError(f"{path}: holds a {type(checkpoint).__name__}, not a published WaLLoC checkpoint")
    return checkpoint


def _read_settings(path: Path, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            return load_json(read_capped(beside, limit=MAX_CONFIG_BYTES), context=str(beside))
        except FormatError as error:
            raise CodecError(str(error)) from error
    settings = checkpoint.get("config")
    fields = settings if isinstance(settings, Mapping) else getattr(settings, "__dict__", None)
    if not isinstance(fields, Mapping):
        raise CodecError(f"{path}: no settings: expected {beside.name} beside it, or a 'config' inside")
    return fields


def _whole(settings: Mapping[str, Any], name: str, *, context: Path) -> int:
    value = settings.get(name)
    low, high = {"J": (1, 4), "latent_bits": (2, 8), "channels": (1, 4)}.get(name, (1, 4096))
    # Bounded before anything is built from it: Nd is the decoder's width, 768 in the published RGB_16x.
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise CodecError(f"{context}: the setting {name} must be an integer in [{low}, {high}], not {value!r}")
    return value


def _build_decoder(*, latent_dim: int, out_channels: int, width: int) -> nn.Module:
    try:
        from diffusers.models.autoencoders.autoencoder_kl import Decoder
    except ImportError as error:
        purpose = "decoding with a published checkpoint"
        raise MissingExtraError("diffusers", extra="published", purpose=purpose) from error
    if width % 32:
        raise CodecError(f"the decoder's width Nd={width} must be a multiple of 32, the groups of its normalisation")
    with torch.device("meta"):  # shapes only: 57 million numbers need no random start
        network: nn.Module = Decoder(
            in_channels=latent_dim,
            out_channels=out_channels,
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(width,),
            layers_per_block=2,
            norm_num_groups=32,
            act_fn="silu",
            mid_block_add_attention=True,
        )
    return network


def _load_state(codec: WallocCodec, state: Mapping[str, Tensor], *, context: Path) -> None:
    wanted = codec.state_dict()
    if missing := sorted(set(wanted) - set(state)):
        raise CodecError(f"{context}: {missing[0]} is absent ({len(missing)} tensors are)")
    if unknown := sorted(set(state) - set(wanted)):
        raise CodecError(f"{context}: {unknown[0]} belongs to no part of a WaLLoC codec for pictures")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}"
            raise CodecError(f"{context}: {name} has shape {shapes}: the settings and the weights disagree")
        if name.startswith(("wt.", "iwt.")) and (tensor - wanted[name]).abs().max() > 1e-6:
            raise CodecError(f"{context}: {name} is not the bior4.4 filter; other wavelets are not supported")
    codec.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
