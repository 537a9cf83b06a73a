"""Opening of a data set's store where a public function is given a path, a URL or the store itself."""

import os
from collections.abc import Mapping
from typing import Any

from walloc_data.errors import StorageError
from walloc_data.storage.store import Store

__all__ = ["DatasetLocation", "open_store"]

DatasetLocation = str | os.PathLike[str] | Store


def open_store(dataset: DatasetLocation, storage_options: Mapping[str, Any] | None = None) -> Store:
    """Return the store of a data set: the one that is given, or that of a path or URL.

    Raises:
        StorageError: a store is given, and `storage_options` beside it.

    Example:
        >>> from walloc_data.storage import open_store
        >>> store = open_store("my-latents")
        >>> store, open_store(store) is store
        (Store('my-latents'), True)
    """
    if not isinstance(dataset, Store):
        return Store(dataset, storage_options=storage_options)
    if storage_options is not None:
        raise StorageError("storage_options belong to the Store that is given: leave them out here")
    return dataset
