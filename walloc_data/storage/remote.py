"""Parts of the interface to fsspec: entries of a listing, ETags, and a limit on the length of a transfer."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from walloc_data.errors import StorageError

__all__ = ["Entry", "etag_of", "size_limit"]


class Entry(NamedTuple):
    """File or folder in a listing."""

    name: str
    kind: str  # "file", "directory", or what else a file system has
    num_bytes: int | None
    etag: str | None


def size_limit(full: str, max_bytes: int | None) -> Any:
    """Return an fsspec callback that ends the transfer of a file `full` that is longer than allowed."""
    from fsspec.callbacks import Callback

    class Limit(Callback):  # type: ignore[misc]
        def call(self, *_: Any, **__: Any) -> None:
            if max_bytes is not None and max(self.size or 0, self.value) > max_bytes:
                raise StorageError(
                    f"{full}: {max(self.size or 0, self.value)} bytes and perhaps more; at most {max_bytes} are "
                    "fetched of it"
                )

    return Limit()


def etag_of(info: Mapping[str, Any]) -> str | None:
    """Return the ETag in a file's facts, without quotes; None where there is none."""
    etag = info.get("ETag")
    return etag.strip('"') if isinstance(etag, str) else None
