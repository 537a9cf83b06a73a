"""Splits of a source: their names, and how to open each."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from walloc_data.errors import FormatError, SourceError
from walloc_data.format import check_name
from walloc_data.sources.archive import archive_of, top_folders
from walloc_data.sources.stray import are_splits, is_stray

__all__ = ["find_splits", "is_parquet_folder"]

_FIRST = ("train", "training")


def find_splits(spec: Any, *, names: Sequence[str] | None = None) -> dict[str, tuple[Any, str]]:
    """Return the splits of a source.

    Args:
        spec: a dictionary of splits, such as `datasets.DatasetDict`; ``hf:NAME``; a folder written by `save_to_disk` or
            of parquet files; a folder or an archive whose folders are named like splits (``train``, ``val``, ...).
        names: splits to return, in this order; None: all, with the training split first, whose class names are used.

    Returns:
        The arguments of `open_source`, spec and `split`, by the name of the split in lower case.

    Raises:
        SourceError: the source has no splits, or not the named ones.

    Example:
        >>> from walloc_data.sources import find_splits
        >>> pictures = ["pictures/cat/0.jpg", "pictures/coffee/0.jpg"]
        >>> find_splits({"val": pictures[1:], "train": pictures[:1]})
        {'train': (['pictures/cat/0.jpg'], 'train'), 'val': (['pictures/coffee/0.jpg'], 'val')}
    """
    found = _splits_of(spec)
    context = spec if isinstance(spec, str | os.PathLike) else type(spec).__name__
    splits: dict[str, tuple[Any, str]] = {}
    for name in sorted(found, key=lambda name: (name.lower() not in _FIRST, name)):
        try:
            check_name(name.lower(), what="split", context=str(context))
        except FormatError as error:
            raise SourceError(
                f"{error}: encode it by itself, with another --split and --source-split {name}"
            ) from error
        splits[name.lower()] = (found[name], name)
    if names is None:
        return splits
    if unknown := [name for name in names if name not in splits]:
        raise SourceError(f"{context}: no splits {unknown}; it has {sorted(splits)}")
    return {name: splits[name] for name in names}


def _splits_of(spec: Any) -> dict[str, Any]:
    if isinstance(spec, Mapping):
        return dict(spec)
    if not isinstance(spec, str | os.PathLike):
        raise SourceError(f"a {type(spec).__name__} has no splits: encode it as one (--split NAME)")
    text = os.fspath(spec)
    if text.startswith("hf:"):
        return dict.fromkeys(_hub_splits(text.removeprefix("hf:"), context=text), text)
    path = Path(text.removeprefix("folder:")).expanduser()
    if not path.is_dir():
        if (found := archive_of(path)) is None:
            raise SourceError(f"{text}: its splits are unknown: encode each separately (--split NAME)")
        folders = top_folders(*found, context=text)
    elif (path / "dataset_dict.json").is_file():
        return dict.fromkeys(_saved_splits(path / "dataset_dict.json"), text)
    elif is_parquet_folder(path):
        return dict.fromkeys(_hub_splits(str(path.absolute()), context=text), text)
    else:
        folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not is_stray(entry.name))
    if not are_splits(folders):
        raise SourceError(
            f"{text}: its folders are not named like splits (train, val, test, ...): {folders[:5]}; encode each by "
            "itself (--split NAME)"
        )
    return {name: f"{text.rstrip('/')}/{name}" for name in folders}


def _hub_splits(name: str, *, context: str) -> list[str]:
    from walloc_data.sources.hub import split_names

    return split_names(name, location=context)


def _saved_splits(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_bytes())["splits"]
        return [str(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: not the list of splits that save_to_disk writes ({error})") from error


def is_parquet_folder(path: Path) -> bool:
    """Return whether a folder holds parquet files, not counting img2dataset's beside ``00000/`` or ``00000.tar``."""
    files = [*path.glob("*.parquet"), *path.glob("data/*.parquet")]
    return any(not file.with_suffix("").is_dir() and not file.with_suffix(".tar").is_file() for file in files)
