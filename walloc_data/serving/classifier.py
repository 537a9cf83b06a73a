"""The classifier: pictures to latents to logits, and predictions with names."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from walloc_data.adapters import LatentModelConfig, check_codec, latent_config
from walloc_data.errors import ModelError, SourceError
from walloc_data.format import EncodeSettings, padding_for
from walloc_data.pictures import PictureError, crop_box, decode_picture, encoded_size, resize_and_crop
from walloc_data.serving.files import picture_files, short_reason
from walloc_data.sources.as_files import NoPictureError, as_file
from walloc_data.transforms import CenterCrop, LatentOperators, Resize

__all__ = ["PictureClassifier", "Prediction"]


@dataclass(frozen=True)
class Prediction:
    """Predicted classes of one picture, with probabilities; those of several labels are independent of each other.

    Example:
        >>> from walloc_data.serving import load_classifier
        >>> [prediction] = load_classifier("my-model").predict_files(["pictures/coffee/0.jpg"])
        >>> prediction.name, prediction.label, prediction.probability > 0.5, len(prediction.top)
        ('coffee', 1, True, 2)
    """

    picture: str
    label: int
    name: str  # of the class; the label as text if classes have no names
    probability: float
    top: tuple[tuple[str, float], ...]  # the most probable classes, best first

    def __str__(self) -> str:
        return f"{self.picture}: {self.name} ({self.probability:.1%})"

    def listing(self) -> str:
        """Return all of `top` in one line."""
        return f"{self.picture}: " + "; ".join(f"{name} ({probability:.1%})" for name, probability in self.top)


def stored_view(config: LatentModelConfig, *, operators: LatentOperators | None) -> nn.Module:
    """Return the transform from stored latents to a model's input, for validation and serving.

    Raises:
        ModelError: the model takes downscaled latents, and the operators are missing.
    """
    size = config.input_shape[1:]
    if config.view == "crop":
        return CenterCrop(size)
    if config.view == "whole":
        return nn.Identity()
    if operators is None:
        raise ModelError(
            f"this model takes latents downscaled to {size[0]} x {size[1]} cells: pass the operators of its codec, or "
            "use attach_codec(folder, dataset=...) and load_classifier(folder)"
        )
    return Resize(size, operators=operators)


class PictureClassifier(nn.Module):
    """Module that maps uint8 pictures to logits.

    Args:
        model: a model made by `create_latent_model`.
        codec: the codec of the latents that the model was trained on; only its encoder is used.
        operators: operators of the codec (`LatentOperators.load`), for a model made with view="resize". Pictures are
            then encoded at the stored size and their latents downscaled, as in validation on stored latents.

    Raises:
        ModelError: the codec is not that of the model, or the operators are missing.

    Example:
        >>> import torch
        >>> from walloc_data.adapters import load_latent_model
        >>> from walloc_data.codec import load_codec
        >>> from walloc_data.serving import PictureClassifier
        >>> classifier = PictureClassifier(load_latent_model("my-model"), load_codec(decoder=False)[0])
        >>> classifier(torch.zeros(4, 3, 96, 96, dtype=torch.uint8)).shape
        torch.Size([4, 2])
    """

    def __init__(self, model: nn.Module, codec: Any, *, operators: LatentOperators | None = None) -> None:
        super().__init__()
        check_codec(model, codec.spec)
        self.config = latent_config(model)
        self.model, self.codec = model, codec
        self._sizes = EncodeSettings(
            size_px=self.config.size_px, resize=self.config.resize, filter=self.config.filter, snap=self.config.snap
        )
        self.view = stored_view(self.config, operators=operators).to(next(model.parameters()).device)

    def encode(self, pictures: Tensor) -> Tensor:
        """Encode (N, 3, H, W) uint8 to latents (N, C, h, w) int8, as the converter does.

        Pictures of other sizes are resized and cropped by torch, equal to Pillow within one grey level. `predict` and
        `predict_files` use Pillow, and agree exactly with the converter.
        """
        latents: Tensor = self.codec.encode(self._whole_cells(pictures))
        return latents

    def _whole_cells(self, pictures: Tensor) -> Tensor:
        """Return pictures resized to the size of the model and padded to multiples of a cell."""
        channels = self.config.codec.channels
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != channels:
            raise ModelError(f"pictures are uint8 (N, {channels}, H, W), not {pictures.dtype} {tuple(pictures.shape)}")
        here = pictures.shape[3], pictures.shape[2]
        left, top, right, bottom = crop_box(here, settings=self._sizes)
        width, height = encoded_size(here, settings=self._sizes)
        if here != (width, height):
            pictures = pictures[:, :, top:bottom, left:right]
        if pictures.shape[2:] != (height, width):
            if self.config.filter != "bicubic":
                raise ModelError(
                    f"the model's pictures were resized by a {self.config.filter} filter, which torch does not have: "
                    f"pass pictures of {width} x {height} px, or use predict"
                )
            scaled = F.interpolate(pictures.float(), size=(height, width), mode="bicubic", antialias=True)
            pictures = scaled.round().clamp(0, 255).to(torch.uint8)
        return _pad(pictures, cell_px=self.config.codec.cell_px)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map (N, 3, H, W) uint8 to logits (N, num_classes).

        While torch.export or the ONNX exporter traces the module, it encodes as `exportable` does.
        """
        latents = self._plain_latents(pictures) if _is_exporting() else self.encode(pictures)
        logits: Tensor = self.model(self.view(latents))
        return logits

    def _plain_latents(self, pictures: Tensor) -> Tensor:
        """Encode with plain tensor operations; returns integer values as float32 (N, C, h, w)."""
        x = self._whole_cells(pictures).float() / 255 - 0.5
        coefficients = self.codec.wavelet_analysis(x, J=self.codec.J)  # (N, channels * 4^J, h, w)
        project, compand = self.codec.encoder[0], self.codec.encoder[1]
        return torch.round(compand(project(coefficients)))

    @torch.inference_mode()
    def predict(self, pictures: Iterable[Image.Image | npt.NDArray[Any] | Tensor], *, top: int = 5) -> list[Prediction]:
        """Classify PIL images, arrays (H, W, 3) or tensors (3, H, W) uint8, prepared as in a conversion.

        Args:
            top: number of classes to list per picture, at least 1; at most all are.

        Raises:
            SourceError: one is not a picture.
            ModelError: the model gives numbers or feature maps: call the classifier itself for these.
        """
        self._check(top)
        if isinstance(pictures, Image.Image | str | os.PathLike) or not isinstance(pictures, Iterable):
            kind = type(pictures).__name__
            raise SourceError(f"pass a list of pictures, not {kind} (`predict_files` takes paths)")
        results = []
        for i, picture in enumerate(pictures):
            name = f"picture {i}"
            if isinstance(picture, str | os.PathLike):
                raise SourceError(f"{name} is a path: `predict_files` takes paths")
            try:
                image = decode_picture(as_file(picture), settings=EncodeSettings())
            except (OSError, PictureError, NoPictureError) as error:
                raise SourceError(f"{name}: cannot be classified: {error}") from error
            results.append(self._predict_one(image, name=name, top=top))
        return results

    @torch.inference_mode()
    def predict_files(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        top: int = 5,
        settings: EncodeSettings | None = None,
        on_error: Callable[[str], None] | None = None,
    ) -> list[Prediction]:
        """Classify picture files, decoded as in a conversion.

        Args:
            paths: a file or folder, or several; pictures of a folder and its subfolders are sorted by name.
            top: number of classes to list per picture, at least 1; at most all are.
            settings: settings of the data set that the model was trained on, if its background or max_value is not
                the default.
            on_error: function that is called with one line for each file or folder that cannot be classified; the
                others are classified. None: the first one raises an error.

        Raises:
            SourceError: a file is not a picture, or a folder contains none.
            ModelError: the model gives numbers or feature maps.
        """
        self._check(top)
        chosen = settings or EncodeSettings()
        results: list[Prediction] = []
        paths = [paths] if isinstance(paths, str | os.PathLike) else paths
        for name, read in picture_files(paths):  # one picture at a time, to bound memory
            try:
                image = decode_picture(read(), settings=chosen)
            except (OSError, PictureError, SourceError) as error:
                line = f"{name}: cannot be classified: {short_reason(error, name=name)}"
                if on_error is None:
                    raise SourceError(line) from error
                on_error(line)
                continue
            results.append(self._predict_one(image, name=name, top=top))
        return results

    def _check(self, top: int) -> None:
        if type(top) is not int or top < 1:
            raise ModelError(f"top must be an integer of at least 1, not {top!r}")
        given = "feature maps" if self.config.features is not None else self.config.task
        if given in ("feature maps", "numbers"):
            raise ModelError(
                f"this {self.config.name} gives {given}, no classes to name: classifier(pictures) returns them, for "
                "pictures (N, 3, H, W) uint8"
            )

    def _predict_one(self, image: Image.Image, *, name: str, top: int) -> Prediction:
        self.eval()
        device = next(self.model.parameters()).device
        array = resize_and_crop(image, settings=self._sizes)
        picture = torch.from_numpy(np.array(array)).permute(2, 0, 1)[None].to(device)
        logits = self(picture)[0].cpu()
        probabilities = logits.sigmoid() if self.config.task == "labels" else logits.softmax(0)
        best = probabilities.topk(min(top, len(probabilities)))
        ranked = tuple(
            (self._class_name(label), value)
            for value, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        return Prediction(name, int(best.indices[0]), *ranked[0], ranked)

    def _class_name(self, label: int) -> str:
        return str(label) if self.config.class_names is None else self.config.class_names[label]

    def exportable(self) -> nn.Module:
        """Return the same classifier as a module for torch.export and ONNX, with plain tensor operations only.

        It filters in float32 without the exact second pass, so values near a rounding boundary may differ by one.
        """
        return _PlainClassifier(self).eval()


class _PlainClassifier(nn.Module):
    def __init__(self, classifier: PictureClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pictures: Tensor) -> Tensor:
        inner = self.classifier
        logits: Tensor = inner.model(inner.view(inner._plain_latents(pictures)))
        return logits


def _is_exporting() -> bool:
    """Return whether torch.export is tracing. Before torch 2.7 this is not distinguishable from torch.compile."""
    asked = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(asked())


def _pad(pictures: Tensor, *, cell_px: int) -> Tensor:
    """Pad by reflection until both sides are multiples of a cell, like the converter."""
    left, top, right, bottom = padding_for(pictures.shape[2], pictures.shape[3], multiple=cell_px)
    if not (left or top or right or bottom):
        return pictures
    rows = _reflected(pictures.shape[2], top, bottom, device=pictures.device)
    columns = _reflected(pictures.shape[3], left, right, device=pictures.device)
    return pictures[:, :, rows][:, :, :, columns]


def _reflected(length: int, before: int, after: int, *, device: torch.device) -> Tensor:
    """Return the indices of a side padded like numpy's mode "reflect" (the edge is not repeated)."""
    index = torch.arange(-before, length + after, device=device)
    period = max(1, 2 * (length - 1))
    index = index.remainder(period)
    return torch.where(index < length, index, period - index)
