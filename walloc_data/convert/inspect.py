"""Reading of manifests and indices for inspection: `dataset_info` and helpers for verification."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from walloc_data.convert.journal import finished_shards, finished_units, planned_splits, read_manifest, read_plan
from walloc_data.convert.overwrite import replaced_splits, replacement
from walloc_data.convert.plan import Plan
from walloc_data.convert.progress import counted, format_bytes
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import FormatError
from walloc_data.files import open_regular
from walloc_data.format import MANIFEST_NAME, OPTIONAL_INDEX_COLUMNS, ColumnType, Manifest
from walloc_data.format.checks import check_int
from walloc_data.parquet import batches, open_parquet
from walloc_data.storage import DatasetLocation, Store, open_store
from walloc_data.tables import index_schema, plain_type, text_of_batch

__all__ = ["DatasetInfo", "check_rows", "dataset_info", "failure_lines", "index_rows", "local_file", "open_manifest"]

MAX_FAILURE_LINE_BYTES = 2**20
MAX_ROWS_PER_BYTE = 4  # of an index; rows of real samples do not compress better
_MAX_KEY_BYTES = 100
_MAX_SIDE = 2**28  # pixels


def open_manifest(store: Store) -> Manifest:
    """Return the manifest, or raise an error if the data set is unfinished."""
    manifest = read_manifest(store)
    if manifest is None:
        raise FormatError(
            f"{store.url}: no {MANIFEST_NAME}: not a data set of latents, or its conversion is not finished yet"
        )
    return manifest


@contextmanager
def local_file(store: Store, path: str, *, max_bytes: int | None = None) -> Iterator[Path]:
    """Provide a local path of a file of the data set: the file itself, or a copy that is deleted afterwards.

    Args:
        max_bytes: longer files raise an error.
    """
    if store.local_path is not None:
        store.num_bytes(path)  # raises an error that names the file
        yield store.local_path / path
        return
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as folder:
        target = Path(folder) / "file"
        store.download(path, target, max_bytes=max_bytes)
        yield target


def index_rows(
    file: Path, *, mirror: bool, columns: Mapping[str, Any] | None, context: str
) -> Iterator[dict[str, Any]]:
    """Yield batches of rows of a split's index, in order. Optional columns may be absent.

    The columns of the source must match the manifest; they are not returned.
    """
    import pyarrow as pa

    schema = index_schema(mirror=mirror, columns=columns)
    try:
        ours = [name for name in schema.names if name not in (columns or {})]
        with open_parquet(file, columns=ours, context=f"{context}: not a readable index") as parquet:
            found = pa.schema([field.with_type(plain_type(field.type)) for field in parquet.schema_arrow])
            for absent in OPTIONAL_INDEX_COLUMNS - set(found.names):
                if absent in schema.names:
                    schema = schema.remove(schema.get_field_index(absent))
            if found != schema:
                raise FormatError(f"{context}: {_first_difference(found, schema)}")
            if (num_rows := parquet.metadata.num_rows) > MAX_ROWS_PER_BYTE * (num_bytes := file.stat().st_size):
                raise FormatError(f"{context}: {num_rows} rows in {num_bytes} bytes are not plausible for an index")
            ours = [name for name in schema.names if name not in (columns or {})]  # optional ones may be absent
            for batch in batches(parquet, num_rows=4096, columns=ours):
                batch = text_of_batch(batch, context=context)
                check_rows(batch, context=context)
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{context}: not a readable index ({error})") from error


def _first_difference(found: Any, expected: Any) -> str:
    if found.names != expected.names:
        return f"its columns are {found.names}, expected {expected.names}"
    kinds = ((name, found.field(name).type, expected.field(name).type) for name in expected.names)
    return next(
        (f"its column {name!r} holds {kind}, expected {wanted}" for name, kind, wanted in kinds if kind != wanted),
        "its columns differ from those of an index",
    )


def check_rows(batch: Any, *, context: str) -> None:
    """Raise FormatError for missing values, negative offsets, and sides or keys that are too large."""
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
            raise FormatError(f"{context}: column {name!r} has missing values")
        if name == "key" and (longest := pc.max(pc.binary_length(column)).as_py() or 0) > _MAX_KEY_BYTES:
            raise FormatError(f"{context}: a key of {longest} bytes; at most {_MAX_KEY_BYTES} are allowed")
        if name in limits and len(column):
            low, high = limits[name]
            found = pc.min_max(column).as_py()
            if found["min"] < low or found["max"] > high:
                value = found["min"] if found["min"] < low else found["max"]
                raise FormatError(f"{context}: a {name} of {value} is not in [{low}, {high}]")


def failure_lines(file: Path, *, context: str) -> Iterator[dict[str, Any]]:
    """Yield the parsed lines of a failures file."""
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
                        raise ValueError(f"its {name} is not text")
            except (ValueError, KeyError, RecursionError) as error:
                raise FormatError(f"{context}: line {number} is not a failure ({error})") from error
            yield value


@dataclass(frozen=True)
class DatasetInfo:
    """Description of a data set and of unfinished conversions.

    Example:
        >>> from walloc_data.convert import dataset_info, encode_dataset
        >>> summary = encode_dataset("pictures", "latents", size_px=64, samples_per_shard=2, part="1/4")
        >>> info = dataset_info("latents")
        >>> info.manifest is None, info.unfinished  # units of work (here: shards) done and planned
        (True, {'train': (1, 4)})
    """

    url: str
    manifest: Manifest | None
    unfinished: Mapping[str, tuple[int, int | None]]  # split: units of work done, and planned (None: not resumable)
    replacements: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)  # the same for overwriting

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, without the histograms of latent values."""
        value: dict[str, Any] = {"url": self.url, "unfinished": {k: list(v) for k, v in self.unfinished.items()}}
        value["replacements"] = {name: list(numbers) for name, numbers in self.replacements.items()}
        if self.manifest is not None:
            value |= self.manifest.to_dict()
            for name, record in self.manifest.splits.items():
                statistics = record.statistics
                value["splits"][name]["num_bytes"] = record.num_bytes
                value["splits"][name]["statistics"] = {"mean": list(statistics.mean), "std": list(statistics.std)}
        return value

    def __str__(self) -> str:
        lines = [self.url]
        if self.manifest is not None:
            codec, settings = self.manifest.codec, self.manifest.settings
            lines.append(
                f"codec {codec.name}: {codec.latent_dim} channels of {codec.latent_bits} bits at 1/{codec.cell_px} "
                f"size, {codec.dimensionality_reduction:g}x fewer values (encoder {codec.encoder_sha256[:12]})"
            )
            size = settings.resized
            names = self.manifest.class_names
            lines.append(f"pictures at {size}" + (f"; {len(names)} classes" if names else ""))
            for name, record in self.manifest.splits.items():
                shape = "x".join(map(str, record.latent_shape)) if record.latent_shape else "of varying shape"
                labels = "" if record.labelled else "; without labels"
                lines.append(
                    f"{name}: {counted(record.num_samples, 'sample')}, {counted(record.num_failures, 'failure')}, "
                    f"{counted(len(record.shards), 'shard')}, {format_bytes(record.num_bytes)}; latents {shape}{labels}"
                )
                if record.columns:
                    columns = (f"{key} {ColumnType.from_json(kind)}" for key, kind in record.columns.items())
                    lines.append(f"  columns: {', '.join(columns)}")
                notes = record.source.get("notes")
                lines.extend(f"  {note}" for note in (notes if isinstance(notes, list) else ()))
        for name, (done, planned) in sorted(self.unfinished.items()):
            lines.append(f"{name}: unfinished, {_share(done, planned)}")
        for name, (done, planned) in sorted(self.replacements.items()):
            lines.append(f"{name}: being overwritten, {_share(done, planned)}. Until then the old split is used")
        return "\n".join(lines)


def _share(done: int, planned: int | None) -> str:
    if planned is None:
        return "started by an earlier version as a stream, which cannot be resumed: overwrite it (--overwrite)"
    if done == planned:
        return f"all {planned} units of work are done: run walloc-data finish"
    return f"{done} of {planned} units of work are done: run its encode command again to resume"


@renamed_arguments(out="dataset")
def dataset_info(dataset: DatasetLocation, *, storage_options: Mapping[str, Any] | None = None) -> DatasetInfo:
    """Read the manifest of a data set and the state of unfinished conversions, without opening any shard.

    Raises:
        FormatError: the folder has neither a data set nor an unfinished conversion.

    Example:
        >>> from walloc_data.convert import dataset_info
        >>> print(dataset_info("my-latents"))
        my-latents
        codec rgb-16x-v1: 12 channels of 8 bits at 1/8 size, 16x fewer values (encoder ...)
        pictures at 96 x 96 px, the centre square; 2 classes
        train: 8 samples, 0 failures, 2 shards, ... kB; latents 12x12x12
    """
    store = open_store(dataset, storage_options)
    unfinished = {}
    planned = planned_splits(store)
    manifest = read_manifest(store) if planned else open_manifest(store)
    for name in planned:
        if manifest is not None and name in manifest.splits:
            continue
        if (plan := read_plan(store, name)) is not None:
            unfinished[name] = _units_done(store, plan)
    replacements = {}
    for name, kind in replaced_splits(store):
        inside = replacement(store, name, kind=kind)
        if (plan := read_plan(inside, name)) is not None:
            replacements[name] = _units_done(inside, plan)
    return DatasetInfo(store.url, manifest, unfinished, replacements)


def _units_done(store: Store, plan: Plan) -> tuple[int, int | None]:
    done = finished_units(store, plan.split, finished_shards(store, plan.split))
    return len(done), None if plan.is_old_stream else plan.num_units
