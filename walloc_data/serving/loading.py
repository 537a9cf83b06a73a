"""Saved models with the codec that serves them."""

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

from walloc_data.adapters import check_codec, latent_config, load_latent_model
from walloc_data.codec import CodecInfo, WallocCodec, bundled_codecs, codec_folder, fetch_codec, load_codec, save_codec
from walloc_data.errors import CodecError
from walloc_data.format import EncodeSettings
from walloc_data.serving.classifier import PictureClassifier, Prediction
from walloc_data.storage import DatasetLocation, Store, open_store
from walloc_data.transforms import LatentOperators

__all__ = ["attach_codec", "load_classifier", "predict"]


def attach_codec(folder: str | os.PathLike[str], *, dataset: DatasetLocation) -> Path:
    """Copy the encoder of a data set into the folder of a saved model, as `codec/`.

    Args:
        folder: folder written by `save_latent_model`.
        dataset: encoded data set or codec folder, local or remote.

    Example:
        >>> from walloc_data.adapters import load_latent_model, save_latent_model
        >>> from walloc_data.serving import attach_codec
        >>> folder = save_latent_model(load_latent_model("my-model"), "runs/first")
        >>> attach_codec(folder, dataset="my-latents")
        PosixPath('runs/first/codec')
    """
    codec, _ = _encoder_of(open_store(dataset))
    model = load_latent_model(folder)
    check_codec(model, codec.spec)
    target = Path(folder) / "codec"
    save_codec(codec, target)
    if latent_config(model).view == "resize":
        operators = LatentOperators.load(dataset, spec=codec.spec)
        # Predictions need no flip operator.
        replace(operators, rescalings=tuple(item for item in operators.rescalings if not item.mirrored)).save(target)
    return target


def _encoder_of(store: Store, *, device: str = "cpu") -> tuple[WallocCodec, CodecInfo]:
    """Load the codec of a data set, or of a codec's folder, without its decoder."""
    prefix = "codec/" if store.exists("codec/codec.json") else ""
    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch_codec(store, scratch=Path(scratch), prefix=prefix, decoders=False)
        return load_codec(folder, device=device, decoder=False)


def load_classifier(
    folder: str | os.PathLike[str], *, codec: DatasetLocation | None = None, device: str = "cpu"
) -> PictureClassifier:
    """Load a saved model with its codec.

    Args:
        folder: folder written by `save_latent_model`.
        codec: codec as for `load_codec`, or a data set, local or remote, whose codec is used; None: `codec/` in the
            model's folder, else a bundled codec with the same encoder.

    Raises:
        CodecError: no codec with the model's encoder is found.

    Example:
        >>> import skimage
        >>> from walloc_data.serving import load_classifier
        >>> [prediction] = load_classifier("my-model").predict([skimage.data.chelsea()[60:188, 100:228]])
        >>> prediction.name
        'cat'
    """
    model = load_latent_model(folder, device=device)
    wanted = latent_config(model).codec
    attached = Path(folder) / "codec"
    if codec is not None:
        candidates: list[DatasetLocation] = [codec]
    else:
        candidates = [attached] if (attached / "codec.json").is_file() else list(bundled_codecs())
    for candidate in candidates:
        store = _store_with_codec(candidate)
        if store is not None:
            loaded, info = _encoder_of(store, device=device)
        else:
            loaded, info = load_codec(cast(str | Path, candidate), device=device, decoder=False)
        if info.encoder_sha256 == wanted.encoder_sha256 or codec is not None:
            operators = None
            if store is not None and latent_config(model).view == "resize":
                operators = LatentOperators.load(store, spec=loaded.spec)
            return PictureClassifier(model, loaded, operators=operators).eval()
    raise CodecError(
        f"{folder}: its model was trained on latents of codec {wanted.name!r} ({wanted.encoder_sha256[:12]}), which is "
        "neither in the folder nor bundled: pass codec=, or attach_codec(folder, dataset=...)"
    )


def _store_with_codec(codec: DatasetLocation) -> Store | None:
    """Return the store of a data set or codec folder; None for a published checkpoint, which is a file."""
    if isinstance(codec, Store):
        return codec
    if (folder := codec_folder(codec if isinstance(codec, str) else Path(codec))) is not None:
        return open_store(folder)
    if "://" in str(codec):
        return None if str(codec).endswith(".pth") else open_store(codec)
    return open_store(codec) if (Path(codec) / "codec" / "codec.json").is_file() else None


def predict(
    checkpoint: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    codec: DatasetLocation | None = None,
    top: int = 5,
    device: str = "cpu",
    settings: EncodeSettings | None = None,
    on_error: Callable[[str], None] | None = None,
) -> list[Prediction]:
    """Classify picture files with a saved model: `walloc-data predict CHECKPOINT PICTURES...`.

    Args:
        settings, on_error: how files are decoded, and what is done about those that cannot be, as in
            `PictureClassifier.predict_files`.

    Example:
        >>> from walloc_data.serving import predict
        >>> for prediction in predict("my-model", ["pictures/cat/0.jpg", "pictures/coffee/0.jpg"]):
        ...     print(prediction)
        pictures/cat/0.jpg: cat (...%)
        pictures/coffee/0.jpg: coffee (...%)
    """
    classifier = load_classifier(checkpoint, codec=codec, device=device)
    return classifier.predict_files(pictures, top=top, settings=settings, on_error=on_error)
