"""One data set's folder, on disk or in an object store: read, list, and publish whole files or nothing.

Paths are '/'-separated and relative to the root; `format.check_relative_path` has refused anything else before it
gets here, and `Store` refuses it again. Credentials and endpoints come from where the ecosystem keeps them
(environment, ~/.aws, ...) or from `storage_options`; they never appear in `url`, messages or logs.
"""

import io
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from walloc_data.errors import StorageError
from walloc_data.files import atomic_file, check_regular, open_regular, read_regular, sync_folder
from walloc_data.format import check_relative_path
from walloc_data.storage.location import parse_location
from walloc_data.storage.remote import S3_PROTOCOLS, Entry, etag_of, open_filesystem, size_limit
from walloc_data.storage.retry import DEFAULT_RETRY_SECONDS, Retry, is_absence, reason
from walloc_data.text import printable

__all__ = ["Store"]

# Clients that came through a fork. Their sockets are registered with the parent's epoll instance, which a fork shares:
# finalising one here would unregister the parent's sockets, and the parent would wait for an answer it never sees.
_inherited: list[Any] = []


class Store:
    """A folder of files under one root.

    Args:
        url: a local path, or a URL that fsspec knows: ``s3://bucket/prefix``, ``gs://``, ``az://``,
            ``hf://datasets/owner/name``, ``https://host/folder``.
        storage_options: passed to the fsspec file system (``endpoint_url``, ``anon``, ...).
        max_attempts: tries per operation on a remote store, with jittered exponential backoff between them. The S3
            client's own tries are switched off, so that these are all.
        retry_seconds: no try begins later than this after the operation's first.

    Attributes:
        root: the path or URL as it was given; `url` is the same for messages.

    Example:
        >>> from walloc_data.storage import Store
        >>> store = Store("my-latents")  # or s3://bucket/my-latents, hf://datasets/me/my-latents
        >>> store.list("data")
        ['data/train-00000.tar', 'data/train-00001.tar']
        >>> store.read_bytes("walloc.json", max_bytes=2**20)[:1]
        b'{'
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        max_attempts: int = 12,
        retry_seconds: float = DEFAULT_RETRY_SECONDS,
    ) -> None:
        self.root, self._protocol, self.local_path = parse_location(url)
        self.storage_options = dict(storage_options or {})
        self.max_attempts, self.retry_seconds = max_attempts, retry_seconds
        self._retry = Retry(max_attempts, retry_seconds)
        self._remote: Any = None
        self._remote_pid = 0

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_remote": None}  # connections do not survive a fork or a pickle

    @property
    def url(self) -> str:
        """The folder's path or URL, as it can stand in one line of a message: line breaks are escaped."""
        return printable(self.root, newlines=False)

    @property
    def endpoint(self) -> str | None:
        """The address of an S3 store that is asked, where it is not Amazon's own; without credentials."""
        if self._protocol not in S3_PROTOCOLS:
            return None
        given = self.storage_options.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL_S3")
        return str(given or os.environ.get("AWS_ENDPOINT_URL") or "").rpartition("@")[2] or None

    @property
    def endpoint_remedy(self) -> str:
        """Return how an S3 store's address is chosen, to end a sentence about a URL that may be wrong."""
        if self._protocol not in S3_PROTOCOLS:
            return ""
        return (
            ", and AWS_ENDPOINT_URL" if self.endpoint else ", or set AWS_ENDPOINT_URL where the store is not Amazon's"
        )

    def inside(self, folder: str, *, max_attempts: int | None = None) -> "Store":
        """Return a folder of this store, "" for the root, as a store that is opened in the same way."""
        return Store(
            f"{self.root}/{folder}".rstrip("/"),
            storage_options=self.storage_options,
            max_attempts=self.max_attempts if max_attempts is None else max_attempts,
            retry_seconds=self.retry_seconds,
        )

    def location(self, path: str) -> str:
        """Return the full name of a file, for messages."""
        return printable(f"{self.root}/{path}", newlines=False)

    @property
    def _fs(self) -> Any:
        if self._remote is None or self._remote_pid != os.getpid():
            if self._remote is not None:
                _inherited.append(self._remote)
            self._remote = open_filesystem(self._protocol, self.storage_options, url=self.url)
            self._remote_pid = os.getpid()
        return self._remote

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Context: turn errors of the system into a StorageError that names the file."""
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.location(path)}: {reason(error)}") from error

    def _local(self, path: str) -> Path:
        assert self.local_path is not None  # noqa: S101
        return self.local_path / check_relative_path(path, context=self.url)

    def _full(self, path: str) -> str:
        return f"{self.root}/{check_relative_path(path, context=self.url)}"

    def _info(self, full: str) -> dict[str, Any]:
        self._fs.invalidate_cache(full)  # a listing that was cached before the file changed would lie
        return dict(self._fs.info(full))

    def exists(self, path: str) -> bool:
        """Return whether a file is there."""
        if self.local_path is not None:
            with self._naming(path):  # errors such as a loop of links, which is not an absent file
                with suppress(FileNotFoundError, NotADirectoryError):
                    return stat.S_ISREG(self._local(path).stat().st_mode)
                return False
        full = self._full(path)
        return bool(self._retry(lambda: self._is_there(full), what=f"looking for {full}"))

    def _is_there(self, full: str) -> bool:
        if self._protocol not in S3_PROTOCOLS:
            try:  # `exists` of some fsspec file systems is False whatever the error is
                return bool(self._info(full)["type"] != "directory")
            except FileNotFoundError as error:
                if not is_absence(error):
                    raise
                return False
        # A listing with the whole name as prefix. s3fs asks with HEAD, to which Swift answers 404 with a body, which no
        # answer to HEAD may have: clients then lose the connection instead of learning that there is no such object.
        parent, _, name = full.rpartition("/")
        try:
            found = self._fs.find(parent, prefix=name)
        except FileNotFoundError:  # no such bucket
            return False
        return self._fs._strip_protocol(full) in found

    def read_bytes(self, path: str, *, max_bytes: int) -> bytes:
        """Return a whole file; one larger than `max_bytes` is refused without reading all of it."""
        if self.local_path is not None:
            with self._naming(path):
                return read_regular(self._local(path), max_bytes=max_bytes)
        full = self._full(path)

        def read() -> bytes:
            if self._protocol not in ("http", "https"):
                return bytes(self._fs.cat_file(full, start=0, end=max_bytes + 1))
            # A web server may ignore the range, and cat_file would then hold all that it sends.
            buffer = io.BytesIO()
            self._fs.get_file(full, buffer, callback=size_limit(self.location(path), max_bytes))
            return buffer.getvalue()

        data = self._retry(read, what=f"reading {full}")
        if len(data) > max_bytes:
            raise StorageError(f"{self.location(path)}: more than {max_bytes} bytes; at most that many are read here")
        return data

    def num_bytes(self, path: str) -> int:
        """Return a file's length in bytes; folders, pipes and devices are refused."""
        if self.local_path is not None:
            with self._naming(path):
                return check_regular(self._local(path))
        full = self._full(path)
        size = self._retry(lambda: self._info(full), what=f"looking at {full}")["size"]
        if size is None:
            raise StorageError(f"{self.location(path)}: the server does not say how long it is")
        return int(size)

    def etag(self, path: str) -> str | None:
        """Return an object's ETag without quotes; None where the store gives none.

        On S3 it is the MD5 of an object that was sent whole. It must not be trusted for more than "unchanged".
        """
        if self.local_path is not None:
            return None
        full = self._full(path)
        return etag_of(self._retry(lambda: self._info(full), what=f"looking at {full}"))

    def _entries(self, folder: str | None) -> list[Entry]:
        """Return the files and folders directly in a folder, None for the root; none where it is absent."""
        if self.local_path is not None:
            path = self.local_path if folder is None else self._local(folder)
            found = []
            try:
                with os.scandir(path) if path.is_dir() else nullcontext(()) as entries:
                    for entry in entries:
                        with suppress(OSError):  # a link that leads nowhere is neither
                            if entry.is_dir():
                                found.append(Entry(entry.name, "directory", None, None))
                            elif entry.is_file():
                                found.append(Entry(entry.name, "file", entry.stat().st_size, None))
            except OSError as error:
                raise StorageError(
                    f"{self.url if folder is None else self.location(folder)}: {reason(error)}"
                ) from error
            return found
        full = self.root if folder is None else self._full(folder)

        def listing() -> list[Entry]:
            try:
                self._fs.invalidate_cache(full)
                entries = self._fs.ls(full, detail=True)
            except FileNotFoundError:
                return []
            return [
                Entry(entry["name"].rstrip("/").rsplit("/", 1)[-1], entry["type"], entry.get("size"), etag_of(entry))
                for entry in entries
            ]

        return self._retry(listing, what=f"listing {full}")

    def list_folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders directly in a folder; empty where there is none."""
        return sorted(entry.name for entry in self._entries(folder) if entry.kind == "directory")

    def list(self, folder: str) -> list[str]:
        """Return the sorted paths, relative to the root, of the files directly in a folder; empty where there is
        none.
        """
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of the files directly in a folder, by path relative to the root; empty where there is none.

        One request a listing on a remote store, so cheaper than `num_bytes` of each.
        """
        files = (entry for entry in self._entries(folder) if entry.kind == "file")
        return {f"{folder}/{entry.name}": entry.num_bytes or 0 for entry in files}

    def entries(self) -> dict[str, tuple[int | None, str | None]]:
        """Return length in bytes and ETag, where they are told, of the files directly in the root, by name."""
        files = (entry for entry in self._entries(None) if entry.kind == "file")
        return {entry.name: (entry.num_bytes, entry.etag) for entry in files}

    def read_range(self, path: str, *, start: int, num_bytes: int) -> bytes:
        """Return bytes [start, start + num_bytes) of a file, fewer at its end."""
        if self.local_path is not None:
            with self._naming(path), open_regular(self._local(path)) as file:
                file.seek(start)
                # `read` allocates what it is asked for, also beyond the end of the file.
                return file.read(max(0, min(num_bytes, os.fstat(file.fileno()).st_size - start)))
        full, end = self._full(path), start + num_bytes
        data = bytes(self._retry(lambda: self._fs.cat_file(full, start=start, end=end), what=f"reading {full}"))
        return data if len(data) <= num_bytes else data[start:end]  # a server that knows no ranges sends all of it

    def copy(self, path: str, target: str) -> None:
        """Put a second name on a file of this store, whole or not at all: a hard link, or a copy that the server makes.

        What was under the second name before is replaced. Files of a data set are replaced and never written into, so
        that a hard link is as good as a copy.
        """
        if self.local_path is not None:
            source, end = self._local(path), self._local(target)
            end.parent.mkdir(parents=True, exist_ok=True)
            if end.exists() and end.samefile(source):
                return
            with atomic_file(end) as partial:
                partial.unlink()
                try:
                    os.link(source, partial)
                except OSError:  # a file system without hard links
                    shutil.copyfile(source, partial)
            sync_folder(end.parent)
            return
        full, end_full = self._full(path), self._full(target)

        def duplicate() -> None:
            self._fs.cp_file(full, end_full)
            if self._info(end_full)["size"] != self._info(full)["size"]:
                raise OSError("not all of it arrived")

        self._retry(duplicate, what=f"copying {full}")

    def download(self, path: str, target: Path, *, max_bytes: int | None = None) -> None:
        """Fetch a file whole to a local path, which is replaced only once all of it is there.

        Args:
            max_bytes: a longer file is refused, and no more of it is fetched than shows that.
        """
        with atomic_file(target) as partial:
            self.download_into(path, partial, max_bytes=max_bytes)

    def download_into(self, path: str, target: Path, *, max_bytes: int | None = None) -> None:
        """Fetch a file over `target`, which an error may leave incomplete: for callers with a protocol of their own."""
        if self.local_path is not None:
            with self._naming(path):
                check_regular(self._local(path), max_bytes=max_bytes)
                shutil.copyfile(self._local(path), target)
            return
        full = self._full(path)
        self._retry(
            lambda: self._fs.get_file(full, str(target), callback=size_limit(self.location(path), max_bytes)),
            what=f"fetching {full}",
        )

    def sha256(self, path: str) -> str | None:
        """Return the SHA-256 that `publish` stored beside a file; None where there is none."""
        if self._protocol not in S3_PROTOCOLS:
            return None
        full = self._full(path)
        found = self._retry(lambda: self._fs.metadata(full), what=f"looking at {full}")
        return str(found["sha256"]) if "sha256" in found else None

    def publish(self, source: Path, path: str, *, sha256: str | None = None) -> None:
        """Put a finished local file in its place, whole or not at all. The local file is consumed on disk stores.

        Args:
            sha256: of the file: kept in the object's metadata on S3, whose ETags say nothing of encrypted content.
        """
        num_bytes = source.stat().st_size
        if self.local_path is not None:
            target = self._local(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                source.replace(target)
            except OSError:  # another file system: copy beside the target first
                with atomic_file(target) as partial:
                    shutil.copyfile(source, partial)
                source.unlink()
            sync_folder(target.parent)
            return
        full = self._full(path)
        beside = {"Metadata": {"sha256": sha256}} if sha256 is not None and self._protocol in S3_PROTOCOLS else {}

        def upload() -> None:
            self._fs.put_file(str(source), full, **beside)
            self._check_arrival(full, num_bytes)

        self._retry(upload, what=f"uploading {full}")

    def write_bytes(self, path: str, data: bytes) -> None:
        """Publish a small file from memory."""
        if self.local_path is not None:
            target = self._local(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as partial:
                partial.write_bytes(data)
            sync_folder(target.parent)
            return
        full = self._full(path)

        def write() -> None:
            self._fs.pipe_file(full, data)
            self._check_arrival(full, len(data))

        self._retry(write, what=f"writing {full}")

    def _check_arrival(self, full: str, num_bytes: int) -> None:
        """Raise OSError, which is tried again, if a file is not there as it was sent: some answers of 200 are lies."""
        try:
            stored = self._info(full)["size"]
        except FileNotFoundError as error:
            raise OSError("the store said that it was written, and it is not there") from error
        if stored != num_bytes:
            raise OSError(f"{stored} of {num_bytes} bytes arrived")

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""
        if self.local_path is not None:
            self._local(path).unlink(missing_ok=True)
            return
        full = self._full(path)

        def remove() -> None:
            try:
                self._fs.rm_file(full)
            except FileNotFoundError as error:
                if not is_absence(error):
                    raise

        self._retry(remove, what=f"deleting {full}")
