"""Decoder files: a decoder network for an encoder that exists, in one safetensors file.

    tensors     the network's state dict
    metadata    "walloc_data_decoder": JSON of format_version, version, encoder_sha256 and decoder, the description that
                `walloc_data.codec.decoders.build_decoder` takes

The hash says which encoder's latents the network was trained on; a codec of another encoder refuses the file.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from walloc_data.codec.decoders import Decoder, build_decoder
from walloc_data.codec.model import WallocCodec
from walloc_data.codec.tensor_files import fill, read_tensors
from walloc_data.errors import CodecError, FormatError
from walloc_data.files import atomic_file
from walloc_data.format import load_json

__all__ = ["load_decoder", "save_decoder"]

_KEY = "walloc_data_decoder"


def save_decoder(codec: WallocCodec, path: str | Path, *, version: str, dtype: torch.dtype = torch.float32) -> None:
    """Write a codec's decoder network as a file that `load_codec(..., decoder=path)` reads.

    Args:
        codec: with a decoder of this package (`ConvDecoder`, `UNetDecoder`).
        path: the file, overwritten.
        version: a name for this decoder among those of its encoder.
        dtype: of the tensors in the file; float16 halves it and costs less than 0.001 dB.

    Example:
        >>> from walloc_data.codec import load_codec, save_decoder
        >>> codec, info = load_codec()
        >>> save_decoder(codec, "decoder.safetensors", version="mine")
        >>> load_codec("rgb-16x-v1", decoder="decoder.safetensors")[1].decoder_version
        'mine'
    """
    network = codec.decoder[1]
    if not isinstance(network, Decoder):
        raise CodecError(f"a decoder file holds a convolutional decoder, not a {type(network).__name__}")
    value = {
        "format_version": 1,
        "version": version,
        "encoder_sha256": codec.encoder_sha256,
        "decoder": network.config,
    }
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
    with atomic_file(path) as unfinished:
        save_file(tensors, unfinished, metadata={_KEY: json.dumps(value)})


def load_decoder(path: Path, *, codec: WallocCodec) -> tuple[Decoder, str]:
    """Read a decoder file for a codec: the network in float32, and its version.

    Raises:
        CodecError: the file is not one, is damaged, or was trained for another encoder.
    """
    tensors, metadata = read_tensors(path)
    try:
        value: Any = load_json(metadata.get(_KEY, "{}"), context=f"{path}: {_KEY}")
    except FormatError as error:
        raise CodecError(str(error)) from error
    if value.get("format_version") != 1 or not isinstance(value.get("decoder"), dict):
        raise CodecError(f"{path}: not a decoder file of a version that this walloc_data reads")
    if (found := value.get("encoder_sha256")) != codec.encoder_sha256:
        raise CodecError(
            f"{path}: a decoder for the encoder {str(found)[:12]}..., but the codec's encoder is "
            f"{codec.encoder_sha256[:12]}...: take the codec that the decoder's card names"
        )
    bands = codec.channels * 4**codec.J
    with torch.device("meta"):
        network = build_decoder(value["decoder"], latent_dim=codec.latent_dim, out_channels=bands)
    fill(network, tensors, context=path)
    return network.to(memory_format=torch.channels_last), str(value.get("version"))
