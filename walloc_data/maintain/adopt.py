"""Latents that others have encoded, as a data set of ours: their integers are taken over as they are."""

import tempfile
from collections.abc import Iterator, Mapping
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
from walloc_data.storage import DatasetLocation, open_store

__all__ = ["AdoptedSource", "adopt_dataset"]

_NUM_TRIED = 4  # samples that are decoded and encoded again
_CELLS_TRIED = 32  # of their height and width, at most
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
    """Make a split of packed latents that exist already: lossless pictures in a Hub data set, parquet, tars or folders.

    Nothing is encoded anew. Plain lossless WebP files are stored byte for byte; other lossless pictures (PNG, TIFF,
    WebP with metadata) as WebP with the same values, which is checked. What cannot be a latent of the codec is a
    failure, listed as those of `encode_dataset` are. Run again after an interruption, it does what is not done yet.

    Whether these are latents at all, a few of them tell: decoded to pixels and encoded again they come out nearly as
    they were, and photographs do not. Another codec of the same shape is not told from the right one: `codec` must be
    the one that made them, and `walloc-data preview` shows whether it is.

    Args:
        source: what `open_source` takes: ``hf:OWNER/NAME``, ``parquet:FILES``, ``wds:URLS``, a folder of files, ...
        dataset: a local folder or ``s3://bucket/prefix``.
        codec: what made the latents; what `load_codec` takes.
        split: the split's name, and that which is read of a Hugging Face data set.
        image_column: the column of latents, or their extension in tars. Found by type where there is only one.
        label_column, streaming: as in `open_source`.
        trusted: do not try whether these are latents.
        storage_options: for remote file systems.
        options: `encode_dataset`'s. Settings such as ``resize="shorter:288"`` say how the pictures were prepared, which
            cannot be seen in latents, and which models that are served do with theirs.

    Raises:
        CodecError: these are no latents.
        SourceError: the source cannot be read as asked.

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
        raise FormatError("mirror: the mirrored latent of a picture cannot be made of its latent")
    store, opened = open_store(dataset, storage_options), source
    if not isinstance(source, Source):
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


class AdoptedSource(Source):
    """A source of packed latents, as a source that says so.

    Args:
        source: whose pictures are packed latents.

    Example:
        >>> from walloc_data.maintain import AdoptedSource
        >>> from walloc_data.sources import open_source
        >>> AdoptedSource(open_source("pictures")).describe()["latents"]
        True
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        for name in ("kind", "location", "num_items", "labelled", "columns", "column_types", "notes", "identity"):
            setattr(self, name, getattr(source, name))
        for name in ("num_fragments", "fragment_bytes", "class_names"):
            setattr(self, name, getattr(source, name))

    def describe(self) -> dict[str, Any]:
        return self._source.describe() | {"latents": True}

    def read(self, index: int) -> Sample:
        return self._source.read(index)

    def version(self, index: int) -> str | None:
        return self._source.version(index)

    def read_fragment(self, fragment: int, *, scratch: Path) -> Iterator[Sample]:
        return self._source.read_fragment(fragment, scratch=scratch)

    def fragment_name(self, fragment: int) -> str:
        return self._source.fragment_name(fragment)

    def fragment_version(self, fragment: int) -> str | None:
        return self._source.fragment_version(fragment)


def _try_codec(source: Source, codec: Any) -> None:
    """Decode a few samples and encode what comes out; raise CodecError unless it is nearly what they were."""
    import torch

    from walloc_data.codec import load_codec

    loaded, _ = load_codec(codec)
    errors, variances, problems = 0.0, 0.0, []
    for sample in _some(source):
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
            f"{source.location}: no latents: decoded by codec {loaded.spec.name!r} and encoded again, they differ by "
            f"{errors / variances:.2f} of their variance, and latents by less than 0.02. Are they pictures? Then "
            "encode them; trusted=True (--trusted) takes them as they are"
        )


def _some(source: Source) -> list[Sample]:
    if source.num_items is not None:
        number = min(_NUM_TRIED, source.num_items)
        return [source.read(i * (source.num_items - 1) // max(1, number - 1)) for i in range(number)]
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as scratch:
        return list(islice(source.read_fragment(0, scratch=Path(scratch)), _NUM_TRIED))
