"""The codec: wavelet packets, the linear encoder, decoders, checkpoints, training, and the bundled weights.

Names load on first use: a program that only reads latents imports none of this, and one that encodes loads no decoder.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from walloc_data.codec.checkpoints import CodecInfo, bundled_codecs, codec_folder, load_codec, save_codec
    from walloc_data.codec.decoder_files import save_decoder
    from walloc_data.codec.decoder_training import train_decoder
    from walloc_data.codec.encoding import LinearEncoder
    from walloc_data.codec.model import WallocCodec
    from walloc_data.codec.page import (
        SNAP_MULTIPLE,
        decode_from_blob,
        decode_from_latent,
        encode_to_latent,
        from_model_output,
        latent_to_webp_bytes,
        resize_bicubic,
        snap_shape,
        to_model_input,
    )
    from walloc_data.codec.pictures import PictureSet, read_pictures
    from walloc_data.codec.stored import fetch_codec
    from walloc_data.codec.training import train_codec
    from walloc_data.codec.training_config import (
        DecoderTrainConfig,
        DecoderTrainResult,
        TrainConfig,
        TrainResult,
    )
    from walloc_data.codec.wavelets import wavelet_analysis, wavelet_synthesis

_FILES = {
    "CodecInfo": "checkpoints",
    "DecoderTrainConfig": "training_config",
    "DecoderTrainResult": "training_config",
    "LinearEncoder": "encoding",
    "PictureSet": "pictures",
    "SNAP_MULTIPLE": "page",
    "TrainConfig": "training_config",
    "TrainResult": "training_config",
    "WallocCodec": "model",
    "bundled_codecs": "checkpoints",
    "codec_folder": "checkpoints",
    "decode_from_blob": "page",
    "decode_from_latent": "page",
    "encode_to_latent": "page",
    "fetch_codec": "stored",
    "from_model_output": "page",
    "latent_to_webp_bytes": "page",
    "load_codec": "checkpoints",
    "read_pictures": "pictures",
    "resize_bicubic": "page",
    "save_codec": "checkpoints",
    "save_decoder": "decoder_files",
    "snap_shape": "page",
    "to_model_input": "page",
    "train_codec": "training",
    "train_decoder": "decoder_training",
    "wavelet_analysis": "wavelets",
    "wavelet_synthesis": "wavelets",
}

__all__ = [
    "SNAP_MULTIPLE",
    "CodecInfo",
    "DecoderTrainConfig",
    "DecoderTrainResult",
    "LinearEncoder",
    "PictureSet",
    "TrainConfig",
    "TrainResult",
    "WallocCodec",
    "bundled_codecs",
    "codec_folder",
    "decode_from_blob",
    "decode_from_latent",
    "encode_to_latent",
    "fetch_codec",
    "from_model_output",
    "latent_to_webp_bytes",
    "load_codec",
    "read_pictures",
    "resize_bicubic",
    "save_codec",
    "save_decoder",
    "snap_shape",
    "to_model_input",
    "train_codec",
    "train_decoder",
    "wavelet_analysis",
    "wavelet_synthesis",
]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
