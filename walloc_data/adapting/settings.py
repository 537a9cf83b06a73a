"""Settings and results of an adaptation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from walloc_data.adapters import Geometry
from walloc_data.errors import ModelError

__all__ = ["AdaptConfig", "AdaptReport"]


@dataclass(frozen=True)
class AdaptConfig:
    """Settings of `adapt_model`; the defaults suit a convolutional network and a few thousand pictures.

    Attributes:
        split: split of the data set.
        geometry: "pixel_grid", "skip_early" or "all_stages" (see `walloc_data.adapters.families`). The first has the
            cost of the pixel model and needs the least training; the second leaves out the first stages. None:
            pixel_grid if the family supports it.
        input_cells: side of the input latents, to which stored latents are cropped; None: that of the pixel model if it
            is 0.8 to 1 of the stored size, else the stored size.
        train_cells: side of the latents in training, for models that take any size: smaller ones are faster, and allow
            crops of more sizes; None: input_cells.
        stem_linear: use a stem of one linear layer of full rank.
        stem_blocks: otherwise, residual blocks of the stem (`ResidualStem`); 0 is a linear map of rank stem_channels;
            None: 0 if the stem can be folded, else 2.
        stem_channels: channels of such a stem; None: 48 without blocks, else 96.
        stem_kernel_cells: kernel size of the stem; None: the family's.
        model_kwargs: arguments of `timm.create_model` for both models (depth, window_size, ...).
        stem_epochs: epochs that train only the new layers, up to the first compared stage; None: 0 if the stem is
            folded in closed form, else 1.
        epochs: epochs that train the full model afterwards; None: 0 if the stem is folded, else 4.
        batch_size: pictures per step.
        stem_lr: peak learning rate of the new layers in the first phase and, times `new_lr_scale`, in the second.
        lr: peak learning rate of the other layers. With 5e-5, two epochs took EfficientNet-Lite0 on latents from 91.7
            to 93.6 % among ten classes (benchmarks/README.md).
        weight_decay: weight decay of kernels and matrices (AdamW).
        feature_weight: weight of the relative errors of features, relative to the divergence of the logits.
        temperature: temperature of the logits.
        scale: smallest and largest area of random crops, relative to the stored picture.
        flip_p: probability of a flip.
        seed: seed of order, crops and new weights.
        held_out: number of held-out pictures, for the report; at most an eighth of the split.
        fold_pictures: number of pictures for the closed form.
        match_pictures: number of pictures for matching the normalisation layers (`match_moments`), before the full
            model is trained; 0: no matching.
        checkpoint_seconds: time between checkpoints.

    Example:
        >>> from walloc_data.adapting import AdaptConfig
        >>> AdaptConfig(epochs=20, lr=1e-4).batch_size
        32
    """

    split: str = "train"
    geometry: Geometry | None = None
    input_cells: int | None = None
    train_cells: int | None = None
    stem_linear: bool = False
    stem_blocks: int | None = None
    stem_channels: int | None = None
    stem_kernel_cells: int | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    stem_epochs: float | None = None
    epochs: float | None = None
    batch_size: int = 32
    stem_lr: float = 2e-3
    lr: float = 5e-5
    new_lr_scale: float = 0.5
    weight_decay: float = 0.02
    feature_weight: float = 1.0
    temperature: float = 1.0
    scale: tuple[float, float] = (0.5, 1.0)
    flip_p: float = 0.5
    seed: int = 0
    held_out: int = 500
    fold_pictures: int = 300
    match_pictures: int = 128
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        for name in (
            "stem_epochs",
            "epochs",
            "weight_decay",
            "feature_weight",
            "new_lr_scale",
            "checkpoint_seconds",
            "match_pictures",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ModelError(f"{name} must be at least 0, not {getattr(self, name)!r}")
        for name in ("batch_size", "stem_lr", "lr", "temperature", "held_out", "fold_pictures"):
            if getattr(self, name) <= 0:
                raise ModelError(f"{name} must be above 0, not {getattr(self, name)!r}")

    def resolved(self, *, foldable: bool) -> "AdaptConfig":
        """Return these settings with the defaults filled in."""
        stem_epochs = self.stem_epochs if self.stem_epochs is not None else (0.0 if foldable else 1.0)
        epochs = self.epochs if self.epochs is not None else (0.0 if foldable else 4.0)
        blocks = self.stem_blocks if self.stem_blocks is not None else (0 if foldable else 2)
        channels = self.stem_channels if self.stem_channels is not None else (96 if blocks else 48)
        return replace(self, stem_epochs=stem_epochs, epochs=epochs, stem_blocks=blocks, stem_channels=channels)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"scale": list(self.scale), "model_kwargs": dict(self.model_kwargs)}


@dataclass(frozen=True)
class AdaptReport:
    """Result of an adaptation on held-out pictures.

    Example:
        >>> from walloc_data.adapting import AdaptReport
        >>> print(AdaptReport("resnet18", "skip_early", 500, 0.31, 0.94, 0.71, 0.70, 1_400_000_000, 3_000, 512.0))
        resnet18 (skip_early): 1.400 GMAC; on 500 other pictures: feature error 0.310, the pixel model's label in 94.0 \
%, accuracy 70.0 % (pixels 71.0 %); 3000 steps in 9 minutes
    """

    name: str
    geometry: str
    num_held_out: int
    feature_error: float  # of the last stage compared, relative to the variance of the pixel model's
    agreement: float  # fraction of pictures with the same class as by the pixel model
    pixel_accuracy: float | None  # of the pixel model on pixels; None without labels
    accuracy: float | None
    num_macs: int  # for one picture
    num_steps: int
    seconds: float
    is_untrained: bool = False  # its classifier is new

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        text = (
            f"{self.name} ({self.geometry}): {self.num_macs / 1e9:.3f} GMAC; on {self.num_held_out} other pictures: "
            f"feature error {self.feature_error:.3f}, the pixel model's label in {self.agreement:.1%}"
        ).replace("%", " %")
        if self.accuracy is not None and self.pixel_accuracy is not None:
            text += f", accuracy {100 * self.accuracy:.1f} % (pixels {100 * self.pixel_accuracy:.1f} %)"
        return text + f"; {self.num_steps} steps in {self.seconds / 60:.0f} minutes"
