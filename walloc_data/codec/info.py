"""The description of a codec, `CodecInfo`, and bounded reading of its small files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from walloc_data.errors import CodecError
from walloc_data.files import read_regular
from walloc_data.format import CodecSpec

__all__ = ["MAX_CONFIG_BYTES", "CodecInfo", "read_capped"]

MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True)
class CodecInfo:
    """Facts about a codec: the spec that data sets record, and what else its folder states.

    `statistics` are (mean, std) per latent channel of the integers on the training pictures, None where unknown.
    `decoder` is the kind of network, `decoder_version` its version among the decoders of this encoder.

    Example:
        >>> from walloc_data import load_codec
        >>> codec, info = load_codec()
        >>> info.name, info.latent_dim, info.dimensionality_reduction, info.decoder
        ('rgb-16x-v1', 12, 16.0, 'unet')
    """

    spec: CodecSpec
    decoder: Literal["linear", "conv", "unet", "published", "none"]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    input_range: Literal["centered"] = "centered"  # pictures as float lie in [-1/2, 1/2]
    decoder_version: str | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def channels(self) -> int:
        return self.spec.channels

    @property
    def J(self) -> int:  # noqa: N802
        return self.spec.J

    @property
    def latent_dim(self) -> int:
        return self.spec.latent_dim

    @property
    def latent_bits(self) -> int:
        return self.spec.latent_bits

    @property
    def encoder_sha256(self) -> str:
        return self.spec.encoder_sha256

    @property
    def dimensionality_reduction(self) -> float:
        return self.spec.dimensionality_reduction


def read_capped(path: Path, *, limit: int) -> bytes:
    """Return the bytes of a small file.

    Raises:
        CodecError: it has more than `limit` bytes (checked before it is read), or cannot be read.
    """
    try:
        return read_regular(path, max_bytes=limit)
    except OSError as error:
        raise CodecError(f"{path}: cannot be read ({error.strerror or error})") from error
