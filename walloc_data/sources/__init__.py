"""Sources of pictures: folders, archives, Hugging Face data sets, WebDataset tars, Python sequences.

This is the only package that imports `datasets`.
"""

import glob
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from walloc_data.errors import SourceError
from walloc_data.sources.archive import SUFFIXES, archive_of, open_archive
from walloc_data.sources.base import Sample, Source
from walloc_data.sources.folder import FolderSource
from walloc_data.sources.sequence import SequenceSource, is_sequence
from walloc_data.sources.splits import find_splits, is_parquet_folder

__all__ = ["Sample", "Source", "find_splits", "open_source", "open_split"]

_PICTURE_NAME = re.compile(r"[A-Za-z0-9_-]{1,60}")  # becomes part of the name of a tar member


def open_source(
    spec: Any,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    keep_pictures: Sequence[str] = (),
    streaming: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Source:
    """Open a source of pictures.

    Args:
        spec: one of

            - ``folder:PATH``, or a bare path: one folder per class; or only pictures, without labels
            - an archive of such folders, ``.zip``, ``.tar`` or ``.tar.gz`` (``.bz2``, ``.xz``); ``photos.zip/train`` is
              a folder inside one
            - ``hf:NAME``, ``hf:OWNER/NAME`` or ``hf:OWNER/NAME/CONFIG``: a data set on the Hugging Face Hub
            - a folder written by ``datasets``' ``save_to_disk``
            - ``parquet:GLOB``, a ``.parquet`` file or a folder of them
            - ``wds:URLS``: tars, with ranges ``{000..012}``, globs and ``::`` between several; local or remote
            - a `datasets.Dataset` or `datasets.IterableDataset`, or a dictionary of several splits
            - a torch or torchvision data set, or any sequence of pictures or (picture, target): `SequenceSource`
            - a `Source`, which is returned; it takes no other arguments

        split: split of a Hugging Face data set or of a dictionary; ignored by other sources.
        image_column: column of the pictures; for tars their extension. Default: found by type.
        label_column: column of the labels; for tars ``cls``, a field of the JSON, or ``folder``: the folders in the
            tars are the classes (the default if samples are only pictures, in folders). ``none`` encodes without
            labels.
        keep_pictures: columns of second pictures to store, such as masks, of Hugging Face data sets and of sequences
            whose items are mappings. They are stored without loss, cropped and resized (nearest neighbour) like the
            first picture.
        streaming: read a Hugging Face data set as a stream, one of its files at a time: nothing is stored locally, and
            pictures keep their order within each file.
        storage_options: options of the file system of remote tars (``endpoint_url``, ``anon``, ...).

    Raises:
        SourceError: the source cannot be read; the message has the remedy.

    Example:
        >>> from walloc_data.sources import open_source
        >>> source = open_source("pictures")  # or hf:imagenet-1k, wds:s3://bucket/train-{0000..0146}.tar
        >>> source.num_items, source.class_names
        (8, ('cat', 'coffee'))
        >>> open_source("my-latents/data")
        Traceback (most recent call last):
        walloc_data.errors.SourceError: my-latents/data: holds tars; for WebDataset tars write ...
    """
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    if isinstance(spec, Source):
        given = columns | {"keep_pictures": keep_pictures or None, "streaming": streaming or None}
        if late := [name for name, value in given.items() if value is not None]:
            raise SourceError(f"{spec.location}: already open: pass {', '.join(late)} to the call that opens it")
        return spec
    if wrong := [name for name in keep_pictures if not _PICTURE_NAME.fullmatch(name)]:
        raise SourceError(f"keep_pictures {wrong}: names of such columns must be letters, digits, '_' and '-'")
    if not isinstance(spec, str | os.PathLike):
        table = columns | {"keep_pictures": tuple(keep_pictures)}
        if isinstance(spec, Mapping):  # also DatasetDict and IterableDatasetDict
            if split not in spec:
                raise SourceError(f"a {type(spec).__name__} without a split {split!r}; it has {sorted(spec)}")
            return open_source(spec[split], split=split, streaming=streaming, storage_options=storage_options, **table)
        return _open_object(spec, **table)
    opened = _open_path(os.fspath(spec), split, streaming, storage_options, columns, tuple(keep_pictures))
    if opened.pictures != tuple(keep_pictures):
        raise SourceError(
            f"{opened.location}: only Hugging Face data sets, parquet and sequences support second pictures"
        )
    return opened


def open_split(spec: Any, *, split: str, **options: Any) -> Source:
    """Open what a split was encoded from: of a folder or an archive of splits, the one of that name, in any case.

    Args:
        spec: as for `open_source`, which opens everything else.
        split: name of the split.
        options: other arguments of `open_source`.

    Raises:
        SourceError: the source cannot be read; the message has the remedy.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data.sources import open_split
        >>> Path("by-split").mkdir()
        >>> Path("by-split/Train").symlink_to(Path("pictures").absolute())
        >>> open_split("by-split", split="train").location, open_split("pictures", split="train").location
        ('by-split/Train', 'pictures')
    """
    if isinstance(spec, str | os.PathLike) and not os.fspath(spec).startswith("hf:"):  # whose splits open_source knows
        with suppress(SourceError):  # there are no splits, or open_source names what is wrong
            spec, split = find_splits(spec).get(split.lower(), (spec, split))
    return open_source(spec, split=split, **options)


def _open_path(
    text: str,
    split: str,
    streaming: bool,
    storage_options: Mapping[str, Any] | None,
    columns: dict[str, Any],
    keep_pictures: tuple[str, ...],
) -> Source:
    from walloc_data.sources import hub, huggingface

    table = columns | {"keep_pictures": keep_pictures}
    if text.startswith("wds:"):
        from walloc_data.sources.wds import open_tars

        return open_tars(text.removeprefix("wds:"), storage_options=storage_options, **columns)
    if text.startswith("hf:"):
        return huggingface.HuggingFaceSource(
            hub.load_hub(text.removeprefix("hf:"), split=split, streaming=streaming, location=text),
            location=text,
            **table,
        )
    if text.startswith("parquet:") or text.endswith(".parquet"):
        pattern = str(Path(text.removeprefix("parquet:")).expanduser())
        folder = Path(pattern)
        files: Path | list[str] = folder if folder.is_dir() else sorted(glob.glob(pattern))  # noqa: PTH207
        if not files:
            raise SourceError(f"{text}: no such file")
        dataset, identity = hub.load_parquet(files, split=split, streaming=streaming, location=text)
        roots = [files] if isinstance(files, Path) else [Path(file).parent for file in files]
        return huggingface.HuggingFaceSource(dataset, location=text, identity=identity, folders=roots, **table)
    path = Path(text.removeprefix("folder:")).expanduser()
    if not path.is_dir():
        if (found := archive_of(path)) is not None:
            archive, inside = found
            return open_archive(archive, inside, location=text, **columns)
        if path.exists():
            raise SourceError(f"{text}: neither a folder nor an archive ({', '.join(SUFFIXES)})")
        raise SourceError(
            f"{text}: no such folder. Sources are a folder, an archive, hf:NAME (the Hugging Face Hub), wds:URLS or "
            "parquet:FILES"
        )
    if not text.startswith("folder:"):
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            dataset, identity = hub.load_saved(path, split=split, streaming=streaming, location=text)
            return huggingface.HuggingFaceSource(dataset, location=text, identity=identity, folders=[path], **table)
        if is_parquet_folder(path):
            dataset, identity = hub.load_parquet(path, split=split, streaming=streaming, location=text)
            return huggingface.HuggingFaceSource(dataset, location=text, identity=identity, folders=[path], **table)
        if any(path.glob("*.tar")):
            raise SourceError(f"{text}: holds tars; for WebDataset tars write 'wds:{text}/*.tar'")
    label_column = columns["label_column"]
    if columns["image_column"] is not None or label_column not in (None, "none", "folder"):
        raise SourceError(f"{text}: a folder of pictures has no columns; its folders are the labels")
    return FolderSource(path, location=text, label_column=label_column)


def _open_object(spec: Any, **columns: Any) -> Source:
    datasets = sys.modules.get("datasets")  # loaded if `spec` is one of its objects
    if datasets is None or not isinstance(spec, datasets.Dataset | datasets.IterableDataset):
        if not is_sequence(spec):
            raise SourceError(
                f"a source is a path, a URL, a datasets.Dataset or a sequence of pictures, not {type(spec).__name__}"
            )
        return SequenceSource(spec, **columns)
    from walloc_data.sources.huggingface import HuggingFaceSource, folders_of

    name = str(getattr(spec.info, "dataset_name", None) or "in memory")
    return HuggingFaceSource(spec, location=f"datasets:{name}", folders=folders_of(spec), **columns)
