"""Helpers for fsspec: entries of listings, ETags, and a limit on the length of transfers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from walloc_data.errors import StorageError

__all__ = ["Entry", "etag_of", "size_limit"]


class Entry(NamedTuple):
    """File or folder in a listing."""

    name: str
    kind: str  # "file", "directory", or another kind of the file system
    num_bytes: int | None
    etag: str | None


def size_limit(full: str, max_bytes: int | None) -> Any:
    """Return an fsspec callback that aborts the transfer of the file `full` if it is longer than allowed."""
    from fsspec.callbacks import Callback

    class Limit(Callback):  # type: ignore[misc]
        def call(self, *_: Any, **__: Any) -> None:
            if max_bytes is not None and max(self.size or 0, self.value) > max_bytes:
                raise StorageError(
                    f"{full}: {max(self.size or 0, self.value)} bytes or more; at most {max_bytes} are downloaded"
                )

    return Limit()


def etag_of(info: Mapping[str, Any]) -> str | None:
    """Return the ETag in a file's info, without quotes; None if there is none."""
    etag = info.get("ETag")
    return etag.strip('"') if isinstance(etag, str) else None
