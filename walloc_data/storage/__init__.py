"""Access to local folders and object stores, and the cache of shards."""

from walloc_data.storage.cache import DEFAULT_MAX_CACHE_BYTES, ShardCache, cache_errors, default_cache_folder
from walloc_data.storage.cache_contents import CacheContents, cache_contents, clear_cache
from walloc_data.storage.lock import HeldLock, file_lock, lock_path, machine_folder
from walloc_data.storage.manifest import read_manifest, shards_reader, write_manifest
from walloc_data.storage.opening import DatasetLocation, open_store
from walloc_data.storage.retry import DEFAULT_RETRY_SECONDS, Retry
from walloc_data.storage.shards import OpenShards, ShardFile, max_open_shards
from walloc_data.storage.store import Store
from walloc_data.storage.threads import DaemonThreads

__all__ = [
    "DEFAULT_MAX_CACHE_BYTES",
    "DEFAULT_RETRY_SECONDS",
    "CacheContents",
    "DaemonThreads",
    "DatasetLocation",
    "HeldLock",
    "OpenShards",
    "Retry",
    "ShardCache",
    "ShardFile",
    "Store",
    "cache_contents",
    "cache_errors",
    "clear_cache",
    "default_cache_folder",
    "file_lock",
    "lock_path",
    "machine_folder",
    "max_open_shards",
    "open_store",
    "read_manifest",
    "shards_reader",
    "write_manifest",
]
