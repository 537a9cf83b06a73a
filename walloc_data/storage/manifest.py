"""Reading a data set's manifest, with one wording for what is not a data set."""

from walloc_data.errors import FormatError, StorageError
from walloc_data.format import MANIFEST_NAME, MAX_JSON_BYTES, Manifest
from walloc_data.storage.store import Store

__all__ = ["read_manifest"]


def read_manifest(store: Store) -> Manifest:
    """Read the manifest of the data set in a store.

    Raises:
        FormatError: a folder without a manifest, or one that breaks the contract.
        StorageError: a remote store refuses, or has none there; names the URL and the endpoint that was asked.

    Example:
        >>> from walloc_data.storage import Store, read_manifest
        >>> read_manifest(Store("my-latents")).class_names
        ('cat', 'coffee')
    """
    if store.local_path is not None and not store.exists(MANIFEST_NAME):
        raise FormatError(
            f"{store.url}: no {MANIFEST_NAME}: not a data set of latents, or its conversion has not been finished yet"
        )
    try:
        data = store.read_bytes(MANIFEST_NAME, max_bytes=MAX_JSON_BYTES)
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        at = f" at {store.endpoint}" if store.endpoint else ""
        said = " ".join(str(error.__cause__).split())
        raise StorageError(
            f"{store.url}: no {MANIFEST_NAME} there{at} ({said}): not a data set of latents, or its conversion or "
            f"upload has not been finished yet. Check the URL{store.endpoint_remedy}"
        ) from error
    return Manifest.from_json(data, where=store.where(MANIFEST_NAME))
