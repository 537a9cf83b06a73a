"""Creation of a data set from published packed latents: `adopt_dataset`."""

import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from walloc_data.convert.adopted import read_packed
from walloc_data.convert.encode import encode_dataset
from walloc_data.convert.progress import ConversionSummary
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import CodecError, FormatError, SourceError
from walloc_data.latents import unpack
from walloc_data.pictures import PictureError
from walloc_data.sources import Sample, Source, open_source
from walloc_data.sources.base import SourceWrapper
from walloc_data.storage import DatasetLocation, open_store

__all__ = ["AdoptedSource", "adopt_dataset"]

_NUM_TRIED = 4  # samples that are decoded and encoded again as a check
_CELLS_TRIED = 32  # largest height and width that is checked
_MAX_ERROR = 0.25  # of their variance; latents are off by less than 0.02, photographs by 0.5 and more


@renamed_arguments(out="dataset")
def adopt_dataset(
    source: Any,
    dataset: DatasetLocation,
    *,
    codec: Any,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    trusted: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> ConversionSummary:
    """Create a split from packed latents: lossless pictures in a Hub data set, parquet, tars or folders.

    The integers are unchanged. Plain lossless WebP files are stored byte for byte; other lossless pictures (PNG, TIFF,
    WebP with metadata) as WebP with equal values, which is checked. Pictures that cannot be latents of the codec are
    failures, as in `encode_dataset`. Call it again after an interruption to resume.

    A few samples are decoded and encoded again, which nearly reproduces latents, but not photographs. This does not
    detect another codec of the same shape: use `walloc-data preview` to check that `codec` is the right one.

    Args:
        source: source as for `open_source`, or returned by it: ``hf:OWNER/NAME``, ``parquet:FILES``, ``wds:URLS``, a
            folder, ...
        dataset: a local folder or ``s3://bucket/prefix``.
        codec: codec that made the latents, as for `load_codec`.
        split: name of the split, also of the Hugging Face split that is read.
        image_column: column of the latents, or their extension in tars. Default: found by type.
        label_column, streaming: as in `open_source`.
        trusted: skip the check that these are latents.
        storage_options: options of remote file systems.
        options: other arguments of `encode_dataset`. Settings such as ``resize="shorter:288"`` record how the pictures
            were prepared, which `walloc-data predict` then repeats.

    Raises:
        CodecError: the pictures are not latents of the codec.
        SourceError: the source cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data import LatentDataset
        >>> from walloc_data.latents import encode_webp, pack
        >>> from walloc_data.maintain import adopt_dataset
        >>> stored = [(encode_webp(pack(latent[None])[0]), label) for latent, label in LatentDataset("my-latents")]
        >>> adopt_dataset(stored, "adopted", codec="rgb-16x-v1").num_samples
        8
    """
    if options.get("mirror"):
        raise FormatError("mirror: mirrored latents need the pictures, and adopt has only latents")
    store = open_store(dataset, storage_options)
    opened = open_source(
        source,
        split=split,
        image_column=image_column,
        label_column=label_column,
        streaming=streaming,
        storage_options=store.storage_options,
    )
    adopted = AdoptedSource(opened)
    if not trusted:
        _try_codec(adopted, codec)
    return encode_dataset(adopted, store, split=split, codec=codec, **options)


class AdoptedSource(SourceWrapper):
    """Source of packed latents.

    Args:
        source: source whose pictures are packed latents.

    Example:
        >>> from walloc_data.maintain import AdoptedSource
        >>> from walloc_data.sources import open_source
        >>> AdoptedSource(open_source("pictures")).describe()["latents"]
        True
    """

    def describe(self) -> dict[str, Any]:
        return self._source.describe() | {"latents": True}


def _try_codec(source: Source, codec: Any) -> None:
    """Decode a few samples and encode them again; raise CodecError if the latents differ much."""
    import torch

    from walloc_data.codec import load_codec

    loaded, _ = load_codec(codec)
    errors, variances, problems = 0.0, 0.0, []
    for sample in _spread_samples(source):
        try:
            if sample.problem is not None:
                raise PictureError(sample.problem)
            packed, _ = read_packed(sample.data, spec=loaded.spec)
        except PictureError as error:
            problems.append(f"{sample.name}: {error}")
            continue
        cells = unpack(packed, latent_dim=loaded.spec.latent_dim)[:, :_CELLS_TRIED, :_CELLS_TRIED]
        latent = torch.from_numpy(cells.copy())[None]
        with torch.inference_mode():
            pictures = loaded.decode(latent)
            again = loaded.encode(pictures)
        wanted = latent.numpy().astype(np.float64)
        errors += float(((again.numpy().astype(np.float64) - wanted) ** 2).sum())
        variances += float(((wanted - wanted.mean(axis=(0, 2, 3), keepdims=True)) ** 2).sum())
    if problems and not variances:
        raise SourceError(f"{source.location}: holds no latents of this codec: {problems[0]}")
    if errors > _MAX_ERROR * variances:
        raise CodecError(
            f"{source.location}: not latents: decoded by codec {loaded.spec.name!r} and encoded again, they differ by "
            f"{errors / variances:.2f} of their variance, latents by less than 0.02. If these are pictures, encode "
            "them; to adopt them anyway, use trusted=True (--trusted)"
        )


def _spread_samples(source: Source) -> list[Sample]:
    if source.num_items is not None:
        number = min(_NUM_TRIED, source.num_items)
        return [source.read(i * (source.num_items - 1) // max(1, number - 1)) for i in range(number)]
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as scratch:
        return list(islice(source.read_fragment(0, scratch=Path(scratch)), _NUM_TRIED))
