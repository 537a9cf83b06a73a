"""A split's index as one memory-mapped table of fixed-width rows, shared by every process of a machine.

The parquet file of the data set is converted once into `index/{key}.npy` of the cache folder, whose key names the
shards and the index's own bytes: another index, of other labels say, is another file. A process then maps it: its
memory does not grow with the number of samples, and its start-up by no more than a checksum of this file.
"""

import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from walloc_data.errors import FormatError, StorageError, WallocDataError
from walloc_data.format import MIRROR_INDEX_COLUMNS, OPTIONAL_INDEX_COLUMNS, CodecSpec, SplitRecord
from walloc_data.storage import Store, cache_errors, file_lock

__all__ = ["INDEX_ROW", "SplitIndex", "load_index", "split_identity"]

# label is -1 where there is none, mirror_offset and mirror_length are 0 where no mirrored latents are stored, crc32 and
# mirror_crc32 are 0 where the index has no checksums.
INDEX_ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("mirror_offset", "<i8"),
        ("label", "<i8"),
        ("source_index", "<i8"),
        ("length", "<i4"),
        ("mirror_length", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("crc32", "<u4"),
        ("mirror_crc32", "<u4"),
    ]
)
_NUMBERS = ("shard", "offset", "length", "label", "height", "width", "source_index")
_MAX_PARQUET_BYTES_PER_ROW = 512
_MAX_ROWS_PER_PARQUET_BYTE = 4  # places and sizes of real samples do not compress like this; a bomb's do
_DIGEST_BYTES = hashlib.sha256().digest_size  # behind the table in its file: the table's SHA-256


def split_identity(spec: CodecSpec, record: SplitRecord) -> str:
    """32 hex digits that name these latents in this order: two splits share it only if their shards are the same."""
    shards = [(shard.sha256, shard.num_samples) for shard in record.shards]
    return hashlib.sha256(json.dumps([spec.encoder_sha256, shards]).encode()).hexdigest()[:32]


class SplitIndex:
    """The table of one split. Travels to other processes as the name of its file.

    Attributes:
        rows: (num_samples,) of `INDEX_ROW`, mapped for reading.
    """

    def __init__(self, path: Path, num_samples: int) -> None:
        self.path, self.num_samples = path, num_samples
        try:
            self.rows: npt.NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise FormatError(f"{path}: not an index ({error}): remove this file from the cache") from error
        if self.rows.dtype != INDEX_ROW or self.rows.shape != (num_samples,):
            raise FormatError(f"{path}: not an index of {num_samples} samples: remove this file from the cache")

    def __reduce__(self) -> tuple[type["SplitIndex"], tuple[Path, int]]:
        return SplitIndex, (self.path, self.num_samples)


def load_index(store: Store, *, split: str, record: SplitRecord, spec: CodecSpec, folder: Path) -> SplitIndex:
    """The index of a split, from the cache folder; converted and checked first where needed.

    A local index is compared with the manifest's checksum each time, a remote one when it is fetched. A table in the
    cache that is damaged is made anew.

    Raises:
        FormatError: the index contradicts the manifest, or points outside its shards.
    """
    with _Parquet(store, split, record) as parquet:
        key = [split_identity(spec, record), parquet.sha256(), INDEX_ROW.descr]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        path = folder / "index" / f"{name}.npy"
        with cache_errors(folder, what=f"the index of {store.url}"):
            if not _is_whole(path):  # one that is there may be another user's: it is read without a lock
                path.parent.mkdir(parents=True, exist_ok=True)
                with file_lock(path.with_suffix(".lock")):
                    if not _is_whole(path):  # nobody made it while this process waited
                        _write(path, parquet.rows(spec))
    return SplitIndex(path, record.num_samples)


def _write(path: Path, rows: npt.NDArray[np.void]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        partial = Path(scratch) / path.name
        with partial.open("w+b") as file:
            np.save(file, rows, allow_pickle=False)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").digest()
            file.seek(0, os.SEEK_END)
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def _is_whole(path: Path) -> bool:
    """Return whether a table is there, and is what was written."""
    try:
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
            if num_bytes <= 0:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                digest = bytes(view[num_bytes:])
                with view[:num_bytes] as table:
                    return hashlib.sha256(table).digest() == digest
    except FileNotFoundError:
        return False


class _Parquet:
    """The index's file in the data set: fetched when first needed, its bytes checked against the manifest."""

    def __init__(self, store: Store, split: str, record: SplitRecord) -> None:
        self.store, self.record, self.name = store, record, record.index_name(split)
        self.where = store.where(self.name)
        self._scratch = tempfile.TemporaryDirectory()
        self._path: Path | None = None

    def __enter__(self) -> "_Parquet":
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def sha256(self) -> str:
        """Of its bytes: as they are where they lie on this machine, else what the manifest says, where it does."""
        if self.store.local_path is None and self.record.index_sha256 is not None:
            return self.record.index_sha256
        with self._named(), self._fetched().open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        self._compare(found)
        return found

    def rows(self, spec: CodecSpec) -> npt.NDArray[np.void]:
        """(num_samples,) of `INDEX_ROW`: what it holds, checked."""
        with self._named():
            data = self._fetched().read_bytes()
        self._compare(hashlib.sha256(data).hexdigest())  # of the very bytes that are read
        try:
            return _check(_read(data, self.record), self.record, spec)
        except WallocDataError as error:
            raise type(error)(f"{self.where}: {error}") from error
        except Exception as error:  # pyarrow raises many kinds on damaged files
            raise FormatError(f"{self.where}: not a readable index ({type(error).__name__}: {error})") from error

    def _compare(self, found: str) -> None:
        expected = self.record.index_sha256
        if expected is not None and found != expected:
            raise FormatError(
                f"{self.where}: its sha256 is {found}, the manifest says {expected}: it was damaged, or changed after "
                "it was written. Copy it again, or let `walloc-data finish` write it again from the conversion's "
                "records; if the change is meant, put its new sha256 into the manifest as index_sha256"
            )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of reading it as ours."""
        try:
            yield
        except FileNotFoundError as error:
            if isinstance(error, WallocDataError):
                raise
            raise StorageError(f"{self.where}: no such file; the manifest lists this split") from error
        except OSError as error:
            if isinstance(error, WallocDataError):
                raise
            raise StorageError(f"{self.where}: cannot be read ({error.strerror or error})") from error

    def _fetched(self) -> Path:
        """Return where it lies on this machine."""
        if self._path is None:
            limit = 2**20 + _MAX_PARQUET_BYTES_PER_ROW * self.record.num_samples
            local = self.store.local_path
            num_bytes = self.store.num_bytes(self.name) if local is None else (local / self.name).stat().st_size
            if num_bytes > limit:
                raise FormatError(f"{self.where}: {num_bytes} bytes for {self.record.num_samples} samples; refused")
            if local is not None:
                self._path = local / self.name
            else:
                self._path = Path(self._scratch.name) / "index.parquet"
                self.store.download(self.name, self._path)
        return self._path


def _read(data: bytes, record: SplitRecord) -> dict[str, npt.NDArray[np.int64]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(data)) as file:
        if file.metadata.num_rows != record.num_samples:
            raise FormatError(f"{file.metadata.num_rows} rows; the manifest says {record.num_samples}")
        if record.num_samples > _MAX_ROWS_PER_PARQUET_BYTE * len(data):
            raise FormatError(f"{record.num_samples} rows in {len(data)} bytes; refused")
        present = set(file.schema_arrow.names)
        mirrors = [column for column, _, _ in MIRROR_INDEX_COLUMNS if column in present]
        if missing := [column for column in _NUMBERS if column not in present]:
            raise FormatError(f"no column {missing[0]!r}")
        wanted = [*_NUMBERS, *mirrors, *(OPTIONAL_INDEX_COLUMNS & (present - set(mirrors)))]
        table = file.read(columns=wanted)  # no keys: nothing is read or written by their name
    columns: dict[str, Any] = {}
    for column in wanted:
        values = table[column]
        if values.null_count and column != "label" and column not in OPTIONAL_INDEX_COLUMNS:
            raise FormatError(f"column {column!r} has empty rows")
        filled = values.fill_null(-1 if column == "label" else 0) if values.null_count else values
        columns[column] = filled.to_numpy().astype(np.int64)
    return columns


def _check(columns: dict[str, npt.NDArray[np.int64]], record: SplitRecord, spec: CodecSpec) -> npt.NDArray[np.void]:
    """Refuse whatever a reader would trust later: order, bounds and shapes."""
    counts = np.array([shard.num_samples for shard in record.shards], dtype=np.int64)
    num_bytes = np.array([shard.num_bytes for shard in record.shards], dtype=np.int64)
    shard = np.repeat(np.arange(len(counts)), counts)
    if not np.array_equal(columns["shard"], shard):
        raise FormatError("rows are not in the order of the manifest's shards, or not as many a shard as it says")
    for prefix in ("", "mirror_"):
        if f"{prefix}offset" in columns:
            offset, length = columns[f"{prefix}offset"], columns[f"{prefix}length"]
            # No sum, so that no overflow can wrap back into range.
            bad = (
                (offset < 0)
                | (length < 1)
                | (length > np.minimum(num_bytes, 2**31 - 1)[shard])
                | (offset > num_bytes[shard] - length)
            )
            if bad.any():
                raise FormatError(f"row {int(bad.argmax())}: its {prefix}offset and length point outside its shard")
    for column in OPTIONAL_INDEX_COLUMNS & set(columns):
        if ((columns[column] < 0) | (columns[column] >= 2**32)).any():
            raise FormatError(f"a {column} is not in [0, 2^32)")
    limit = 2**20 * spec.cell_px
    for side in ("height", "width"):
        if ((columns[side] < 1) | (columns[side] > limit)).any():
            raise FormatError(f"a {side} is not in [1, {limit}]")
    if (columns["label"] < -1).any() or (record.labelled and (columns["label"] < 0).any()):
        raise FormatError("a label is negative or missing")
    if record.latent_shape is not None:
        sides = [-(-columns[side] // spec.cell_px) for side in ("height", "width")]
        if any((values != expected).any() for values, expected in zip(sides, record.latent_shape[1:], strict=True)):
            raise FormatError(f"a sample is not of the manifest's latent_shape {record.latent_shape}")
    rows = np.zeros(record.num_samples, INDEX_ROW)
    for column in columns:
        if column != "shard":
            rows[column] = columns[column]
    return rows
