"""Destinations of an upload: a repository on the Hugging Face Hub, or an object store."""

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from walloc_data.errors import StorageError
from walloc_data.storage import Retry, Store

__all__ = ["File", "Target", "open_target"]

# One commit on the Hub; a thousand commits of one file each would be slow to clone.
_FILES_PER_COMMIT = 64
# The Hub limits requests per five minutes, and states when the next interval starts.
_HUB_ATTEMPTS = 5
_HUB_RETRY_SECONDS = 600.0
# s3fs uploads larger files in parts of this size; the ETag of such an object is a hash of the parts' MD5s.
_S3_PART_BYTES = 50 * 2**20


@dataclass(frozen=True)
class File:
    path: str  # inside the data set
    local: Path
    num_bytes: int
    sha256: str


class Target(Protocol):
    def read(self, path: str, *, max_bytes: int) -> bytes | None: ...
    def holds(self, file: File) -> bool: ...
    def remove(self, paths: Sequence[str]) -> None: ...
    def upload(self, files: Sequence[File]) -> Iterator[File]: ...


def open_target(destination: str, *, private: bool, storage_options: dict[str, Any]) -> Target:
    if destination.startswith("hf://"):
        match = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)", destination)
        if match is None:
            raise StorageError(f"{destination}: a data set on the Hub is named hf://datasets/OWNER/NAME")
        return _Hub(match[1], private=private, options=storage_options)
    store = Store(destination, storage_options=storage_options)
    if store.local_path is not None:
        raise StorageError(
            f"{destination}: push sends to hf://datasets/OWNER/NAME or to a bucket such as s3://bucket/prefix; "
            "a folder on this machine can be copied as it is"
        )
    return _Bucket(store)


class _Bucket:
    """Object store. Objects appear atomically, so only their order matters."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        return self.store.read_bytes(path, max_bytes=max_bytes) if self.store.exists(path) else None

    def holds(self, file: File) -> bool:
        if not self.store.exists(file.path) or self.store.num_bytes(file.path) != file.num_bytes:
            return False
        # With encryption by KMS or a customer key, the ETag is not a hash of the content.
        if (digest := self.store.sha256(file.path)) is not None:
            return digest == file.sha256
        etag = self.store.etag(file.path)
        return etag is not None and etag in _etags(file.local)

    def remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.store.delete(path)

    def upload(self, files: Sequence[File]) -> Iterator[File]:
        for file in files:
            self.store.publish(file.local, file.path, sha256=file.sha256)
            yield file


def _etags(path: Path) -> tuple[str, str]:
    """Return the ETags of a file on S3 if uploaded at once, and in parts (MD5 of the parts' MD5s, and their number)."""
    whole, parts = hashlib.md5(usedforsecurity=False), []
    with path.open("rb") as file:
        while data := file.read(_S3_PART_BYTES):
            whole.update(data)
            parts.append(hashlib.md5(data, usedforsecurity=False).digest())
    return whole.hexdigest(), f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


class _Hub:
    """Data set repository on the Hugging Face Hub. Commits are atomic, and the last one has the manifest."""

    def __init__(self, repo_id: str, *, private: bool, options: dict[str, Any]) -> None:
        if unknown := sorted(set(options) - {"token", "endpoint"}):
            raise StorageError(
                f"hf://datasets/{repo_id}: unknown storage options {unknown}; it takes token and endpoint"
            )
        from huggingface_hub import HfApi

        self._tries = Retry(max_attempts=_HUB_ATTEMPTS, max_seconds=_HUB_RETRY_SECONDS)
        self.api = HfApi(library_name="walloc_data", **options)
        self.repo_id = repo_id
        self.private = private
        self.exists = self._call(lambda: self.api.repo_exists(repo_id, repo_type="dataset"), what="looking for it")
        self.there: dict[str, Any] = self._call(self._tree, what="listing it") if self.exists else {}

    def _tree(self) -> dict[str, Any]:
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, repo_type="dataset")
        return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}

    def _call(self, action: Callable[[], Any], *, what: str) -> Any:
        name = f"hf://datasets/{self.repo_id}"
        try:
            return self._tries(action, what=f"{name}: {what}")
        except StorageError as error:
            cause = error.__cause__
            status = getattr(getattr(cause, "response", None), "status_code", None)
            if status in (401, 403):
                raise StorageError(
                    f"{name}: {what}: the Hub says {status}; log in with `hf auth login` (or set HF_TOKEN) using a "
                    f"token that may write to {self.repo_id.partition('/')[0]}"
                ) from cause
            raise StorageError(f"{error}; run the same command to resume") from cause

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        if path not in self.there:
            return None
        if (num_bytes := self.there[path].size) > max_bytes:
            raise StorageError(f"hf://datasets/{self.repo_id}/{path}: {num_bytes} bytes; at most {max_bytes} are read")
        with tempfile.TemporaryDirectory() as folder:
            local = self._call(
                lambda: self.api.hf_hub_download(self.repo_id, path, repo_type="dataset", local_dir=folder),
                what=f"reading its {path}",
            )
            return Path(local).read_bytes()

    def holds(self, file: File) -> bool:
        entry = self.there.get(file.path)
        if entry is None or entry.size != file.num_bytes:
            return False
        if entry.lfs is not None:
            return bool(entry.lfs.sha256 == file.sha256)
        data = file.local.read_bytes()  # files outside of large file storage have at most 10 MB
        digest = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
        return bool(entry.blob_id == digest)

    def remove(self, paths: Sequence[str]) -> None:
        from huggingface_hub import CommitOperationDelete

        tried = False

        def commit() -> None:
            nonlocal tried
            if tried:
                self.there = self._tree()  # a response was lost: the files may be deleted already
            tried = True
            if doomed := [CommitOperationDelete(path_in_repo=path) for path in paths if path in self.there]:
                self._commit_once(doomed, message="Make room for another data set")

        self._call(commit, what="making room")

    def upload(self, files: Sequence[File]) -> Iterator[File]:
        from huggingface_hub import CommitOperationAdd

        if not self.exists:
            self._call(
                lambda: self.api.create_repo(
                    self.repo_id, repo_type="dataset", private=self.private or None, exist_ok=True
                ),
                what="making the repository",
            )
        shards = [file for file in files if file.path.startswith("data/")]
        batches = [shards[i : i + _FILES_PER_COMMIT] for i in range(0, len(shards), _FILES_PER_COMMIT)]
        # Card, index and manifest are committed together.
        batches.append([file for file in files if not file.path.startswith("data/")])
        for i, batch in enumerate(batches):
            self._commit(
                [CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=str(file.local)) for file in batch],
                message="Add the index and the manifest" if i == len(batches) - 1 else f"Add {len(batch)} shards",
            )
            yield from batch

    def _commit(self, operations: list[Any], *, message: str) -> None:
        # If a response was lost, the same files are committed again, without effect.
        self._call(lambda: self._commit_once(operations, message=message), what="uploading")

    def _commit_once(self, operations: list[Any], *, message: str) -> None:
        self.api.create_commit(self.repo_id, operations, commit_message=message, repo_type="dataset", num_threads=4)
