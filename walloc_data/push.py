"""Uploads of a finished data set: to the Hugging Face Hub, or to a bucket through `walloc_data.storage`.

Every shard is checked against its record before a byte leaves; the manifest goes last, so a data set that is half
there is never readable as a whole. Running the same call again sends only what has not arrived.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from walloc_data.errors import CorruptShardError, FormatError, SettingsMismatchError, StorageError
from walloc_data.format import MANIFEST_NAME, MAX_JSON_BYTES, Manifest, index_name
from walloc_data.storage import Retry, Store, read_manifest, shards_reader

__all__ = ["PushResult", "push"]

# What a data set consists of besides its shards; anything else that lies in the folder stays at home.
_FOLDERS = ("codec", "index", "failures")
_FILES = ("_info.json", "LICENSE", "preview.png", "preview.webp", "report.html", "README.md")
# One commit on the Hub; a thousand commits of one file each would be slow to clone.
_FILES_PER_COMMIT = 64
# The Hub counts requests in windows of five minutes, and says when the next one begins.
_HUB_ATTEMPTS = 5
_HUB_RETRY_SECONDS = 600.0
# s3fs sends larger files in parts of this size, and the ETag of such an object is made of the parts' MD5s.
_S3_PART_BYTES = 50 * 2**20


@dataclass(frozen=True)
class PushResult:
    """Outcome of an upload; with `dry_run`, what it would do.

    Example:
        >>> from walloc_data.push import push
        >>> result = push("my-latents", "memory://my-latents", dry_run=True)  # or hf://datasets/me/my-latents, s3://...
        >>> result.uploaded[-1], result.unchanged, result.left_out
        ('walloc.json', (), ())
    """

    destination: str
    uploaded: tuple[str, ...]  # in the order in which they went
    unchanged: tuple[str, ...]  # the same bytes were there already
    left_out: tuple[str, ...]  # files in the folder that the manifest does not vouch for
    num_bytes: int  # of `uploaded`
    dry_run: bool


@dataclass(frozen=True)
class _File:
    path: str  # inside the data set
    local: Path
    num_bytes: int
    sha256: str


class _Target(Protocol):
    def read(self, path: str, *, max_bytes: int) -> bytes | None: ...
    def holds(self, file: _File) -> bool: ...
    def remove(self, paths: Sequence[str]) -> None: ...
    def upload(self, files: Sequence[_File]) -> Iterator[_File]: ...


def push(
    out: str | os.PathLike[str],
    destination: str,
    *,
    dry_run: bool = False,
    replace: bool = False,
    private: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> PushResult:
    """Upload the data set in the folder `out`.

    Args:
        out: a local folder with a `walloc.json`; a data set that is in a store already is not sent on from there.
        destination: ``hf://datasets/OWNER/NAME``, or ``s3://bucket/prefix`` and what else `Store` takes.
        dry_run: look at both sides and say what would be sent; send nothing.
        replace: allow the destination to hold another data set; its manifest, and the shards that the new one does
            not have, are deleted before anything is sent.
        private: make a new repository on the Hub private.
        storage_options: for a bucket, those of `Store`; for the Hub, `token` and `endpoint` (default: those of
            `hf auth login`).
        progress: called after each file with its path, and the bytes sent so far and in all.

    Raises:
        CorruptShardError: a shard is not what its record says; nothing has been sent.
        SettingsMismatchError: the destination holds another data set.
        StorageError: the destination refused, or failed after the tries that it deserves (a Retry-After of its own is
            waited for); run the same call again to go on.

    Example:
        >>> from walloc_data.push import push
        >>> result = push("my-latents", "memory://my-latents")  # or hf://datasets/me/my-latents, s3://bucket/my-latents
        >>> result.uploaded[0], result.uploaded[-1]
        ('data/train-00000.tar', 'walloc.json')
    """
    root = Store(out).local_path
    if root is None:
        raise StorageError(
            f"{os.fspath(out)}: push sends a folder of this machine, and this is a URL: copy the data set here first "
            "(`aws s3 sync`, `hf download`, ...), or copy it from store to store with the store's own tools"
        )
    manifest_bytes, manifest = _read_manifest(root)
    files, left_out = _collect(root, manifest)
    target = _target(destination, private=private, storage_options=dict(storage_options or {}))
    stale = _reconcile(target, manifest, destination=destination, replace=replace)

    uploaded: list[_File] = []
    unchanged: list[_File] = []
    for file in files:
        (unchanged if target.holds(file) else uploaded).append(file)
    last = _File(MANIFEST_NAME, root / MANIFEST_NAME, len(manifest_bytes), hashlib.sha256(manifest_bytes).hexdigest())
    (unchanged if not uploaded and not stale and target.holds(last) else uploaded).append(last)
    total = sum(file.num_bytes for file in uploaded)

    if not dry_run and uploaded:
        if stale is not None:
            target.remove([MANIFEST_NAME, *stale])
        done = 0
        for file in target.upload(uploaded):
            done += file.num_bytes
            if progress is not None:
                progress(file.path, done, total)
    return PushResult(
        destination=destination,
        uploaded=tuple(file.path for file in uploaded),
        unchanged=tuple(file.path for file in unchanged),
        left_out=tuple(left_out),
        num_bytes=total,
        dry_run=dry_run,
    )


def _read_manifest(root: Path) -> tuple[bytes, Manifest]:
    path = root / MANIFEST_NAME
    if not path.is_file():
        raise FormatError(f"{root}: no {MANIFEST_NAME} here; push takes the local folder of a finished conversion")
    data = Store(root).read_bytes(MANIFEST_NAME, max_bytes=MAX_JSON_BYTES)
    return data, read_manifest(Store(root))


def _collect(root: Path, manifest: Manifest) -> tuple[list[_File], list[str]]:
    """Return the files of a data set in the order of upload, each shard checked; and the names of the others."""
    records = {shard.name: shard for split in manifest.splits.values() for shard in split.shards}
    present = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    for split in manifest.splits:
        if index_name(split) not in present:
            raise FormatError(f"{root}: the index {index_name(split)} is missing; finish the conversion first")
    wanted = [name for name in records if name in present]
    wanted += [name for name in present if name.partition("/")[0] in _FOLDERS and "/" in name]
    wanted += [name for name in _FILES if name in present]
    # A link could name any file of this machine: what it points to is not part of the folder.
    wanted = [name for name in wanted if not _leaves(root / name, root)]
    files = []
    for name, record in records.items():
        path = root / name
        if name not in wanted:
            raise CorruptShardError(f"{path}: the shard is missing; convert again to make it")
        if (num_bytes := path.stat().st_size) != record.num_bytes:
            raise CorruptShardError(f"{path}: {num_bytes} bytes, but its record says {record.num_bytes}")
        if (digest := _sha256(path)) != record.sha256:
            raise CorruptShardError(f"{path}: sha256 {digest}, but its record says {record.sha256}")
        files.append(_File(name, path, record.num_bytes, record.sha256))
    for name in wanted[len(records) :]:
        path = root / name
        files.append(_File(name, path, path.stat().st_size, _sha256(path)))
    return files, [name for name in present if name not in wanted and name != MANIFEST_NAME]


def _leaves(path: Path, root: Path) -> bool:
    return not path.resolve().is_relative_to(root.resolve())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reconcile(target: _Target, ours: Manifest, *, destination: str, replace: bool) -> list[str] | None:
    """Return what an upload must remove: None if the destination is empty or holds an earlier state of this data
    set.
    """
    there = target.read(MANIFEST_NAME, max_bytes=MAX_JSON_BYTES)
    if there is None:
        return None
    old: dict[str, str] = {}
    try:

        def read(path: str, *, max_bytes: int) -> bytes:
            if (data := target.read(path, max_bytes=max_bytes)) is None:
                raise FormatError(f"{destination}/{path} is missing")
            return data

        lists = shards_reader(read, where=lambda path: f"{destination}/{path}")
        theirs = Manifest.from_json(there, where=f"{destination}/{MANIFEST_NAME}", read_shards=lists)
    except FormatError as error:
        reason = str(error)
    else:
        old = {shard.name: shard.sha256 for split in theirs.splits.values() for shard in split.shards}
        new = {shard.name: shard.sha256 for split in ours.splits.values() for shard in split.shards}
        if theirs.codec.encoder_sha256 != ours.codec.encoder_sha256:
            reason = f"its codec is {theirs.codec.name} {theirs.codec.encoder_sha256[:12]}"
        elif differing := [name for name, digest in old.items() if new.get(name) != digest]:
            reason = f"{differing[0]} is not the same shard"
        else:
            return None
        old = {name: digest for name, digest in old.items() if name not in new}
    if not replace:
        raise SettingsMismatchError(
            f"{destination}: holds another data set ({reason}); choose another destination, or replace it (--replace)"
        )
    return sorted(old)


def _target(destination: str, *, private: bool, storage_options: dict[str, Any]) -> _Target:
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
    """An object store. Each object appears whole or not at all, so order is all that readers need."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        return self.store.read_bytes(path, max_bytes=max_bytes) if self.store.exists(path) else None

    def holds(self, file: _File) -> bool:
        if not self.store.exists(file.path) or self.store.num_bytes(file.path) != file.num_bytes:
            return False
        # With encryption by KMS, or with a customer's key, an ETag is not made of the content.
        if (digest := self.store.sha256(file.path)) is not None:
            return digest == file.sha256
        etag = self.store.etag(file.path)
        return etag is not None and etag in _etags(file.local)

    def remove(self, paths: Sequence[str]) -> None:
        for path in paths:
            self.store.delete(path)

    def upload(self, files: Sequence[_File]) -> Iterator[_File]:
        for file in files:
            self.store.publish(file.local, file.path, sha256=file.sha256)
            yield file


def _etags(path: Path) -> tuple[str, str]:
    """Return the ETag that S3 gives this file sent whole, and sent in parts: MD5 of the parts' MD5s, and their
    number.
    """
    whole, parts = hashlib.md5(usedforsecurity=False), []
    with path.open("rb") as file:
        while data := file.read(_S3_PART_BYTES):
            whole.update(data)
            parts.append(hashlib.md5(data, usedforsecurity=False).digest())
    return whole.hexdigest(), f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


class _Hub:
    """A data-set repository on the Hugging Face Hub. A commit is whole or not at all; the last one has the manifest."""

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
            raise StorageError(f"{error}; run the same command again to go on") from cause

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

    def holds(self, file: _File) -> bool:
        entry = self.there.get(file.path)
        if entry is None or entry.size != file.num_bytes:
            return False
        if entry.lfs is not None:
            return bool(entry.lfs.sha256 == file.sha256)
        data = file.local.read_bytes()  # what is not in large file storage is small: 10 MB at most
        digest = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
        return bool(entry.blob_id == digest)

    def remove(self, paths: Sequence[str]) -> None:
        from huggingface_hub import CommitOperationDelete

        tried = False

        def commit() -> None:
            nonlocal tried
            if tried:
                self.there = self._tree()  # an answer was lost: the files may be gone already
            tried = True
            if doomed := [CommitOperationDelete(path_in_repo=path) for path in paths if path in self.there]:
                self._commit_once(doomed, message="Make room for another data set")

        self._call(commit, what="making room")

    def upload(self, files: Sequence[_File]) -> Iterator[_File]:
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
        # Card, index and manifest change together: a reader sees all of them or none.
        batches.append([file for file in files if not file.path.startswith("data/")])
        for i, batch in enumerate(batches):
            self._commit(
                [CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=str(file.local)) for file in batch],
                message="Add the index and the manifest" if i == len(batches) - 1 else f"Add {len(batch)} shards",
            )
            yield from batch

    def _commit(self, operations: list[Any], *, message: str) -> None:
        # Where an answer was lost, the same files are committed again: nothing changes.
        self._call(lambda: self._commit_once(operations, message=message), what="uploading")

    def _commit_once(self, operations: list[Any], *, message: str) -> None:
        self.api.create_commit(self.repo_id, operations, commit_message=message, repo_type="dataset", num_threads=4)
