"""Where bytes lie: local folders and object stores behind one small interface. The only room that knows fsspec."""

from walloc_data.storage.store import Store

__all__ = ["Store"]
