"""A split's index as one memory-mapped table of fixed-width rows, shared by every process of a machine.

The parquet file of the data set is converted once into `index/{identity}.npy` of the cache folder. A process then maps
it: start-up and memory do not grow with the number of samples.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from walloc_data.errors import FormatError, StorageError, WallocDataError
from walloc_data.format import MIRROR_INDEX_COLUMNS, CodecSpec, SplitRecord
from walloc_data.storage import Store, cache_errors, file_lock

__all__ = ["INDEX_ROW", "SplitIndex", "load_index", "split_identity"]

# label is -1 where there is none, mirror_offset and mirror_length are 0 where no mirrored latents are stored.
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
    ]
)
_NUMBERS = ("shard", "offset", "length", "label", "height", "width", "source_index")
_MAX_PARQUET_BYTES_PER_ROW = 512
_MAX_ROWS_PER_PARQUET_BYTE = 4  # places and sizes of real samples do not compress like this; a bomb's do


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
        except ValueError as error:
            raise FormatError(f"{path}: not an index ({error}): remove this file from the cache") from error
        if self.rows.dtype != INDEX_ROW or self.rows.shape != (num_samples,):
            raise FormatError(f"{path}: not an index of {num_samples} samples: remove this file from the cache")

    def __reduce__(self) -> tuple[type["SplitIndex"], tuple[Path, int]]:
        return SplitIndex, (self.path, self.num_samples)


def load_index(store: Store, *, split: str, record: SplitRecord, spec: CodecSpec, folder: Path) -> SplitIndex:
    """The index of a split, from the cache folder; converted and checked first where needed.

    Raises:
        FormatError: the index contradicts the manifest, or points outside its shards.
    """
    path = folder / "index" / f"{split_identity(spec, record)}.npy"
    if not path.exists():  # what is there is whole, and may belong to another user: it is read without a lock
        with cache_errors(folder, what=f"the index of {store.url}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(path.with_suffix(".lock")):
                if not path.exists():
                    rows = _convert(store, split, record, spec)
                    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                        partial = Path(scratch) / path.name
                        np.save(partial, rows, allow_pickle=False)
                        partial.replace(path)
    return SplitIndex(path, record.num_samples)


def _convert(store: Store, split: str, record: SplitRecord, spec: CodecSpec) -> npt.NDArray[np.void]:
    name = record.index_name(split)
    where = store.where(name)
    with tempfile.TemporaryDirectory() as scratch:
        if store.local_path is not None:
            path = store.local_path / name
        else:
            limit = 2**20 + _MAX_PARQUET_BYTES_PER_ROW * record.num_samples
            if (num_bytes := store.num_bytes(name)) > limit:
                raise FormatError(f"{where}: {num_bytes} bytes for {record.num_samples} samples; refused")
            path = Path(scratch) / "index.parquet"
            store.download(name, path)
        try:
            return _check(_read(path, record), record, spec)
        except WallocDataError as error:
            raise type(error)(f"{where}: {error}") from error
        except FileNotFoundError as error:
            raise StorageError(f"{where}: no such file; the manifest lists this split") from error
        except Exception as error:  # pyarrow raises many kinds on damaged files
            raise FormatError(f"{where}: not a readable index ({type(error).__name__}: {error})") from error


def _read(path: Path, record: SplitRecord) -> dict[str, npt.NDArray[np.int64]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows != record.num_samples:
            raise FormatError(f"{file.metadata.num_rows} rows; the manifest says {record.num_samples}")
        if record.num_samples > _MAX_ROWS_PER_PARQUET_BYTE * path.stat().st_size:
            raise FormatError(f"{record.num_samples} rows in {path.stat().st_size} bytes; refused")
        present = set(file.schema_arrow.names)
        mirrors = tuple(column for column, _, _ in MIRROR_INDEX_COLUMNS if column in present)
        if missing := [column for column in _NUMBERS if column not in present]:
            raise FormatError(f"no column {missing[0]!r}")
        table = file.read(columns=[*_NUMBERS, *mirrors])  # no keys: nothing is read or written by their name
    columns: dict[str, Any] = {}
    for column in (*_NUMBERS, *mirrors):
        values = table[column]
        if values.null_count and column != "label":
            raise FormatError(f"column {column!r} has empty rows")
        filled = values.fill_null(-1) if values.null_count else values
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
