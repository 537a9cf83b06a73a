"""What verifying, decoding and describing a data set share: its index in batches, its files on this machine."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from walloc_data.convert.state import read_manifest
from walloc_data.errors import FormatError
from walloc_data.files import check_regular, open_regular
from walloc_data.format import MANIFEST_NAME, OPTIONAL_INDEX_COLUMNS, Manifest
from walloc_data.format.checks import check_int
from walloc_data.storage import Store
from walloc_data.tables import index_schema

__all__ = ["failure_lines", "index_rows", "local_file", "open_manifest"]

MAX_INDEX_BYTES = 2**40
MAX_FAILURE_LINE_BYTES = 2**20
MAX_ROWS_PER_BYTE = 4  # of an index: rows of real samples do not compress like this
_MAX_KEY_BYTES = 100
_MAX_SIDE = 2**28  # pixels


def open_manifest(store: Store) -> Manifest:
    """The manifest, or an error that says how to get one."""
    manifest = read_manifest(store)
    if manifest is None:
        raise FormatError(
            f"{store.url}: no {MANIFEST_NAME}: not a data set of latents, or its conversion has not been finished yet"
        )
    return manifest


@contextmanager
def local_file(store: Store, path: str, *, max_bytes: int | None = None) -> Iterator[Path]:
    """A file of the data set on this machine: itself, or a copy that is deleted afterwards.

    Args:
        max_bytes: a longer file is not fetched.
    """
    if store.local_path is not None:
        store.num_bytes(path)  # its error names the file
        yield store.local_path / path
        return
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as folder:
        target = Path(folder) / "file"
        store.download(path, target, max_bytes=max_bytes)
        yield target


def index_rows(file: Path, *, mirror: bool, columns: Mapping[str, Any] | None, where: str) -> Iterator[dict[str, Any]]:
    """Rows of a split's index, in order, in memory that does not grow with it. Optional columns may be absent.

    The columns of the source must be those of the manifest, and are not among the rows.
    """
    import pyarrow as pa
    import pyarrow.parquet

    schema = index_schema(mirror=mirror, columns=columns)
    try:
        check_regular(file)
        with pa.parquet.ParquetFile(file) as parquet:
            found = parquet.schema_arrow.remove_metadata()
            for absent in OPTIONAL_INDEX_COLUMNS - set(found.names):
                if absent in schema.names:
                    schema = schema.remove(schema.get_field_index(absent))
            if found != schema:
                raise FormatError(f"{where}: {_first_difference(found, schema)}")
            if (num_rows := parquet.metadata.num_rows) > MAX_ROWS_PER_BYTE * (num_bytes := file.stat().st_size):
                raise FormatError(f"{where}: {num_rows} rows in {num_bytes} bytes; refused")
            ours = [name for name in schema.names if name not in (columns or {})]
            for batch in parquet.iter_batches(batch_size=4096, columns=ours):
                _check_rows(batch, where=where)
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{where}: not a readable index ({error})") from error


def _first_difference(found: Any, expected: Any) -> str:
    if found.names != expected.names:
        return f"its columns are {found.names}, expected {expected.names}"
    kinds = ((name, found.field(name).type, expected.field(name).type) for name in expected.names)
    return next(
        (f"its column {name!r} holds {kind}, expected {wanted}" for name, kind, wanted in kinds if kind != wanted),
        "its columns are not those of an index",
    )


def _check_rows(batch: Any, *, where: str) -> None:
    """Refuse what no index holds: empty cells, places before the beginning, sides and keys beyond all others."""
    import pyarrow.compute as pc

    limits = {
        "shard": (0, 2**31 - 1),
        "offset": (0, 2**50),
        "length": (1, 2**31 - 1),
        "height": (1, _MAX_SIDE),
        "width": (1, _MAX_SIDE),
        "source_index": (0, 2**62),
        "mirror_offset": (0, 2**50),
        "mirror_length": (1, 2**31 - 1),
    }
    for name in batch.schema.names:
        column = batch.column(name)
        if column.null_count and (name == "key" or name in limits):
            raise FormatError(f"{where}: column {name!r} has empty rows")
        if name == "key" and (longest := pc.max(pc.binary_length(column)).as_py() or 0) > _MAX_KEY_BYTES:
            raise FormatError(f"{where}: a key of {longest} bytes; they end at {_MAX_KEY_BYTES}")
        if name in limits and len(column):
            low, high = limits[name]
            found = pc.min_max(column).as_py()
            if found["min"] < low or found["max"] > high:
                value = found["min"] if found["min"] < low else found["max"]
                raise FormatError(f"{where}: a {name} of {value} is not in [{low}, {high}]")


def failure_lines(file: Path, *, where: str) -> Iterator[dict[str, Any]]:
    """Parsed lines of a failures file."""
    with open_regular(file) as lines:
        number = 0
        while line := lines.readline(MAX_FAILURE_LINE_BYTES):
            number += 1
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("no object")
                check_int("source_index", value["source_index"], low=0)
                for name in ("key", "name", "reason"):
                    if not isinstance(value[name], str):
                        raise ValueError(f"its {name} is no text")
            except (ValueError, KeyError, RecursionError) as error:
                raise FormatError(f"{where}: line {number} is not a failure ({error})") from error
            yield value
