"""`dataset_info`: what a data set is, in a few lines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from walloc_data.convert.inspect import open_manifest
from walloc_data.convert.overwrite import replaced_splits, replacement
from walloc_data.convert.plan import Plan
from walloc_data.convert.progress import counted, format_bytes
from walloc_data.convert.state import finished_shards, finished_units, planned_splits, read_manifest, read_plan
from walloc_data.format import ColumnType, Manifest
from walloc_data.storage import Store

__all__ = ["DatasetInfo", "dataset_info"]


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set is, and which conversions into it are unfinished.

    Example:
        >>> from walloc_data.convert import dataset_info, encode_dataset
        >>> summary = encode_dataset("pictures", "latents", size_px=64, samples_per_shard=2, part="1/4")
        >>> info = dataset_info("latents")
        >>> info.manifest is None, info.unfinished  # units of work (here: shards) done and planned
        (True, {'train': (1, 4)})
    """

    url: str
    manifest: Manifest | None
    unfinished: Mapping[str, tuple[int, int | None]]  # split: units of work done, and planned (None: cannot go on)
    replacements: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)  # the same, of overwriting

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the counts of every latent value."""
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
            for name, record in sorted(self.manifest.splits.items()):
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
            lines.append(f"{name}: unfinished, {_share(done, planned)}, or finish joins its parts")
        for name, (done, planned) in sorted(self.replacements.items()):
            lines.append(f"{name}: being overwritten, {_share(done, planned)}, and until then the split is what it was")
        return "\n".join(lines)


def _share(done: int, planned: int | None) -> str:
    if planned is None:
        return "begun by an earlier version as a stream, which no version goes on with: overwrite it (--overwrite)"
    return f"{done} of {planned} units of work are done; the encode command that began it goes on"


def dataset_info(out: str | Path, *, storage_options: Mapping[str, Any] | None = None) -> DatasetInfo:
    """Read what a data set says of itself; nothing is checked against its shards.

    Raises:
        FormatError: neither a data set nor an unfinished conversion.

    Example:
        >>> from walloc_data.convert import dataset_info
        >>> print(dataset_info("my-latents"))
        my-latents
        codec rgb-16x-v1: 12 channels of 8 bits at 1/8 size, 16x fewer values (encoder ...)
        pictures at 96 x 96 px, the centre square; 2 classes
        train: 8 samples, 0 failures, 2 shards, ... kB; latents 12x12x12
    """
    store = Store(out, storage_options=storage_options)
    unfinished = {}
    planned = planned_splits(store)
    manifest = read_manifest(store) if planned else open_manifest(store)
    for name in planned:
        if manifest is not None and name in manifest.splits:
            continue
        if (plan := read_plan(store, name)) is not None:
            unfinished[name] = _how_far(store, plan)
    replacements = {}
    for name, kind in replaced_splits(store):
        inside = replacement(store, name, kind=kind)
        if (plan := read_plan(inside, name)) is not None:
            replacements[name] = _how_far(inside, plan)
    return DatasetInfo(store.url, manifest, unfinished, replacements)


def _how_far(store: Store, plan: Plan) -> tuple[int, int | None]:
    done = finished_units(store, plan.split, finished_shards(store, plan.split))
    return len(done), None if plan.is_old_stream else plan.num_units
