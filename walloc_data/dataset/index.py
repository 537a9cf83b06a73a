"""A split's index as one memory-mapped table of fixed-width rows, shared by every process of a machine.

The parquet file of the data set is converted once into `index/{key}.npy` of the cache folder, whose key names the
shards and the index's own bytes: another index, of other labels say, is another file. A process then maps it: its
memory does not grow with the number of samples, and its start-up by no more than a checksum of this file.
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
from walloc_data.dataset.columns import ArrayColumn, Column, ListColumn, column_types, unknown_column, write_column
from walloc_data.errors import FormatError, StorageError, WallocDataError
from walloc_data.files import open_regular
from walloc_data.format import MIRROR_INDEX_COLUMNS, OPTIONAL_INDEX_COLUMNS, CodecSpec, ColumnType, SplitRecord
from walloc_data.parquet import batches, open_parquet
from walloc_data.storage import Store
from walloc_data.tables import plain_type, text_of_batch

__all__ = ["INDEX_ROW", "SplitIndex", "check_index", "load_columns", "load_index", "read_table", "split_identity"]

Rows = npt.NDArray[np.void]

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
_MAX_PARQUET_BYTES_PER_ROW = 4096  # without the source's columns; the picture's name among them
_MAX_PARQUET_BYTES_PER_COLUMN = 2**17  # a value of the source has 64 KiB at most, as JSON
_MAX_ROWS_PER_PARQUET_BYTE = 4  # places and sizes of real samples do not compress like this; a bomb's do
_CHUNK_ROWS = 2**16
_DOWNLOADS_OF_A_DAMAGED_INDEX = 3


def split_identity(spec: CodecSpec, record: SplitRecord) -> str:
    """Return 32 hex digits that identify these latents in this order; two splits share them only if their shards
    agree.
    """
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
    """Load the index of a split from the cache folder; it is converted and checked first where needed.

    A local index is compared with the manifest's checksum each time, a remote one when it is fetched. A table in the
    cache that is damaged is made anew.

    Raises:
        FormatError: the index contradicts the manifest, or points outside its shards.
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

        checksummed_file(path, write, what=f"the index of {store.url}")
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
    """Load columns of a split's index from the cache folder; converted first where needed.

    Raises:
        LoaderError: there is no such column; lists those there are.
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

            checksummed_file(path, write, what=f"column {name!r} of the index of {store.url}")
            found[name] = ArrayColumn(path, name) if kind.is_array else ListColumn(path, name, kind)
    return found


def read_table(store: Store, *, split: str, record: SplitRecord) -> Any:
    """Read a split's whole index as an Arrow table, checked against the manifest's checksum."""
    import pyarrow as pa

    with _Parquet(store, split, record) as parquet, parquet.reading() as file, open_parquet(file) as opened:
        parts = [text_of_batch(batch) for batch in batches(opened, num_rows=1024)]
        schema = pa.schema([field.with_type(plain_type(field.type)) for field in opened.schema_arrow])
        return pa.Table.from_batches([batch.cast(schema) for batch in parts], schema=schema)


class _Parquet:
    """The index's file in the data set: fetched when first needed, its bytes checked against the manifest."""

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
        """Return the SHA-256 of the local file, or of a remote one what the manifest says."""
        if self.store.local_path is None and self.record.index_sha256 is not None:
            return self.record.index_sha256
        with self._opened() as file:
            return self._checked(file)

    def rows(self, spec: CodecSpec) -> Iterator[Rows]:
        """Yield the index's rows, checked, in chunks of `INDEX_ROW`: (num_samples,) in all."""
        with self.reading() as file:
            yield from _chunks(file, self.record, spec)

    @contextmanager
    def reading(self) -> Iterator[BufferedReader]:
        """Give its file, compared with the checksum; what goes wrong in reading it is an error that names it."""
        with self._opened() as file:
            self._checked(file)
            file.seek(0)
            try:
                yield file
            except WallocDataError as error:
                raise type(error)(f"{self.location}: {error}") from error
            except Exception as error:  # pyarrow raises many kinds on damaged files
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise  # of what is written meanwhile
                raise FormatError(f"{self.location}: not a readable index ({type(error).__name__}: {error})") from error

    def _checked(self, file: BufferedReader) -> str:
        expected, found = self.record.index_sha256, hashlib.file_digest(file, "sha256").hexdigest()
        if expected is not None and found != expected:
            raise FormatError(
                f"{self.location}: its sha256 is {found}, the manifest says {expected}: it was damaged, or changed "
                "after it was written. Copy it again, or let `walloc-data finish` write it again from the conversion's "
                "records; if the change is meant, put its new sha256 into the manifest as index_sha256"
            )
        return found

    @contextmanager
    def _opened(self) -> Iterator[BufferedReader]:
        """Open it on this machine; what goes wrong with its file is an error of ours."""
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
                            break  # else it was damaged on the way, perhaps
            file = open_regular(self._path)
        except OSError as error:
            if isinstance(error, WallocDataError):
                raise
            if isinstance(error, FileNotFoundError):
                raise StorageError(f"{self.location}: no such file; the manifest lists this split") from error
            raise StorageError(f"{self.location}: cannot be read ({error.strerror or error})") from error
        with file:
            if (num_bytes := os.fstat(file.fileno()).st_size) > limit:
                raise FormatError(f"{self.location}: {num_bytes} bytes for {self.record.num_samples} samples; refused")
            yield file


def _chunks(file: BufferedReader, record: SplitRecord, spec: CodecSpec) -> Iterator[Rows]:
    import pyarrow as pa

    num_bytes = os.fstat(file.fileno()).st_size
    ours = (*_NUMBERS, *(name for name, _, _ in MIRROR_INDEX_COLUMNS), *OPTIONAL_INDEX_COLUMNS)
    with open_parquet(file, columns=ours) as parquet:
        if parquet.metadata.num_rows != record.num_samples:
            raise FormatError(f"{parquet.metadata.num_rows} rows; the manifest says {record.num_samples}")
        if record.num_samples > _MAX_ROWS_PER_PARQUET_BYTE * num_bytes:
            raise FormatError(f"{record.num_samples} rows in {num_bytes} bytes; refused")
        present = {field.name: field.type for field in parquet.schema_arrow}
        mirrors = [column for column, _, _ in MIRROR_INDEX_COLUMNS if column in present]
        if missing := [column for column in _NUMBERS if column not in present]:
            raise FormatError(f"no column {missing[0]!r}")
        # No keys: nothing is read or written by their name.
        wanted = [*_NUMBERS, *mirrors, *sorted(OPTIONAL_INDEX_COLUMNS & (present.keys() - set(mirrors)))]
        for column in wanted:
            if not pa.types.is_integer(present[column]):
                raise FormatError(f"column {column!r} is of {present[column]}, not of integers")
        first = 0
        for batch in parquet.iter_batches(batch_size=_CHUNK_ROWS, columns=wanted):
            columns: dict[str, npt.NDArray[np.int64]] = {}
            for column in wanted:
                values = batch.column(column)
                if values.null_count and column != "label" and column not in OPTIONAL_INDEX_COLUMNS:
                    raise FormatError(f"column {column!r} has empty rows")
                filled = values.fill_null(-1 if column == "label" else 0) if values.null_count else values
                columns[column] = filled.to_numpy(zero_copy_only=False).astype(np.int64)
            if first + len(batch) > record.num_samples:
                break
            yield _check(columns, record, spec, first=first)
            first += len(batch)
        if first != record.num_samples:
            raise FormatError(f"other than the {record.num_samples} rows that it says it has")


def _check(columns: dict[str, npt.NDArray[np.int64]], record: SplitRecord, spec: CodecSpec, *, first: int) -> Rows:
    """Refuse whatever a reader would trust later of the rows from `first` on: order, bounds and shapes."""
    ends = np.cumsum(np.array([shard.num_samples for shard in record.shards], dtype=np.int64))
    num_bytes = np.array([shard.num_bytes for shard in record.shards], dtype=np.int64)
    num_rows = len(columns["shard"])
    shard = np.searchsorted(ends, np.arange(first, first + num_rows), side="right")
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
                raise FormatError(
                    f"row {first + int(bad.argmax())}: its {prefix}offset and length point outside its shard"
                )
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
    if (columns["source_index"] < 0).any():
        raise FormatError("a source_index is negative")
    rows = np.zeros(num_rows, INDEX_ROW)
    for column in columns:
        if column != "shard":
            rows[column] = columns[column]
    return rows
