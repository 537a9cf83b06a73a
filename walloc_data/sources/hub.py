"""Loading of Hugging Face data sets: from the Hub, from parquet files, from a folder of `save_to_disk`."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from walloc_data.errors import FormatError, MissingExtraError, SourceError
from walloc_data.parquet import check_parquet
from walloc_data.sources.base import fingerprint

__all__ = ["import_datasets", "load_hub", "load_parquet", "load_saved", "split_names"]


def import_datasets(location: str) -> Any:
    """Return the library `datasets`, or raise MissingExtraError for the source at `location`."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", extra="datasets", purpose=location) from error
    return datasets


def load_hub(name: str, *, split: str, streaming: bool, location: str) -> Any:
    """Load ``owner/name``, ``owner/name/config`` or a legacy ``name`` from the Hub."""
    path, config = _path_and_config(name, location=location)
    return _load(path, config, split=split, streaming=streaming, location=location)


def _path_and_config(name: str, *, location: str) -> tuple[str, str | None]:
    parts = name.strip("/").split("/")
    if not name or len(parts) > 3:
        raise SourceError(f"{location}: expected hf:NAME, hf:OWNER/NAME or hf:OWNER/NAME/CONFIG")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def split_names(name: str, *, location: str) -> list[str]:
    """Return the splits of a data set on the Hub (``NAME``, ``OWNER/NAME`` or ``OWNER/NAME/CONFIG``) or of a local
    folder.
    """
    datasets = import_datasets(location)
    if Path(name).is_absolute():
        path, config = name, None
    else:
        path, config = _path_and_config(name, location=location)
    try:
        with _one_line_of_retries(location):
            return [str(split) for split in datasets.get_dataset_split_names(path, config)]
    except Exception as error:  # loaders raise any exception
        raise SourceError(f"{location}: its splits cannot be listed ({type(error).__name__}: {error})") from error


def load_parquet(files: list[str] | Path, *, split: str, streaming: bool, location: str) -> tuple[Any, str]:
    """Load parquet files, or a folder of them with splits in their names; return the data set and its identity."""
    paths = sorted(files.rglob("*.parquet")) if isinstance(files, Path) else [Path(file) for file in files]
    for path in paths:
        _check_claims(path)
    if isinstance(files, Path):
        dataset = _load(str(files), None, split=split, streaming=streaming, location=location)
        root = files
    else:
        dataset = _load("parquet", None, split="train", streaming=streaming, location=location, data_files=files)
        root = None
    sizes = [(str(path.relative_to(root)) if root else path.name, path.stat().st_size) for path in paths]
    return dataset, fingerprint([split if root else "", *sizes])


def _check_claims(path: Path) -> None:
    """Refuse a file that would make `datasets` ask for gigabytes that it does not hold."""
    try:
        check_parquet(path, context=str(path))
    except FormatError as error:
        raise SourceError(str(error)) from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # pyarrow raises many kinds on damaged files
        raise SourceError(f"{path}: not a readable parquet file ({type(error).__name__}: {error})") from error


def load_saved(folder: Path, *, split: str, streaming: bool, location: str) -> tuple[Any, str]:
    """Load a folder written by `save_to_disk`, of one split or of several; return the data set and its identity."""
    datasets = import_datasets(location)
    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise SourceError(f"{location}: cannot be loaded ({type(error).__name__}: {error})") from error
    if isinstance(dataset, datasets.DatasetDict):
        dataset = _pick(dataset, split, location=location)
        folder = folder / split
    sizes = [(path.name, path.stat().st_size) for path in sorted(folder.glob("*.arrow"))]
    identity = fingerprint([len(dataset), dataset._fingerprint, *sizes])
    if streaming:
        return dataset.to_iterable_dataset(num_shards=max(1, min(len(sizes), len(dataset)))), identity
    return dataset, identity


def _pick(splits: Mapping[str, Any], split: str, *, location: str) -> Any:
    if split not in splits:
        raise SourceError(
            f"{location}: no split {split!r}; it has {sorted(splits)}: choose one to read (--source-split)"
        )
    return splits[split]


def _load(path: str, config: str | None, *, split: str, streaming: bool, location: str, **options: Any) -> Any:
    datasets = import_datasets(location)
    try:
        with _one_line_of_retries(location):
            return datasets.load_dataset(path, config, split=split, streaming=streaming, **options)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise SourceError(
            f"{location}: the Hub has no such data set, or it is gated or private (then: huggingface-cli login). "
            f"{error}"
        ) from error
    except ConnectionError as error:  # also datasets' OfflineModeIsEnabled
        raise SourceError(
            f"{location}: the Hub does not answer ({error}). Without a network, use a folder written by "
            "save_to_disk, or parquet files"
        ) from error
    except Exception as error:  # loaders raise any exception
        text = str(error)
        if "network" in text.lower() or "connect" in text.lower() or "resolve" in text.lower():
            raise SourceError(f"{location}: the Hub does not answer ({type(error).__name__}: {text})") from error
        raise SourceError(f"{location}: cannot be loaded ({type(error).__name__}: {text})") from error


@contextmanager
def _one_line_of_retries(location: str) -> Iterator[None]:
    """Reduce huggingface_hub's log to one line: it logs two for every retry."""
    logger = logging.getLogger("huggingface_hub.utils._http")
    said = False

    def first_only(record: logging.LogRecord) -> bool:
        nonlocal said
        if record.levelno != logging.WARNING:
            return True
        if said:
            return False
        said = True
        record.msg, record.args = f"{location}: the Hub does not answer yet; retrying for half a minute", ()
        return True

    logger.addFilter(first_only)
    try:
        yield
    finally:
        logger.removeFilter(first_only)
