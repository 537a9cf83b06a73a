"""Reading and writing of the manifest in a store, with its lists of shards."""

import hashlib
from collections.abc import Callable

from walloc_data.errors import FormatError, StorageError
from walloc_data.format import (
    MANIFEST_NAME,
    MAX_JSON_BYTES,
    Manifest,
    ReadShards,
    ShardRecord,
    ShardsFile,
    shards_name,
)
from walloc_data.storage.store import Store
from walloc_data.tables import read_shards, shards_table

__all__ = ["MAX_LISTED_SHARDS", "read_manifest", "shards_reader", "write_manifest"]

MAX_LISTED_SHARDS = 4096  # per split in the manifest; more are listed in a file next to the index
_MAX_BYTES_PER_SHARD = 512


def read_manifest(store: Store) -> Manifest:
    """Read the manifest of the data set in a store.

    Raises:
        FormatError: the folder has no manifest, or an invalid one.
        StorageError: a remote store refuses, or has no manifest there; the message names the URL and the endpoint.

    Example:
        >>> from walloc_data.storage import Store, read_manifest
        >>> read_manifest(Store("my-latents")).class_names
        ('cat', 'coffee')
    """
    if store.local_path is not None and not store.exists(MANIFEST_NAME):
        raise FormatError(
            f"{store.url}: no {MANIFEST_NAME}: not a data set of latents, or its conversion is not finished yet"
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
            f"upload is not finished yet. Check the URL{store.endpoint_remedy}"
        ) from error
    read = shards_reader(store.read_bytes, context=store.location)
    return Manifest.from_json(data, context=store.location(MANIFEST_NAME), read_shards=read)


def write_manifest(store: Store, manifest: Manifest, *, max_listed_shards: int | None = None) -> None:
    """Write `walloc.json`, after the files with lists of shards for splits that have very many.

    Example:
        >>> from walloc_data.storage import Store, read_manifest, write_manifest
        >>> store = Store("my-latents")
        >>> manifest = read_manifest(store)
        >>> write_manifest(store, manifest, max_listed_shards=1)
        >>> sorted(path for path in store.list("index") if "shards" in path), read_manifest(store) == manifest
        (['index/train.shards.parquet'], True)
    """
    most = MAX_LISTED_SHARDS if max_listed_shards is None else max_listed_shards
    files = {}
    for split, record in manifest.splits.items():
        # While a split is changed, its shards are in two folders, but names in the list are relative to one.
        if len(record.shards) > most and all(shard.name.startswith(f"{record.root}data/") for shard in record.shards):
            data = shards_table(record.shards, root=record.root)
            name = record.root + shards_name(split)
            store.write_bytes(name, data)
            files[split] = ShardsFile(name, hashlib.sha256(data).hexdigest(), len(record.shards))
    store.write_bytes(MANIFEST_NAME, manifest.to_json(shards_files=files).encode())


def shards_reader(read: Callable[..., bytes], *, context: Callable[[str], str]) -> ReadShards:
    """Return the function by which `Manifest.from_json` reads lists of shards.

    Args:
        read: function of a path inside the data set and `max_bytes` that returns the bytes of the file.
        context: function of a path that returns its description for errors.

    Example:
        >>> from walloc_data.format import MANIFEST_NAME, Manifest
        >>> from walloc_data.storage import Store, shards_reader
        >>> store = Store("my-latents")
        >>> text = store.read_bytes(MANIFEST_NAME, max_bytes=2**20)
        >>> lists = shards_reader(store.read_bytes, context=store.location)
        >>> Manifest.from_json(text, context="walloc.json", read_shards=lists).splits["train"].num_samples
        8
    """

    def read_list(file: ShardsFile) -> tuple[ShardRecord, ...]:
        data = read(file.name, max_bytes=2**20 + _MAX_BYTES_PER_SHARD * file.num_shards)
        if (found := hashlib.sha256(data).hexdigest()) != file.sha256:
            raise FormatError(f"{context(file.name)}: its sha256 is {found}, but the manifest says {file.sha256}")
        root = file.name.rpartition("index/")[0]
        return read_shards(data, num_shards=file.num_shards, root=root, context=context(file.name))

    return read_list
