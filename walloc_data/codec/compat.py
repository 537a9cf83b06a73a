"""Functions with the names and arguments of the codec authors' page and evaluation package.

    x = to_model_input(picture_in_0_1)                          [0, 1] to [-1/2, 1/2]
    z_hat = encode_to_latent(codec, x)                          whole floats (N, 12, H/8, W/8)
    blob = latent_to_webp_bytes(z_hat, info.latent_bits)        one picture's bytes
    x_hat = decode_from_blob(codec, blob, info.latent_dim, info.latent_bits, device, torch_dtype)
    picture = from_model_output(x_hat)                          [-1/2, 1/2] to [0, 1]

The page is danjacobellis.net/compressors/WaLLoC.html. The authors' later package offers, beside these,
`decode_from_latent`, and resizing to a share of a picture's pixels, which gives a codec of one rate a curve:

    height, width = snap_shape(512, 768, 50)                    about 50 % of the pixels, multiples of SNAP_MULTIPLE
    x = resize_bicubic(x, (height, width))

Their arguments are positional, as they are there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from walloc_data.codec.model import WallocCodec
from walloc_data.errors import CodecError
from walloc_data.latents import decode_webp, encode_webp, expand, pack, unpack

__all__ = [
    "SNAP_MULTIPLE", "decode_from_blob", "decode_from_latent", "encode_to_latent", "from_model_output",
    "latent_to_webp_bytes", "resize_bicubic", "snap_shape", "to_model_input",
]  # fmt: skip

SNAP_MULTIPLE = 16  # pixels: sides of resized pictures are multiples of this


def to_model_input(x: Tensor) -> Tensor:
    """Convert float pictures in [0, 1] to the codec's range [-1/2, 1/2].

    Example:
        >>> import torch
        >>> from walloc_data.codec import to_model_input
        >>> to_model_input(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-0.5000, 0.0000, 0.5000])
    """
    return x - 0.5


def from_model_output(x_hat: Tensor) -> Tensor:
    """Convert pictures in [-1/2, 1/2] to [0, 1].

    Example:
        >>> import torch
        >>> from walloc_data.codec import from_model_output
        >>> from_model_output(torch.tensor([-0.5, 0.0, 0.5]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return x_hat + 0.5


@torch.no_grad()
def encode_to_latent(codec: WallocCodec, x: Tensor) -> Tensor:
    """Encode float pictures (N, C, H, W) in [-1/2, 1/2] to latents: whole numbers in x's dtype, (N, latent_dim, h, w).

    float32 pictures that come from 8-bit pixels get the latent that `WallocCodec.encode` gives those pixels.

    Example:
        >>> import torch
        >>> from walloc_data.codec import encode_to_latent, load_codec, to_model_input
        >>> codec, info = load_codec()
        >>> z_hat = encode_to_latent(codec, to_model_input(torch.rand(1, 3, 64, 96)))
        >>> z_hat.shape, z_hat.dtype, (z_hat == z_hat.round()).all().item()
        (torch.Size([1, 12, 8, 12]), torch.float32, True)
    """
    pixels = ((x.float() + 0.5) * 255).round()
    from_bytes = bool(((pixels / 255 - 0.5 - x).abs() < 1e-6).all() and (pixels == pixels.clamp(0, 255)).all())
    return codec.encode(pixels.to(torch.uint8) if from_bytes else x).to(x.dtype)


def latent_to_webp_bytes(z_hat: Tensor, latent_bits: int = 8) -> bytes:
    """Return one latent (1, C, h, w) of whole numbers, any dtype, as the bytes of a lossless WebP picture.

    Example:
        >>> import torch
        >>> from walloc_data.codec import latent_to_webp_bytes
        >>> blob = latent_to_webp_bytes(torch.zeros(1, 12, 8, 12))
        >>> blob[:4], blob[8:12]
        (b'RIFF', b'WEBP')
    """
    half = 2 ** (latent_bits - 1)
    if z_hat.ndim != 4 or z_hat.shape[0] != 1 or not z_hat.numel():
        raise CodecError(f"latent_to_webp_bytes takes one latent (1, C, h, w), not {tuple(z_hat.shape)}")
    if not ((z_hat >= -half) & (z_hat < half) & (z_hat == z_hat.floor())).all():  # NaN is none of these
        raise CodecError(f"a latent of {latent_bits} bits holds whole numbers in [{-half}, {half - 1}]: round it first")
    return encode_webp(pack(z_hat.to(torch.int8))[0])


def decode_from_blob(
    codec: WallocCodec,
    blob: bytes,
    latent_dim: int = 12,
    latent_bits: int = 8,
    device: str | torch.device = "cpu",
    torch_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Decode the bytes of `latent_to_webp_bytes` to a picture (1, C, H, W) in [-1/2, 1/2].

    Example:
        >>> import torch
        >>> from walloc_data.codec import decode_from_blob, encode_to_latent, latent_to_webp_bytes, load_codec
        >>> codec, info = load_codec()
        >>> blob = latent_to_webp_bytes(encode_to_latent(codec, torch.zeros(1, 3, 64, 96)))
        >>> decode_from_blob(codec, blob, info.latent_dim, info.latent_bits).shape
        torch.Size([1, 3, 64, 96])
    """
    if latent_bits != codec.latent_bits or latent_dim != codec.latent_dim:
        raise CodecError(
            f"the codec has {codec.latent_dim} channels of {codec.latent_bits} bits, "
            f"the blob is said to have {latent_dim} of {latent_bits}"
        )
    latent = torch.from_numpy(unpack(decode_webp(blob), latent_dim=latent_dim))[None]
    return codec.decode(latent.to(device)).to(torch_dtype)


def decode_from_latent(codec: WallocCodec, z_hat: Tensor) -> Tensor:
    """Decode whole-number latents (N, latent_dim, h, w) to pictures (N, C, H, W), about [-1/2, 1/2].

    Unlike `WallocCodec.decode` this is differentiable, for fine-tuning a decoder, does not clamp, and decodes in one
    piece.

    Example:
        >>> import torch
        >>> from walloc_data.codec import decode_from_latent, load_codec
        >>> codec, info = load_codec()
        >>> x_hat = decode_from_latent(codec, torch.zeros(1, 12, 8, 12))
        >>> x_hat.shape, x_hat.requires_grad
        (torch.Size([1, 3, 64, 96]), True)
    """
    network = codec.decoder[1]
    parameter = next(network.parameters(), None)
    v = expand(z_hat.float(), latent_bits=codec.latent_bits)
    if parameter is not None:
        v = v.to(parameter)
    return codec.wavelet_synthesis(network(v), J=codec.J)


def snap_shape(h: int, w: int, q: float) -> tuple[int, int]:
    """Return the size, in multiples of `SNAP_MULTIPLE`, that has about q % of the pixels of h x w, at the same aspect.

    Args:
        h, w: pixels.
        q: per cent of the pixels, in (0, 100].

    Example:
        >>> from walloc_data.codec import snap_shape
        >>> snap_shape(512, 768, 50)
        (368, 544)
    """
    if not 0 < q <= 100:
        raise CodecError(f"snap_shape: q is a per cent of the pixels in (0, 100], not {q}")
    scale = math.sqrt(q / 100) / SNAP_MULTIPLE
    height, width = (max(1, round(side * scale)) * SNAP_MULTIPLE for side in (h, w))
    return height, width


def resize_bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize pictures (N, C, H, W) to (height, width), bicubic with antialiasing. Values can exceed the input's range.

    Example:
        >>> import torch
        >>> from walloc_data.codec import resize_bicubic
        >>> resize_bicubic(torch.zeros(1, 3, 64, 48), (32, 32)).shape
        torch.Size([1, 3, 32, 32])
    """
    return F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
