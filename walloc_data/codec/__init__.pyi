from .checkpoints import bundled_codecs, codec_folder, fetch_codec, load_codec, save_codec
from .compat import (
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
from .decoder_files import save_decoder
from .encoding import LinearEncoder
from .info import CodecInfo
from .model import WallocCodec
from .training.codec import train_codec
from .training.config import (
    DecoderTrainConfig,
    DecoderTrainResult,
    TrainConfig,
    TrainResult,
)
from .training.decoder import train_decoder
from .training.picture_sets import PictureSet, read_pictures
from .wavelets import wavelet_analysis, wavelet_synthesis

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
