"""Reading a data set's manifest, with one wording for what is not a data set."""

from walloc_data.errors import FormatError
from walloc_data.format import MANIFEST_NAME, MAX_JSON_BYTES, Manifest
from walloc_data.storage.store import Store

__all__ = ["read_manifest"]


def read_manifest(store: Store) -> Manifest:
    """The manifest of the data set in a store.

    Raises:
        FormatError: a folder without a manifest, or one that breaks the contract.
        StorageError: a remote store refuses, or has none there.

    Example:
        >>> from walloc_data.storage import Store, read_manifest
        >>> read_manifest(Store("my-latents")).class_names
        ('cat', 'coffee')
    """
    if store.local_path is not None and not store.exists(MANIFEST_NAME):
        raise FormatError(
            f"{store.url}: no {MANIFEST_NAME}: not a data set of latents, or its conversion has not been finished yet"
        )
    data = store.read_bytes(MANIFEST_NAME, max_bytes=MAX_JSON_BYTES)
    return Manifest.from_json(data, where=store.where(MANIFEST_NAME))
