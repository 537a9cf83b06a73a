"""Parsing of the paths and URLs that name a data set's folder."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from walloc_data.errors import StorageError
from walloc_data.text import printable

__all__ = ["Location", "parse_location"]

# Also what pathlib makes of a URL.
_ONE_SLASH = re.compile(r"(?P<protocol>s3a?|gs|gcs|az|abfs|https?|hf):/(?!/)")


class Location(NamedTuple):
    """Root folder of a store."""

    root: str  # path or URL as given, without slashes at its end
    protocol: str  # of a URL; of a path, the path itself
    local_path: Path | None  # None: remote


def parse_location(url: str | os.PathLike[str]) -> Location:
    """Return the location that a path or URL names.

    Raises:
        StorageError: it is no text, names no folder and no bucket, has credentials, or one slash after its protocol.
    """
    given: Any = os.fspath(url) if isinstance(url, os.PathLike) else url
    if not isinstance(given, str):
        raise StorageError(f"pass a path or URL, or its Store, not {type(url).__name__}")
    protocol, separator, rest = given.partition("://")
    slip = None if separator else _ONE_SLASH.match(given)
    if slip is not None:
        protocol, rest = slip["protocol"], given[slip.end() :]
    is_local = not separator and slip is None
    if not is_local and "@" in rest.partition("/")[0]:
        raise StorageError(
            f"{protocol}://...: credentials do not belong in a URL; use the environment or storage_options"
        )
    # Without this check, "" would be the root of the disk, and "s3://" a folder here of the name "s3:".
    if not (given if is_local else rest if protocol == "file" else rest.strip("/")):
        raise StorageError(f"{given!r} names no folder and no bucket: is a variable empty that it was made from?")
    root = given if separator and not rest.strip("/") else given.rstrip("/") or "/"
    if slip is not None:
        raise StorageError(f"{printable(root, newlines=False)}: did you mean {protocol}://{root[slip.end() :]}?")
    is_path = is_local or protocol == "file"
    return Location(root, protocol, Path(root if is_local else rest).expanduser() if is_path else None)
