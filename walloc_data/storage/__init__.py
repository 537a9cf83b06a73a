"""Where bytes lie: local folders and object stores behind one small interface. The only room that knows fsspec."""

from walloc_data.storage.cache import DEFAULT_MAX_CACHE_BYTES, ShardCache, default_cache_folder, map_file
from walloc_data.storage.lock import file_lock
from walloc_data.storage.manifest import read_manifest
from walloc_data.storage.store import Store

__all__ = [
    "DEFAULT_MAX_CACHE_BYTES",
    "ShardCache",
    "Store",
    "default_cache_folder",
    "file_lock",
    "map_file",
    "read_manifest",
]
