"""The parameters of a codec, and the settings of a conversion."""

import math
from dataclasses import dataclass
from typing import Literal, TypedDict

from walloc_data.errors import FormatError
from walloc_data.format.checks import Record, check_bool, check_int, short_repr
from walloc_data.format.names import check_name, check_sha256

__all__ = ["CodecSpec", "EncodeSettings", "SettingFields"]

_RESIZE_MODES = ("crop", "shorter", "square")


@dataclass(frozen=True)
class CodecSpec(Record):
    """Parameters of a codec, and the hash of its encoder.

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
        check_name(self.name, what="codec name", context="codec")
        check_int("channels", self.channels, low=1, high=4)
        check_int("J", self.J, low=1, high=8)
        check_int("latent_dim", self.latent_dim, low=1, high=4096)
        check_int("latent_bits", self.latent_bits, low=2, high=8)
        if self.wavelet != "bior4.4":
            raise FormatError(f"wavelet must be 'bior4.4', not {short_repr(self.wavelet)}")
        check_sha256("encoder_sha256", self.encoder_sha256)
        if self.latent_dim % self.channels or math.isqrt(self.tiles) ** 2 != self.tiles:
            raise FormatError(
                f"latent_dim {self.latent_dim} cannot be packed: it must be channels ({self.channels}) times a square"
            )

    @property
    def cell_px(self) -> int:
        """Side of a latent cell in pixels."""
        return 1 << self.J

    @property
    def tiles(self) -> int:
        """Latent channels per colour plane of the packed picture."""
        return self.latent_dim // self.channels

    @property
    def is_usual(self) -> bool:
        """Whether latents have 12 channels and cells of 8 px, as `walloc_data.interop` assumes by default."""
        return (self.channels, self.latent_dim, self.cell_px) == (3, 12, 8)

    @property
    def dimensionality_reduction(self) -> float:
        """Picture values per latent value."""
        return self.channels * self.cell_px**2 / self.latent_dim

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape (latent_dim, h, w) of the latent of a picture, including padding."""
        return self.latent_dim, -(-height // self.cell_px), -(-width // self.cell_px)


class SettingFields(TypedDict, total=False):
    """Fields of `EncodeSettings` as keyword arguments.

    Example:
        >>> from typing import Unpack
        >>> from walloc_data.format import EncodeSettings, SettingFields
        >>> def settings(**fields: Unpack[SettingFields]) -> EncodeSettings:
        ...     return EncodeSettings(**fields)
        >>> settings(size_px=96).size_px
        96
    """

    size_px: int | None
    samples_per_shard: int
    shuffle_seed: int | None
    webp_effort: Literal["default", "fast"]
    background: tuple[int, int, int]
    mirror: bool
    max_pixels: int
    max_value: int | None
    sample_json: bool
    resize: str
    filter: Literal["bicubic", "lanczos"]
    snap: int | None


@dataclass(frozen=True)
class EncodeSettings(Record):
    """Settings of a conversion: everything besides the source and the codec that affects the bytes of shards.

    Example:
        >>> from walloc_data.format import EncodeSettings
        >>> settings = EncodeSettings(size_px=256, mirror=True)
        >>> settings.samples_per_shard, settings.background
        (2048, (255, 255, 255))
        >>> EncodeSettings.from_dict(settings.to_dict(), context="settings") == settings
        True
    """

    size_px: int | None = None  # size after resizing; None: no resizing
    samples_per_shard: int = 2048
    shuffle_seed: int | None = 0  # None keeps the order of the source
    webp_effort: Literal["default", "fast"] = "default"
    background: tuple[int, int, int] = (255, 255, 255)  # RGB under transparent pixels
    mirror: bool = False  # also store the latent of each mirrored picture
    # Larger pictures become failures, which bounds the memory. The default is Pillow's limit for decompression bombs.
    max_pixels: int = 89_478_485
    max_value: int | None = None  # value of white in PNG and TIFF files of more than 8 bits, e.g. 4095; None: 65535
    sample_json: bool = False  # also write {key}.json, with values of up to 1 MiB; the index has up to 64 KiB
    # crop: resize the shorter side to size_px, then crop the centre square. shorter: resize the shorter side, no crop.
    # square: resize both sides to size_px. "shorter:288" sets size_px, too.
    resize: str = "crop"
    filter: Literal["bicubic", "lanczos"] = "bicubic"
    snap: int | None = None  # crop sides, around the centre, to multiples of this

    def __post_init__(self) -> None:
        self._split_resize()
        if self.size_px is not None:
            check_int("size_px", self.size_px, low=1, high=65528)  # limit of WebP for the packed latent
        if self.filter not in ("bicubic", "lanczos"):
            raise FormatError(f"filter must be 'bicubic' or 'lanczos', not {short_repr(self.filter)}")
        if self.snap is not None:
            check_int("snap", self.snap, low=1, high=4096)
            if self.size_px is not None and self.size_px % self.snap:
                raise FormatError(f"size_px {self.size_px} is not a multiple of snap {self.snap}")
        check_int("samples_per_shard", self.samples_per_shard, low=1, high=10**7)
        if self.shuffle_seed is not None:
            check_int("shuffle_seed", self.shuffle_seed, low=0)
        if self.webp_effort not in ("default", "fast"):
            raise FormatError(f"webp_effort must be 'default' or 'fast', not {short_repr(self.webp_effort)}")
        if not isinstance(self.background, tuple) or len(self.background) != 3:
            raise FormatError(f"background must be three values in [0, 255], not {short_repr(self.background)}")
        for value in self.background:
            check_int("background", value, low=0, high=255)
        check_bool("mirror", self.mirror)
        check_int("max_pixels", self.max_pixels, low=1)
        if self.max_value is not None:
            check_int("max_value", self.max_value, low=256, high=65535)
        check_bool("sample_json", self.sample_json)

    def _split_resize(self) -> None:
        """Split ``"shorter:288"``; its number replaces size_px, also in `dataclasses.replace`."""
        mode, colon, number = str(self.resize).partition(":")
        if not isinstance(self.resize, str) or mode not in _RESIZE_MODES or (colon and not number.isdecimal()):
            raise FormatError(
                f"resize must be crop, shorter or square, or e.g. 'shorter:288', not {short_repr(self.resize)}"
            )
        if colon:
            object.__setattr__(self, "resize", mode)
            object.__setattr__(self, "size_px", int(number[:9]))
        elif mode != "crop" and self.size_px is None:
            raise FormatError(f"resize {mode!r} needs a size: use '{mode}:288', or size_px")

    @property
    def resized(self) -> str:
        """Return a description of the resizing.

        Example:
            >>> from walloc_data.format import EncodeSettings
            >>> EncodeSettings(resize="shorter:288", snap=32).resized
            'shorter side 288 px, sides cropped to multiples of 32 px'
        """
        snapped = f"sides cropped to multiples of {self.snap} px" if self.snap is not None else ""
        if self.size_px is None:
            return f"native size, {snapped}" if snapped else "native size"
        words = {
            "crop": f"{self.size_px} x {self.size_px} px, the centre square",
            "square": f"{self.size_px} x {self.size_px} px, without keeping the aspect ratio",
            "shorter": f"shorter side {self.size_px} px" + (f", {snapped}" if snapped else ""),
        }
        return words[self.resize] + (f", by a {self.filter} filter" if self.filter != "bicubic" else "")
