"""The codec's shape, and the settings of an encoding."""

import math
from dataclasses import dataclass
from typing import Literal

from walloc_data.errors import FormatError
from walloc_data.format.checks import Record, check_bool, check_int, shown
from walloc_data.format.names import check_name, check_sha256

__all__ = ["CodecSpec", "EncodeSettings"]


@dataclass(frozen=True)
class CodecSpec(Record):
    """Shape of a codec, and the hash of the weights that make latents from pictures.

    Example:
        >>> from walloc_data.storage import Store, read_manifest
        >>> spec = read_manifest(Store("my-latents")).codec
        >>> spec.cell_px, spec.latent_bits, spec.dimensionality_reduction
        (8, 8, 16.0)
        >>> spec.latent_shape(height=512, width=768)
        (12, 64, 96)
    """

    name: str
    channels: int  # of the picture: 3
    J: int  # wavelet-packet levels: one cell is 2^J pixels
    latent_dim: int
    latent_bits: int
    wavelet: str
    encoder_sha256: str

    def __post_init__(self) -> None:
        check_name(self.name, what="codec name", where="codec")
        check_int("channels", self.channels, low=1, high=4)
        check_int("J", self.J, low=1, high=8)
        check_int("latent_dim", self.latent_dim, low=1, high=4096)
        check_int("latent_bits", self.latent_bits, low=2, high=8)
        if self.wavelet != "bior4.4":
            raise FormatError(f"wavelet must be 'bior4.4', not {shown(self.wavelet)}")
        check_sha256("encoder_sha256", self.encoder_sha256)
        if self.latent_dim % self.channels or math.isqrt(self.tiles) ** 2 != self.tiles:
            raise FormatError(
                f"latent_dim {self.latent_dim} does not pack: it must be channels ({self.channels}) times a square"
            )

    @property
    def cell_px(self) -> int:
        """Pixels along one side of a latent cell."""
        return 1 << self.J

    @property
    def tiles(self) -> int:
        """Latent channels that share one colour plane of the packed picture."""
        return self.latent_dim // self.channels

    @property
    def dimensionality_reduction(self) -> float:
        """Picture values per latent value."""
        return self.channels * self.cell_px**2 / self.latent_dim

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (latent_dim, h, w) of a picture of `height` x `width` pixels, padding included."""
        return self.latent_dim, -(-height // self.cell_px), -(-width // self.cell_px)


@dataclass(frozen=True)
class EncodeSettings(Record):
    """Everything besides source and codec that a shard's bytes depend on.

    Example:
        >>> from walloc_data.format import EncodeSettings
        >>> settings = EncodeSettings(size_px=256, mirror=True)
        >>> settings.samples_per_shard, settings.background
        (2048, (255, 255, 255))
        >>> EncodeSettings.from_dict(settings.to_dict(), where="settings") == settings
        True
    """

    size_px: int | None = None  # the shorter side is resized to this, then the centre is cropped; None: as it is
    samples_per_shard: int = 2048
    shuffle_seed: int | None = 0  # None keeps the source's order
    webp_effort: Literal["default", "fast"] = "default"
    background: tuple[int, int, int] = (255, 255, 255)  # RGB under transparent pixels
    mirror: bool = False  # store the latent of the mirrored picture beside each one
    # Larger pictures become failures: a bound on memory, and on decompression bombs. The default is Pillow's own.
    max_pixels: int = 89_478_485
    max_value: int | None = None  # of PNG and TIFF above 8 bits: what is full brightness, e.g. 4095; None: 65535

    def __post_init__(self) -> None:
        if self.size_px is not None:
            check_int("size_px", self.size_px, low=1, high=65528)  # whose packed latent WebP can hold
        check_int("samples_per_shard", self.samples_per_shard, low=1, high=10**7)
        if self.shuffle_seed is not None:
            check_int("shuffle_seed", self.shuffle_seed, low=0)
        if self.webp_effort not in ("default", "fast"):
            raise FormatError(f"webp_effort must be 'default' or 'fast', not {shown(self.webp_effort)}")
        if not isinstance(self.background, tuple) or len(self.background) != 3:
            raise FormatError(f"background must be three values in [0, 255], not {shown(self.background)}")
        for value in self.background:
            check_int("background", value, low=0, high=255)
        check_bool("mirror", self.mirror)
        check_int("max_pixels", self.max_pixels, low=1)
        if self.max_value is not None:
            check_int("max_value", self.max_value, low=256, high=65535)
