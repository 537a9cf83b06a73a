"""The index of a split as a memory-mapped table of fixed-width rows, shared by all processes of a machine.

The parquet file of the data set is converted once to `index/{key}.npy` in the cache folder, where the key is a hash of
the shards and of the bytes of the index. Mapping the file takes no memory per sample; opening computes its checksum.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from walloc_data.dataset.checksummed import Mapped, checksummed_file
from walloc_data.dataset.columns import (
    ArrayColumn,
    Column,
    ListColumn,
    column_types,
    max_column_bytes,
    unknown_column,
    write_column,
)
from walloc_data.errors import FormatError, StorageError, WallocDataError
from walloc_data.files import open_regular
from walloc_data.format import MIRROR_INDEX_COLUMNS, OPTIONAL_INDEX_COLUMNS, CodecSpec, ColumnType, SplitRecord
from walloc_data.parquet import batches, open_parquet
from walloc_data.storage import Store
from walloc_data.tables import plain_type, text_of_batch

__all__ = ["INDEX_ROW", "SplitIndex", "check_index", "load_columns", "load_index", "read_table", "split_identity"]

Rows = npt.NDArray[np.void]

# Missing values: label is -1; mirror_offset and mirror_length are 0 without stored mirrored latents; crc32 and
# mirror_crc32 are 0 without checksums.
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
_MAX_PARQUET_BYTES_PER_ROW = 4096  # including the picture's name, excluding the source's columns
_MAX_PARQUET_BYTES_PER_COLUMN = 2**17  # a value of the source has at most 64 KiB as JSON
_MAX_ROWS_PER_PARQUET_BYTE = 4  # real indices do not compress better; decompression bombs do
_CHUNK_ROWS = 2**16
_DOWNLOADS_OF_A_DAMAGED_INDEX = 3


def split_identity(spec: CodecSpec, record: SplitRecord) -> str:
    """Return 32 hex digits that identify the latents of a split and their order, by its shards."""
    shards = [(shard.sha256, shard.num_samples) for shard in record.shards]
    return hashlib.sha256(json.dumps([spec.encoder_sha256, shards]).encode()).hexdigest()[:32]


class SplitIndex:
    """Table of one split. Pickled as the path of its file.

    Attributes:
        rows: (num_samples,) of `INDEX_ROW`, read-only memory map.
    """

    def __init__(self, path: Path, num_samples: int) -> None:
        self.path, self.num_samples = path, num_samples
        try:
            self._rows: Rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise FormatError(f"{path}: not an index ({error}): remove this file from the cache") from error
        if self._rows.dtype != INDEX_ROW or self._rows.shape != (num_samples,):
            raise FormatError(f"{path}: not an index of {num_samples} samples: remove this file from the cache")
        self._mapped = Mapped(getattr(self._rows, "_mmap", None), path)  # None where there are no samples

    @property
    def rows(self) -> Rows:
        self._mapped.check()
        return self._rows

    def __reduce__(self) -> tuple[type["SplitIndex"], tuple[Path, int]]:
        return SplitIndex, (self.path, self.num_samples)


def load_index(store: Store, *, split: str, record: SplitRecord, spec: CodecSpec, folder: Path) -> SplitIndex:
    """Load the index of a split from the cache folder; convert and check it first if needed.

    A local index is compared with the checksum in the manifest each time, a remote one when it is downloaded. A damaged
    table in the cache is written again.

    Raises:
        FormatError: the index contradicts the manifest, or refers to bytes outside the shards.
    """
    with _Parquet(store, split, record) as parquet:
        key = [split_identity(spec, record), parquet.sha256(), INDEX_ROW.descr]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        path = folder / "index" / f"{name}.npy"

        def write(file: BinaryIO) -> None:
            shape = (record.num_samples,)
            header = {"descr": np.lib.format.dtype_to_descr(INDEX_ROW), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for rows in parquet.rows(spec):
                file.write(rows.data)

        checksummed_file(
            path, write, what=f"the index of {store.url}", max_bytes=4096 + INDEX_ROW.itemsize * record.num_samples
        )
    return SplitIndex(path, record.num_samples)


def check_index(store: Store, *, split: str, record: SplitRecord, spec: CodecSpec) -> None:
    """Check the index of a split as `load_index` does, for those who go on to read it themselves.

    Raises:
        FormatError: the index contradicts the manifest, or points outside its shards.
    """
    with _Parquet(store, split, record) as parquet:
        for _ in parquet.rows(spec):
            pass


def load_columns(
    store: Store, *, split: str, record: SplitRecord, mirror: bool, folder: Path, names: Sequence[str]
) -> dict[str, Column]:
    """Load columns of a split's index from the cache folder; convert them first if needed.

    Raises:
        LoaderError: a column does not exist; the message lists the existing ones.
        FormatError: the index contradicts the manifest.
    """
    types, found = column_types(record, mirror=mirror), dict[str, Column]()
    for name in names:
        if name not in types:
            raise unknown_column(name, types, record, context=f"{store.url}, split {split!r}")
    if not names:
        return found
    with _Parquet(store, split, record) as parquet:
        for name in names:
            kind = types[name]
            key = [parquet.sha256(), name, kind.to_json(), record.num_samples]
            stem = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
            path = folder / "index" / (stem + (".npy" if kind.is_array else ".arrow"))

            def write(file: BinaryIO, name: str = name, kind: ColumnType = kind) -> None:
                with parquet.reading() as index:
                    write_column(index, name, kind, num_rows=record.num_samples, file=file)

            checksummed_file(
                path,
                write,
                what=f"column {name!r} of the index of {store.url}",
                max_bytes=max_column_bytes(kind, record.num_samples),
            )
            found[name] = ArrayColumn(path, name) if kind.is_array else ListColumn(path, name, kind)
    return found


def read_table(store: Store, *, split: str, record: SplitRecord) -> Any:
    """Read the index of a split as an Arrow table, after comparing its checksum with the manifest."""
    import pyarrow as pa

    with _Parquet(store, split, record) as parquet, parquet.reading() as file, open_parquet(file) as opened:
        parts = [text_of_batch(batch) for batch in batches(opened, num_rows=1024)]
        schema = pa.schema([field.with_type(plain_type(field.type)) for field in opened.schema_arrow])
        return pa.Table.from_batches([batch.cast(schema) for batch in parts], schema=schema)


class _Parquet:
    """Index file of the data set; downloaded when first needed, and compared with the checksum in the manifest."""

    def __init__(self, store: Store, split: str, record: SplitRecord) -> None:
        self.store, self.record, self.name = store, record, record.index_name(split)
        self.location = store.location(self.name)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._path: Path | None = None

    def __enter__(self) -> "_Parquet":
        return self

    def __exit__(self, *_: object) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()

    def sha256(self) -> str:
        """Return the SHA-256 of a local file, or that in the manifest for a remote one."""
        if self.store.local_path is None and self.record.index_sha256 is not None:
            return self.record.index_sha256
        with self._opened() as file:
            return self._checked(file)

    def rows(self, spec: CodecSpec) -> Iterator[Rows]:
        """Yield the checked rows of the index in chunks of `INDEX_ROW`."""
        with self.reading() as file:
            yield from _chunks(file, self.record, spec)

    @contextmanager
    def reading(self) -> Iterator[BufferedReader]:
        """Context: provide the checked file; errors of reading it become errors that name the file."""
        with self._opened() as file:
            self._checked(file)
            file.seek(0)
            try:
                yield file
            except WallocDataError as error:
                raise type(error)(f"{self.location}: {error}") from error
            except Exception as error:  # pyarrow raises many kinds on damaged files
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise  # an error of writing the cache
                raise FormatError(f"{self.location}: not a readable index ({type(error).__name__}: {error})") from error

    def _checked(self, file: BufferedReader) -> str:
        expected, found = self.record.index_sha256, hashlib.file_digest(file, "sha256").hexdigest()
        if expected is not None and found != expected:
            raise FormatError(
                f"{self.location}: its sha256 is {found}, but the manifest says {expected}: it was damaged or changed. "
                "Copy it again, or run `walloc-data finish` where the data set was encoded; if the change is intended, "
                "set index_sha256 in the manifest to the new value"
            )
        return found

    @contextmanager
    def _opened(self) -> Iterator[BufferedReader]:
        """Context: open a local copy of the file; system errors become a WallocDataError."""
        row = _MAX_PARQUET_BYTES_PER_ROW + len(self.record.columns or ()) * _MAX_PARQUET_BYTES_PER_COLUMN
        limit = 2**20 + row * self.record.num_samples
        try:
            if self._path is None:
                if self.store.local_path is not None:
                    self._path = self.store.local_path / self.name
                else:
                    self._scratch = tempfile.TemporaryDirectory()
                    self._path = Path(self._scratch.name) / "index.parquet"
                    for _ in range(_DOWNLOADS_OF_A_DAMAGED_INDEX):
                        self.store.download(self.name, self._path, max_bytes=limit)
                        with open_regular(self._path) as file:
                            found = hashlib.file_digest(file, "sha256").hexdigest()
                        if self.record.index_sha256 in (None, found):
                            break  # otherwise the download may be damaged: try again
            file = open_regular(self._path)
        except OSError as error:
            if isinstance(error, WallocDataError):
                raise
            if isinstance(error, FileNotFoundError):
                raise StorageError(
                    f"{self.location}: no such file, but the manifest lists this split: copy the data set again"
                ) from error
            raise StorageError(f"{self.location}: cannot be read ({error.strerror or error})") from error
        with file:
            if (num_bytes := os.fstat(file.fileno()).st_size) > limit:
                raise FormatError(
                    f"{self.location}: {num_bytes} bytes are not plausible for {self.record.num_samples} samples"
                )
            yield file


def _chunks(file: BufferedReader, record: SplitRecord, spec: CodecSpec) -> Iterator[Rows]:
    import pyarrow as pa

    num_bytes = os.fstat(file.fileno()).st_size
    ours = (*_NUMBERS, *(name for name, _, _ in MIRROR_INDEX_COLUMNS), *OPTIONAL_INDEX_COLUMNS)
    with open_parquet(file, columns=ours) as parquet:
        if parquet.metadata.num_rows != record.num_samples:
            raise FormatError(f"{parquet.metadata.num_rows} rows; the manifest says {record.num_samples}")
        if record.num_samples > _MAX_ROWS_PER_PARQUET_BYTE * num_bytes:
            raise FormatError(f"{record.num_samples} rows in {num_bytes} bytes are not plausible")
        present = {field.name: field.type for field in parquet.schema_arrow}
        mirrors = [column for column, _, _ in MIRROR_INDEX_COLUMNS if column in present]
        if missing := [column for column in _NUMBERS if column not in present]:
            raise FormatError(f"no column {missing[0]!r}")
        # Keys are not needed here.
        wanted = [*_NUMBERS, *mirrors, *sorted(OPTIONAL_INDEX_COLUMNS & (present.keys() - set(mirrors)))]
        for column in wanted:
            if not pa.types.is_integer(present[column]):
                raise FormatError(f"column {column!r} has type {present[column]}, not integers")
        first = 0
        for batch in parquet.iter_batches(batch_size=_CHUNK_ROWS, columns=wanted):
            columns: dict[str, npt.NDArray[np.int64]] = {}
            for column in wanted:
                values = batch.column(column)
                if values.null_count and column != "label" and column not in OPTIONAL_INDEX_COLUMNS:
                    raise FormatError(f"column {column!r} has missing values")
                filled = values.fill_null(-1 if column == "label" else 0) if values.null_count else values
                columns[column] = filled.to_numpy(zero_copy_only=False).astype(np.int64)
            if first + len(batch) > record.num_samples:
                break
            yield _check(columns, record, spec, first=first)
            first += len(batch)
        if first != record.num_samples:
            raise FormatError(f"the number of its rows is not {record.num_samples}, as its metadata says")


def _check(columns: dict[str, npt.NDArray[np.int64]], record: SplitRecord, spec: CodecSpec, *, first: int) -> Rows:
    """Raise FormatError for rows with an invalid order, offset, size or shape, which readers rely on."""
    ends = np.cumsum(np.array([shard.num_samples for shard in record.shards], dtype=np.int64))
    num_bytes = np.array([shard.num_bytes for shard in record.shards], dtype=np.int64)
    num_rows = len(columns["shard"])
    shard = np.searchsorted(ends, np.arange(first, first + num_rows), side="right")
    if not np.array_equal(columns["shard"], shard):
        raise FormatError("rows are not in the order of the manifest's shards, or their number per shard differs")
    for prefix in ("", "mirror_"):
        if f"{prefix}offset" in columns:
            offset, length = columns[f"{prefix}offset"], columns[f"{prefix}length"]
            # Compared without a sum, which could overflow.
            bad = (
                (offset < 0)
                | (length < 1)
                | (length > np.minimum(num_bytes, 2**31 - 1)[shard])
                | (offset > num_bytes[shard] - length)
            )
            if bad.any():
                raise FormatError(
                    f"row {first + int(bad.argmax())}: its {prefix}offset and length point outside its shard"
                )
    for column in OPTIONAL_INDEX_COLUMNS & set(columns):
        if ((columns[column] < 0) | (columns[column] >= 2**32)).any():
            raise FormatError(f"a value of {column} is not in [0, 2^32)")
    limit = 2**20 * spec.cell_px
    for side in ("height", "width"):
        if ((columns[side] < 1) | (columns[side] > limit)).any():
            raise FormatError(f"a value of {side} is not in [1, {limit}]")
    if (columns["label"] < -1).any() or (record.labelled and (columns["label"] < 0).any()):
        raise FormatError("a label is negative or missing")
    if record.latent_shape is not None:
        sides = [-(-columns[side] // spec.cell_px) for side in ("height", "width")]
        if any((values != expected).any() for values, expected in zip(sides, record.latent_shape[1:], strict=True)):
            raise FormatError(f"a sample does not have the manifest's latent_shape {record.latent_shape}")
    if (columns["source_index"] < 0).any():
        raise FormatError("a source_index is negative")
    rows = np.zeros(num_rows, INDEX_ROW)
    for column in columns:
        if column != "shard":
            rows[column] = columns[column]
    return rows
