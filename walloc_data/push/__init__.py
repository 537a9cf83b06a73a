"""Upload of a finished data set to the Hugging Face Hub or to a bucket.

Shards, indices, the codec and one sample per shard are checked before the upload starts. The manifest is uploaded last,
so a partial upload is not readable as a data set. Calling `push_dataset` again uploads only missing files.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import CorruptShardError, FormatError, SettingsMismatchError, StorageError
from walloc_data.files import check_regular, open_regular
from walloc_data.format import MANIFEST_NAME, MAX_JSON_BYTES, Manifest
from walloc_data.push.checks import check_readable
from walloc_data.push.targets import File, Target, open_target
from walloc_data.storage import DatasetLocation, Store, open_store, read_manifest, shards_reader

__all__ = ["PushResult", "push"]

# Files of a data set besides its shards; other files in the folder are not uploaded.
_FOLDERS = ("codec", "index", "failures")
MAX_OTHER_BYTES = 2**32
_FILES = ("_info.json", "LICENSE", "preview.png", "preview.webp", "report.html", "README.md")


@dataclass(frozen=True)
class PushResult:
    """Result of an upload; with `dry_run`, the result that it would have.

    Example:
        >>> from walloc_data.push import push
        >>> result = push("my-latents", "memory://my-latents", dry_run=True)  # or hf://datasets/me/my-latents, s3://...
        >>> result.uploaded[-1], result.unchanged, result.left_out
        ('walloc.json', (), ())
    """

    destination: str
    uploaded: tuple[str, ...]  # in order
    unchanged: tuple[str, ...]  # files that were already at the destination
    left_out: tuple[str, ...]  # files in the folder that are not part of the data set
    num_bytes: int  # of `uploaded`
    dry_run: bool


@renamed_arguments(out="dataset")
def push(
    dataset: DatasetLocation,
    destination: str,
    *,
    dry_run: bool = False,
    replace: bool = False,
    private: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> PushResult:
    """Upload the data set in the folder `dataset`.

    Args:
        dataset: a local folder with a `walloc.json`, not a URL.
        destination: ``hf://datasets/OWNER/NAME``, ``s3://bucket/prefix``, or another URL supported by `Store`.
        dry_run: compare both sides and return the files that would be uploaded, without uploading.
        replace: allow replacing another data set: its manifest, and shards that the new one does not have, are deleted
            before the upload.
        private: create a new repository on the Hub as private.
        storage_options: for a bucket, as for `Store`; for the Hub, `token` and `endpoint` (default: those of
            `hf auth login`).
        progress: called after each file with its path, the bytes uploaded so far, and the total.

    Raises:
        CorruptShardError: a shard does not match its record; nothing was uploaded.
        FormatError: an index or the list of failures is invalid; nothing was uploaded.
        CodecError: the codec in the folder cannot be loaded, or is not the one of the latents; nothing was uploaded.
        SettingsMismatchError: the destination has another data set.
        StorageError: the destination refused, or failed after retries; call again to resume.

    Example:
        >>> from walloc_data.push import push
        >>> result = push("my-latents", "memory://my-latents")  # or hf://datasets/me/my-latents, s3://bucket/my-latents
        >>> result.uploaded[0], result.uploaded[-1]
        ('data/train-00000.tar', 'walloc.json')
    """
    store = open_store(dataset)
    root = store.local_path
    if root is None:
        raise StorageError(
            f"{store.url}: push sends a folder of this machine, and this is a URL: copy the data set here "
            "first (`aws s3 sync`, `hf download`, ...), or copy it from store to store with the store's own tools"
        )
    manifest_bytes, manifest = _read_manifest(store)
    with check_readable(store, manifest):
        files, left_out = _collect(root, manifest)
    target = open_target(destination, private=private, storage_options=dict(storage_options or {}))
    stale = _reconcile(target, manifest, destination=destination, replace=replace)

    uploaded: list[File] = []
    unchanged: list[File] = []
    for file in files:
        (unchanged if target.holds(file) else uploaded).append(file)
    last = File(MANIFEST_NAME, root / MANIFEST_NAME, len(manifest_bytes), hashlib.sha256(manifest_bytes).hexdigest())
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


def _read_manifest(store: Store) -> tuple[bytes, Manifest]:
    if not store.exists(MANIFEST_NAME):
        raise FormatError(f"{store.url}: no {MANIFEST_NAME} here; push takes the local folder of a finished conversion")
    return store.read_bytes(MANIFEST_NAME, max_bytes=MAX_JSON_BYTES), read_manifest(store)


def _collect(root: Path, manifest: Manifest) -> tuple[list[File], list[str]]:
    """Return the files of a data set in the order of upload, with checked shards, and the names of other files."""
    records = {shard.name: shard for split in manifest.splits.values() for shard in split.shards}
    present = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    wanted = [name for name in records if name in present]
    wanted += [name for name in present if name.partition("/")[0] in _FOLDERS and "/" in name]
    wanted += [name for name in _FILES if name in present]
    # A link could lead to any file of this machine.
    wanted = [name for name in wanted if not _leaves(root / name, root)]
    needed = ["codec/codec.json", "codec/model.safetensors", *(r.index_name(s) for s, r in manifest.splits.items())]
    for name in needed:
        if name not in wanted:
            raise FormatError(f"{root / name}: a link to a file outside of the folder: replace it by the file")
    files = []
    for name, record in records.items():
        path = root / name
        if name not in wanted:
            raise CorruptShardError(f"{path}: the shard is missing; convert again to make it")
        if (num_bytes := check_regular(path)) != record.num_bytes:
            raise CorruptShardError(f"{path}: {num_bytes} bytes, but its record says {record.num_bytes}")
        if (digest := _sha256(path)) != record.sha256:
            raise CorruptShardError(f"{path}: sha256 {digest}, but its record says {record.sha256}")
        files.append(File(name, path, record.num_bytes, record.sha256))
    for name in wanted[len(records) :]:
        path = root / name
        num_bytes = check_regular(path)
        if num_bytes > MAX_OTHER_BYTES and not name.endswith(".parquet"):  # indices have been read
            raise FormatError(
                f"{path}: {num_bytes} bytes; files beside shards and index have {MAX_OTHER_BYTES} at most"
            )
        files.append(File(name, path, num_bytes, _sha256(path)))
    return files, [name for name in present if name not in wanted and name != MANIFEST_NAME]


def _leaves(path: Path, root: Path) -> bool:
    return not path.resolve().is_relative_to(root.resolve())


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reconcile(target: Target, ours: Manifest, *, destination: str, replace: bool) -> list[str] | None:
    """Return the files that an upload must delete; None if the destination is empty or has this data set in part."""
    there = target.read(MANIFEST_NAME, max_bytes=MAX_JSON_BYTES)
    if there is None:
        return None
    old: dict[str, str] = {}
    try:

        def read(path: str, *, max_bytes: int) -> bytes:
            if (data := target.read(path, max_bytes=max_bytes)) is None:
                raise FormatError(f"{destination}/{path} is missing")
            return data

        lists = shards_reader(read, context=lambda path: f"{destination}/{path}")
        theirs = Manifest.from_json(there, context=f"{destination}/{MANIFEST_NAME}", read_shards=lists)
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
            f"{destination}: has another data set ({reason}); choose another destination, or replace it (--replace)"
        )
    return sorted(old)
