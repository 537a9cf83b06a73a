"""Encoding of several splits of a source: `encode_splits`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

from walloc_data.convert.encode import encode_dataset
from walloc_data.convert.progress import ConversionSummary, Progress
from walloc_data.convert.units import OnError
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import SourceError
from walloc_data.format import EncodeSettings, SettingFields
from walloc_data.sources import find_splits, open_source
from walloc_data.storage import DatasetLocation, open_store

__all__ = ["EncodeOptions", "encode_splits"]


class EncodeOptions(SettingFields, total=False):
    """Options of `encode_dataset` that are the same for every split, as keyword arguments."""

    codec: Any
    settings: EncodeSettings | None
    workers: int
    engine: Literal["local", "ray"]
    address: str | None
    device: str
    on_error: OnError
    max_failures: int | None
    overwrite: bool
    repair: bool
    retry_failures: bool
    part: str | None
    progress: bool | Callable[[Progress], None]


@renamed_arguments(out="dataset")
def encode_splits(
    source: Any,
    dataset: DatasetLocation,
    *,
    splits: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    keep_pictures: Sequence[str] = (),
    streaming: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    **options: Unpack[EncodeOptions],
) -> dict[str, ConversionSummary]:
    """Encode splits of a source into one data set. Call it again after an interruption to resume.

    All splits are opened before the first is encoded, so that errors are found early. The training split is encoded
    first, because the class names of the first split become those of the data set.

    Args:
        source: a dictionary of splits, such as `datasets.DatasetDict`; ``hf:NAME``; a folder written by `save_to_disk`
            or of parquet files; a folder or an archive whose folders are named like splits (``train``, ``val``, ...).
        dataset: a local folder or ``s3://bucket/prefix``.
        splits: splits to encode, in this order; None: all.
        image_column, label_column, keep_pictures, streaming: as for `open_source`, for each split.
        storage_options: options of the file systems of `dataset` and of remote tars.
        options: other arguments of `encode_dataset`, for each split: ``size_px=256, workers=8``.

    Returns:
        Summaries by split.

    Raises:
        SourceError: the source has no splits, or one of them cannot be read.
        ConversionError: a split stopped before its end; the same call resumes it.

    Example:
        >>> from walloc_data import encode_splits
        >>> pictures = [(f"pictures/{name}/{i}.jpg", name) for i in range(4) for name in ("cat", "coffee")]
        >>> summaries = encode_splits({"train": pictures[:6], "val": pictures[6:]}, "latents", size_px=64)
        >>> [(split, summary.num_samples) for split, summary in summaries.items()]
        [('train', 6), ('val', 2)]
    """
    if unknown := sorted(options.keys() - EncodeOptions.__annotations__.keys()):
        raise TypeError(f"encode_splits: unknown options {unknown}; it takes {sorted(EncodeOptions.__annotations__)}")
    store, opened = open_store(dataset, storage_options), {}
    for name, (spec, split) in find_splits(source, names=splits).items():
        try:
            opened[name] = open_source(
                spec,
                split=split,
                image_column=image_column,
                label_column=label_column,
                keep_pictures=keep_pictures,
                streaming=streaming,
                storage_options=store.storage_options,
            )
        except SourceError as error:
            raise SourceError(
                f"split {split!r}: {error}. Nothing was encoded; choose splits with --split A,B (splits=[...])"
            ) from error
    return {name: encode_dataset(found, store, split=name, **options) for name, found in opened.items()}
