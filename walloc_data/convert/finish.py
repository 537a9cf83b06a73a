"""Completion of a split after all of its parts: `finish_dataset`."""

from collections.abc import Mapping
from typing import Any

from walloc_data.convert.join import join_split
from walloc_data.convert.journal import planned_splits
from walloc_data.convert.lock import conversion_lock, disk_errors
from walloc_data.convert.overwrite import recover
from walloc_data.convert.progress import ConversionSummary
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import ConversionError
from walloc_data.storage import DatasetLocation, open_store

__all__ = ["finish_dataset"]


@renamed_arguments(out="dataset")
def finish_dataset(
    dataset: DatasetLocation, *, split: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, ConversionSummary]:
    """Add splits whose parts are complete to the manifest.

    Args:
        dataset: the data set.
        split: one split; None: every split that has a plan.

    Returns:
        A summary of each split.

    Raises:
        ConversionError: shards of a split are missing; the message names them. Splits before it, by name, are finished.
        BusyError: a conversion is still running.

    Example:
        >>> from walloc_data.convert import encode_dataset, finish_dataset
        >>> for part in ("1/2", "2/2"):  # on two machines, perhaps
        ...     summary = encode_dataset("pictures", "latents", size_px=64, samples_per_shard=4, part=part)
        >>> finish_dataset("latents")["train"].num_samples
        8
    """
    store = open_store(dataset, storage_options)
    with disk_errors(store), conversion_lock(store):
        recover(store)
        splits = [split] if split is not None else planned_splits(store)
        if not splits:
            raise ConversionError(f"{store.url}: no conversion was started there: run encode first")
        return {name: join_split(store, name) for name in splits}
