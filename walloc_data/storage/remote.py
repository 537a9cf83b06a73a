"""Helpers for fsspec: opening of file systems, entries of listings, ETags, and a limit on the length of transfers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from walloc_data.errors import MissingExtraError, StorageError

__all__ = ["S3_PROTOCOLS", "Entry", "etag_of", "open_filesystem", "size_limit"]

S3_PROTOCOLS = ("s3", "s3a")
_EXTRAS = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "az": ("adlfs", "az"),
    "abfs": ("adlfs", "az"),
}


class Entry(NamedTuple):
    """File or folder in a listing."""

    name: str
    kind: str  # "file", "directory", or another kind of the file system
    num_bytes: int | None
    etag: str | None


def open_filesystem(protocol: str, storage_options: Mapping[str, Any], *, url: str) -> Any:
    """Return a new fsspec file system; an S3 client makes one request per call, as `Store` itself tries again.

    Raises:
        MissingExtraError: the package for this protocol is not installed.
        StorageError: fsspec has no file system for this protocol; names `url`.
    """
    import fsspec

    options = dict(storage_options)
    if protocol in S3_PROTOCOLS:
        # A try of ours was 25 requests of theirs, and a minute without a word.
        given = options.get("config_kwargs") or {}
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **given}
    try:
        client = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    except ImportError as error:
        package, extra = _EXTRAS.get(protocol, (protocol, protocol))
        raise MissingExtraError(package, extra=extra, purpose=f"{protocol}:// storage") from error
    except ValueError as error:
        raise StorageError(f"{url}: no file system is known for {protocol}:// ({error})") from error
    if protocol in S3_PROTOCOLS:
        client.retries = 1
    return client


def size_limit(full: str, max_bytes: int | None) -> Any:
    """Return an fsspec callback that aborts the transfer of the file `full` if it is longer than allowed."""
    from fsspec.callbacks import Callback

    class Limit(Callback):  # type: ignore[misc]
        def set_size(self, size: int | None) -> None:
            self.size = size  # not compared yet: it may be of the page that a web server sends with an error

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
