"""Completion of a split: join the records of its shards into index, failures, statistics and manifest."""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from walloc_data.card import write_card
from walloc_data.convert.journal import (
    check_siblings,
    done_marks,
    done_name,
    end_name,
    finished_shards,
    finished_units,
    in_order,
    read_manifest,
    read_plan,
    rows_name,
    unit_ends,
    work_folder,
)
from walloc_data.convert.plan import Plan, ShardId
from walloc_data.convert.progress import ConversionSummary, kept_of, notes_of
from walloc_data.convert.rows import join_column_types, join_rows
from walloc_data.errors import ConversionError, FormatError
from walloc_data.format import (
    ChannelStatistics,
    Manifest,
    SplitRecord,
    column_name,
    dump_json,
    index_name,
)
from walloc_data.storage import Store, write_manifest

__all__ = ["clean_leftovers", "clean_partial_files", "join_split", "timm_info"]


def join_split(store: Store, split: str) -> ConversionSummary:
    """Write a split's index and failures, and the manifest with the split in it. The caller holds the lock."""
    clean_leftovers(store, split)  # of workers killed during this run
    plan = read_plan(store, split)
    if plan is None:
        raise ConversionError(f"{store.url}: no conversion of split {split!r} was started there: run encode first")
    shards = finished_shards(store, split)
    missing = sorted(set(range(plan.num_units)) - finished_units(store, split, shards))
    if missing:
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        what = "shards" if plan.num_fragments is None else "units of work"
        raise ConversionError(
            f"{store.url}: {len(missing)} of {plan.num_units} {what} of split {split!r} are missing: {some}. Encode "
            "the missing parts, then finish again"
        )
    manifest = read_manifest(store)
    check_siblings(store, plan, manifest)
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as folder:
        record, summary, wids = _join(store, plan, SourcePositions.of(store, plan), Path(folder))
    _write(store, f"index/{split}.wids.json", dump_json(wids))
    splits = {**(manifest.splits if manifest else {}), split: record}
    known = manifest.class_names if manifest else None
    joined = Manifest(
        codec=plan.codec,
        settings=plan.settings,
        class_names=plan.class_names if plan.class_names is not None else known,
        splits=splits,
        written_by=plan.written_by,
    )
    _write(store, "_info.json", dump_json(timm_info(joined)))
    write_card(store, joined)
    write_manifest(store, joined)
    return summary


def clean_leftovers(store: Store, split: str) -> None:
    """Delete what killed runs left unfinished. The caller holds the lock, so no process is writing it."""
    if store.local_path is None:
        return  # object stores have no partial objects
    clean_partial_files(store, work_folder(split))
    _remove_tree(store.local_path / ".walloc" / "staging", keep=f"{split}-1-of-1")


def clean_partial_files(store: Store, *folders: str) -> None:
    """Delete unfinished files in the folders that readers see, and in others. The caller holds the lock."""
    if store.local_path is None:
        return
    for folder in ("", "data", "index", "failures", "codec", *folders):
        for path in (store.local_path / folder).glob(".*.partial"):
            path.unlink(missing_ok=True)


def _remove_tree(folder: Path, *, keep: str) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name != keep:
                shutil.rmtree(path, ignore_errors=True)


def _write(store: Store, path: str, text: str) -> None:
    store.write_bytes(path, text.encode())


@dataclass(frozen=True)
class SourcePositions:
    """Positions in the source of every unit's pictures, known when all units are done.

    Attributes:
        shards: shards of the split, in order.
        num_items: number of pictures in the source.
        units: for each unit that reads fragments, the offsets of its fragments in the unit and in the source.
    """

    shards: list[ShardId]
    num_items: int
    units: Mapping[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]

    @classmethod
    def of(cls, store: Store, plan: Plan) -> Self:
        """Return the positions of a complete split."""
        if plan.num_fragments is None:
            return cls([ShardId(unit) for unit in range(plan.num_units)], plan.num_items or 0, {})
        ends = unit_ends(store, plan.split)
        items = np.zeros(plan.num_fragments, dtype=np.int64)
        for unit, end in ends.items():
            fragments = plan.fragments(unit)
            if len(end.items) != len(fragments):
                raise FormatError(
                    f"{store.location(end_name(plan.split, unit))}: does not have {len(fragments)} fragments"
                )
            items[fragments] = end.items
        begins = np.concatenate([[0], np.cumsum(items)])
        units = {}
        for unit, end in ends.items():
            in_unit = np.concatenate([[0], np.cumsum(end.items)])[:-1]
            units[unit] = in_unit.astype(np.int64), begins[plan.fragments(unit)]
        shards = [ShardId(unit, number) for unit, end in ends.items() for number in range(end.num_shards)]
        return cls(shards, int(begins[-1]), units)

    def in_source(self, unit: int, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the positions in the source of the indices recorded with a unit's shards."""
        found = np.asarray(indices, dtype=np.int64)
        if unit not in self.units:
            return found
        in_unit, in_source = self.units[unit]
        which = np.searchsorted(in_unit, found, side="right") - 1  # an empty fragment has the offset of the next one
        moved: npt.NDArray[np.int64] = found - in_unit[which] + in_source[which]
        return moved


def _join(
    store: Store, plan: Plan, positions: SourcePositions, folder: Path
) -> tuple[SplitRecord, ConversionSummary, dict[str, Any]]:
    """Read all done marks; needs a few hundred bytes of memory per shard."""
    split = plan.split
    spec = plan.codec
    counts = np.zeros((spec.latent_dim, 2**spec.latent_bits), dtype=np.int64)
    shards, shapes, written, types = [], set(), [], []
    num_failures = num_pixels = source_bytes = webp_bytes = num_items = 0
    first_failures: list[str] = []
    left_out = Counter[str]()
    shardlist = []
    sizes = store.sizes("data")
    with (folder / "failures.jsonl").open("w", encoding="utf-8") as failures:
        for shard, done in zip(positions.shards, done_marks(store, split, positions.shards), strict=True):
            expected = num_items if shard.number is None else shard.number * plan.settings.samples_per_shard
            if done.first != expected:
                raise FormatError(f"{store.location(done_name(split, shard))}: starts at {done.first}, not {expected}")
            num_items += done.last - done.first
            for failure in done.failures:
                [index] = positions.in_source(shard.unit, [failure.source_index]).tolist()
                failures.write(json.dumps(vars(failure) | {"source_index": index}, sort_keys=True) + "\n")
            num_failures += len(done.failures)
            first_failures = [*first_failures, *map(str, done.failures)][:3]
            source_bytes += done.source_bytes
            left_out.update(done.left_out)
            if done.shard is None:
                continue
            if sizes.get(done.shard.name) != done.shard.num_bytes:
                raise ConversionError(
                    f"{store.location(done.shard.name)}: {sizes.get(done.shard.name)} bytes, but its record says "
                    f"{done.shard.num_bytes}: run the encode command again, which repairs it"
                )
            counts += np.asarray(done.statistics.counts, dtype=np.int64)
            shards.append(done.shard)
            written.append(shard)
            types.append(done.columns)
            shapes.add(done.latent_shape)
            num_pixels += done.num_pixels
            webp_bytes += done.webp_bytes
            shardlist.append(
                {
                    "url": f"../{done.shard.name}",
                    "md5sum": done.md5,
                    "nsamples": done.shard.num_samples,
                    "filesize": done.shard.num_bytes,
                }
            )
    if num_items != positions.num_items:
        raise FormatError(
            f"{store.url}: the shards of {split!r} have {num_items} of {positions.num_items} pictures: run the encode "
            "command again with --repair"
        )
    if not num_items:
        raise ConversionError(f"{store.url}: the source of split {split!r} has no pictures: all fragments are empty")
    if not shards:
        some = "\n  ".join(first_failures)
        raise ConversionError(f"{store.url}: none of {num_failures} pictures could be encoded, the first:\n  {some}")
    [shape] = shapes if len(shapes) == 1 else [None]
    columns = join_column_types(types)
    rows = (
        (store.location(rows_name(split, shard)), data, kinds, partial(positions.in_source, shard.unit))
        for shard, data, kinds in zip(written, _rows(store, split, written), types, strict=True)
    )
    labels = join_rows(rows, folder / "index.parquet", mirror=plan.settings.mirror, columns=columns)
    with (folder / "index.parquet").open("rb") as index:
        index_sha256 = hashlib.file_digest(index, "sha256").hexdigest()
    notes = notes_of(plan, left_out, labels=labels)
    record = SplitRecord(
        source={name: value for name, value in plan.source.items() if name not in ("column_types", "column_classes")}
        | {"num_items": num_items, "notes": list(notes)},
        num_samples=sum(shard.num_samples for shard in shards),
        num_failures=num_failures,
        shards=tuple(shards),
        latent_shape=shape if shape is None else (shape[0], shape[1], shape[2]),
        labelled=plan.labelled,
        statistics=ChannelStatistics(tuple(map(tuple, counts.tolist()))),
        index_sha256=index_sha256,
        columns=columns,
        column_classes={
            column_name(name): tuple(names)
            for name, names in plan.column_classes.items()
            if columns is not None and column_name(name) in columns
        },
    )
    store.publish(folder / "index.parquet", index_name(split))
    store.publish(folder / "failures.jsonl", f"failures/{split}.jsonl")
    summary = ConversionSummary(
        url=store.url,
        split=split,
        num_samples=record.num_samples,
        num_failures=num_failures,
        num_shards=len(shards),
        source_bytes=source_bytes,
        shard_bytes=record.num_bytes,
        webp_bytes=webp_bytes,
        num_pixels=num_pixels,
        kept=kept_of(plan),
        notes=notes,
    )
    return record, summary, {"wids_version": 1, "name": split, "shardlist": shardlist}


def _rows(store: Store, split: str, shards: list[ShardId]) -> Iterator[bytes]:
    """Yield the files with the rows of the shards."""
    return in_order(lambda shard: store.read_bytes(rows_name(split, shard), max_bytes=2**31), shards, store=store)


def timm_info(manifest: Manifest) -> dict[str, Any]:
    """Return the file that timm's WebDataset reader expects in the root."""
    return {
        "splits": {
            name: {
                "name": name,
                "num_samples": record.num_samples,
                "filenames": [shard.name for shard in record.shards],
                "shard_lengths": [shard.num_samples for shard in record.shards],
                "alt_label": "",
            }
            for name, record in manifest.splits.items()
        }
    }
