"""What verifying, decoding and describing a data set share: its index in batches, its files on this machine."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from walloc_data.convert.state import read_manifest
from walloc_data.errors import FormatError
from walloc_data.format import MANIFEST_NAME, OPTIONAL_INDEX_COLUMNS, Manifest
from walloc_data.storage import Store

__all__ = ["failure_lines", "index_rows", "local_file", "open_manifest"]

MAX_INDEX_BYTES = 2**40
MAX_FAILURE_LINE_BYTES = 2**20


def open_manifest(store: Store) -> Manifest:
    """The manifest, or an error that says how to get one."""
    manifest = read_manifest(store)
    if manifest is None:
        raise FormatError(
            f"{store.url}: no {MANIFEST_NAME}: not a data set of latents, or its conversion has not been finished yet"
        )
    return manifest


@contextmanager
def local_file(store: Store, path: str) -> Iterator[Path]:
    """A file of the data set on this machine: itself, or a copy that is deleted afterwards."""
    if store.local_path is not None:
        store.num_bytes(path)  # its error names the file
        yield store.local_path / path
        return
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as folder:
        target = Path(folder) / "file"
        store.download(path, target)
        yield target


def index_rows(file: Path, *, mirror: bool, where: str) -> Iterator[dict[str, Any]]:
    """Rows of a split's index, in order, in memory that does not grow with it. Optional columns may be absent."""
    import pyarrow as pa
    import pyarrow.parquet

    from walloc_data.convert.worker import index_schema

    schema = index_schema(mirror=mirror)
    try:
        with pa.parquet.ParquetFile(file) as parquet:
            found = parquet.schema_arrow.remove_metadata()
            for absent in OPTIONAL_INDEX_COLUMNS - set(found.names):
                if absent in schema.names:
                    schema = schema.remove(schema.get_field_index(absent))
            if found != schema:
                raise FormatError(f"{where}: its columns are {parquet.schema_arrow.names}, expected {schema.names}")
            for batch in parquet.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{where}: not a readable index ({error})") from error


def failure_lines(file: Path, *, where: str) -> Iterator[dict[str, Any]]:
    """Parsed lines of a failures file."""
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_FAILURE_LINE_BYTES):
            number += 1
            try:
                value = json.loads(line)
                if not (isinstance(value, dict) and isinstance(value["source_index"], int)):
                    raise ValueError("no source_index")
            except (ValueError, KeyError, RecursionError) as error:
                raise FormatError(f"{where}: line {number} is not a failure ({error})") from error
            yield value
