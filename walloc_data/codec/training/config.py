"""Settings and results of training runs."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from walloc_data.errors import CodecError
from walloc_data.format import check_name

__all__ = ["DecoderTrainConfig", "DecoderTrainResult", "TrainConfig", "TrainResult"]


def _check_length(steps: int | None, minutes: float | None, *, needed: bool = True) -> None:
    if needed and (steps is None) == (minutes is None):
        raise CodecError("training takes either steps or minutes")
    if any(length is not None and not 0 < length < math.inf for length in (steps, minutes)):
        raise CodecError(f"steps and minutes must be positive numbers, not {steps} and {minutes}")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. Its length is given by `steps`, which is reproducible, or `minutes`.

    Example:
        >>> from walloc_data.codec import TrainConfig
        >>> config = TrainConfig(name="mine", steps=20_000, target_bpp=0.6)
        >>> config.batch_size, config.crop_px
        (9, (144, 192))
        >>> TrainConfig(name="mine", steps=20_000, latent_dim=10)
        Traceback (most recent call last):
        walloc_data.errors.CodecError: latent_dim 10 cannot be packed: it must be 3 times a square
    """

    name: str = "my-codec"
    latent_dim: int = 12
    J: int = 3
    closed_form: bool = False  # the KLT and a linear decoder: no iterations
    steps: int | None = None
    minutes: float | None = None
    rate_weight: float = 0.01  # of one bit a latent value, against the logarithm of the squared error
    target_bpp: float | None = None  # instead: the weight moves so that the estimated rate on training crops stays here
    initial_scale: float = 14.0  # of the KLT's unit rows: twice as much is one bit more in every latent value
    decoder_width: int = 192
    decoder_blocks: int = 8
    decoder_groups: int = 4
    batch_size: int = 9
    crop_px: tuple[int, int] = (144, 192)
    enlarged: float = 0.15  # the part of crops that is enlarged 1.1 to 1.5 times
    learning_rate: float = 2e-3
    ema_decay: float = 0.9995
    frozen_from: float = 0.85  # of all steps: from here on the encoder is final
    arrange: bool = True  # in the end, order the channels for the fewest bytes: a minute or so for 12, more for 48
    seed: int = 0
    device: str = "cpu"
    checkpoint_seconds: float = 120.0
    validate_seconds: float = 300.0
    data_licence: str = "not stated"

    def __post_init__(self) -> None:
        check_name(self.name, what="codec name", context="train-codec")
        _check_length(self.steps, self.minutes, needed=not self.closed_form)
        tiles, rest = divmod(self.latent_dim, 3)
        if rest or tiles < 1 or math.isqrt(tiles) ** 2 != tiles:
            raise CodecError(f"latent_dim {self.latent_dim} cannot be packed: it must be 3 times a square")
        if not 1 <= self.J <= 4:
            raise CodecError(f"J must be 1 to 4 wavelet levels, not {self.J}")
        if len(self.crop_px) != 2 or any(side < 1 or side % 2**self.J for side in self.crop_px):
            raise CodecError(f"crop_px {self.crop_px} must be two multiples of {2**self.J} pixels, one cell")
        if self.rate_weight < 0 or (self.target_bpp is not None and self.target_bpp <= 0):
            raise CodecError(f"rate_weight {self.rate_weight} and target_bpp {self.target_bpp} must not be negative")
        if not 0 < self.frozen_from <= 1 or not 0 <= self.enlarged <= 1 or not 0 <= self.ema_decay < 1:
            raise CodecError("frozen_from must lie in (0, 1], enlarged in [0, 1], ema_decay in [0, 1)")
        if self.batch_size < 1 or self.learning_rate <= 0 or self.initial_scale <= 0:
            raise CodecError("batch_size, learning_rate and initial_scale must be positive")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `from_dict` is its inverse."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "TrainConfig":
        """Build and validate; unknown fields are errors."""
        if unknown := sorted(set(value) - {field.name for field in fields(cls)}):
            raise CodecError(f"training settings: unknown {unknown}")
        return cls(**{**value, "crop_px": tuple(value.get("crop_px", (144, 192)))})


@dataclass(frozen=True)
class TrainResult:
    """A finished codec: its folder, and its rate and quality on the pictures that were held out.

    Example:
        >>> from walloc_data.codec import PictureSet, TrainConfig, read_pictures, train_codec
        >>> pictures = [PictureSet("mine", read_pictures("pictures"))]
        >>> result = train_codec(pictures, "my-codec", config=TrainConfig(closed_form=True, arrange=False))
        >>> print(result)
        my-codec in my-codec: ... dB at ... bpp on 1 held-out pictures (... dB by its linear decoder), 0 steps
    """

    folder: str
    name: str
    steps: int
    bpp: float
    psnr_db: float
    linear_psnr_db: float
    held_out_pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.name} in {self.folder}: {self.psnr_db:.2f} dB at {self.bpp:.3f} bpp on {self.held_out_pictures} "
            f"held-out pictures ({self.linear_psnr_db:.2f} dB by its linear decoder), {self.steps} steps"
        )


@dataclass(frozen=True)
class DecoderTrainConfig:
    """Settings of training a decoder for a given encoder. Its length is given by `steps` or `minutes`.

    Attributes:
        version: a name for this decoder among those of its encoder.
        steps, minutes: the length; with `steps` a run is the same on every machine of one kind.
        width, groups, blocks, half_blocks, quarter_blocks: of the network, as `UNetDecoder` takes them.
        batch_size, crop_cells: crops of a step, and the side of a crop in latent cells.
        wide_from: the part of the run after which crops have twice the side, and a step a quarter as many.
        colour: the part of crops whose saturation and contrast are changed, by factors of 0.6 to 1.6 and 0.7 to 1.2.
        start: "linear" begins as the linear decoder; "decoder" as the decoder that the codec has, which must be a
            network of this configuration: for training on with other pictures.
        optimizer: of the kernels; everything else is trained by Adam.
        learning_rate: at its peak.
        ema_decay: of the moving average of the weights.
        data_licence: of the pictures, for the card.

    Example:
        >>> from walloc_data.codec import DecoderTrainConfig
        >>> DecoderTrainConfig(minutes=60).decoder
        {'kind': 'unet', 'width': 192, 'groups': 4, 'blocks': 13, 'half_blocks': 4, 'quarter_blocks': 2}
    """

    version: str = "2"
    steps: int | None = None
    minutes: float | None = None
    width: int = 192
    groups: int = 4
    blocks: int = 13
    half_blocks: int = 4
    quarter_blocks: int = 2
    batch_size: int = 32
    crop_cells: int = 32
    wide_from: float = 0.7
    colour: float = 0.0
    start: Literal["linear", "decoder"] = "linear"
    optimizer: Literal["muon", "adam"] = "muon"
    learning_rate: float = 2e-3
    ema_decay: float = 0.9995
    seed: int = 0
    device: str = "cpu"
    checkpoint_seconds: float = 120.0
    validate_seconds: float = 300.0
    data_licence: str = "not stated"

    def __post_init__(self) -> None:
        check_name(self.version, what="decoder version", context="train-codec")
        _check_length(self.steps, self.minutes)
        if self.optimizer not in ("muon", "adam") or self.start not in ("linear", "decoder"):
            raise CodecError(
                f"optimizer must be muon or adam, start linear or decoder, not {self.optimizer!r} and {self.start!r}"
            )
        if self.batch_size < 4 or self.crop_cells < 4:
            raise CodecError(f"batch_size {self.batch_size} and crop_cells {self.crop_cells} must be 4 or more")
        if not 0 <= self.colour <= 1:
            raise CodecError(f"colour is a part of the crops, in [0, 1], not {self.colour}")
        if not 0 < self.wide_from <= 1 or not 0 <= self.ema_decay < 1 or self.learning_rate <= 0:
            raise CodecError("wide_from must lie in (0, 1], ema_decay in [0, 1), learning_rate above 0")

    @property
    def decoder(self) -> dict[str, Any]:
        """The network's description, as `build_decoder` takes it."""
        return {
            "kind": "unet", "width": self.width, "groups": self.groups, "blocks": self.blocks,
            "half_blocks": self.half_blocks, "quarter_blocks": self.quarter_blocks,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with the network's description."""
        return {**asdict(self), "decoder": self.decoder}


@dataclass(frozen=True)
class DecoderTrainResult:
    """A finished decoder: its file, and its quality on the pictures that were held out.

    Example:
        >>> from walloc_data.codec import DecoderTrainResult
        >>> print(DecoderTrainResult("out/decoder.safetensors", "2", 5000, 30.1234, 16))
        decoder 2 in out/decoder.safetensors: 30.12 dB on 16 held-out pictures, 5000 steps
    """

    file: str
    version: str
    steps: int
    psnr_db: float
    held_out_pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"decoder {self.version} in {self.file}: {self.psnr_db:.2f} dB on {self.held_out_pictures} held-out "
            f"pictures, {self.steps} steps"
        )
