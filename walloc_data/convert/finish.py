"""From done marks to a data set: the index, the failures, the statistics, and last the manifest."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from walloc_data.card import write_card
from walloc_data.convert.lock import conversion_lock, disk_errors
from walloc_data.convert.overwrite import clean_leftovers
from walloc_data.convert.plan import Plan
from walloc_data.convert.records import done_name, rows_name
from walloc_data.convert.rows import join_column_types, join_rows
from walloc_data.convert.state import (
    check_siblings,
    done_marks,
    finished_shards,
    in_order,
    planned_splits,
    read_manifest,
    read_plan,
)
from walloc_data.convert.summary import ConversionSummary, kept_of, notes_of
from walloc_data.errors import ConversionError, FormatError
from walloc_data.format import (
    ChannelStatistics,
    Manifest,
    SplitRecord,
    dump_json,
    index_name,
)
from walloc_data.storage import Store, write_manifest

__all__ = ["finish_dataset", "join_split", "timm_info"]


def finish_dataset(
    out: str, *, split: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> dict[str, ConversionSummary]:
    """Join the shards that parts have made into the manifest.

    Args:
        out: the data set.
        split: one split; None joins every split that has a plan.

    Returns:
        A summary for each split that was joined.

    Raises:
        ConversionError: shards are missing; it names them, and nothing is written.
        BusyError: a conversion is still writing there.

    Example:
        >>> from walloc_data.convert import encode_dataset, finish_dataset
        >>> for part in ("1/2", "2/2"):  # on two machines, perhaps
        ...     summary = encode_dataset("pictures", "latents", size_px=64, samples_per_shard=4, part=part)
        >>> finish_dataset("latents")["train"].num_samples
        8
    """
    from walloc_data.convert.overwrite import settle

    store = Store(out, storage_options=storage_options)
    with disk_errors(store), conversion_lock(store):
        settle(store)
        splits = [split] if split is not None else planned_splits(store)
        if not splits:
            raise ConversionError(f"{store.url}: no conversion was begun there")
        return {name: join_split(store, name) for name in splits}


def join_split(store: Store, split: str) -> ConversionSummary:
    """Write a split's index and failures, and the manifest with the split in it. The caller holds the lock."""
    clean_leftovers(store, split)  # workers may have been killed during this very run
    plan = read_plan(store, split)
    if plan is None:
        raise ConversionError(f"{store.url}: no conversion of split {split!r} was begun there")
    if plan.num_shards is None:
        raise ConversionError(f"{store.url}: split {split!r}: the end of the stream has not been reached yet")
    missing = sorted(set(range(plan.num_shards)) - finished_shards(store, split))
    if missing:
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise ConversionError(
            f"{store.url}: {len(missing)} of {plan.num_shards} shards of split {split!r} are missing: {some}. Run the "
            "parts that make them, then finish again"
        )
    manifest = read_manifest(store)
    check_siblings(store, plan, manifest)
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as folder:
        record, summary, wids = _join(store, plan, Path(folder))
    _write(store, f"index/{split}.wids.json", dump_json(wids))
    splits = {**(manifest.splits if manifest else {}), split: record}
    known = manifest.class_names if manifest else None
    joined = Manifest(
        codec=plan.codec,
        settings=plan.settings,
        class_names=plan.class_names if plan.class_names is not None else known,
        splits=dict(sorted(splits.items())),
        written_by=plan.written_by,
    )
    _write(store, "_info.json", dump_json(timm_info(joined)))
    write_card(store, joined)
    write_manifest(store, joined)
    return summary


def _write(store: Store, path: str, text: str) -> None:
    store.write_bytes(path, text.encode())


def _join(store: Store, plan: Plan, folder: Path) -> tuple[SplitRecord, ConversionSummary, dict[str, Any]]:
    """One pass over the done marks, in memory that grows by a few hundred bytes a shard."""
    split, num_shards = plan.split, plan.num_shards or 0
    spec = plan.codec
    counts = np.zeros((spec.latent_dim, 2**spec.latent_bits), dtype=np.int64)
    shards, shapes, numbers, types = [], set(), [], []
    num_failures = num_pixels = source_bytes = webp_bytes = expected = 0
    first_failures: list[str] = []
    left_out = Counter[str]()
    shardlist = []
    sizes = store.sizes("data")
    with (folder / "failures.jsonl").open("w", encoding="utf-8") as failures:
        for number, done in enumerate(done_marks(store, split, list(range(num_shards)))):
            if done.first != expected:
                raise FormatError(f"{store.where(done_name(split, number))}: begins at {done.first}, not {expected}")
            expected = done.last
            for failure in done.failures:
                failures.write(json.dumps(vars(failure), sort_keys=True) + "\n")
            num_failures += len(done.failures)
            first_failures = [*first_failures, *map(str, done.failures)][:3]
            source_bytes += done.source_bytes
            left_out.update(done.left_out)
            if done.shard is None:
                continue
            if sizes.get(done.shard.name) != done.shard.num_bytes:
                raise ConversionError(
                    f"{store.where(done.shard.name)}: {sizes.get(done.shard.name)} bytes, but its record says "
                    f"{done.shard.num_bytes}: the encode command that made it makes it anew"
                )
            counts += np.asarray(done.statistics.counts, dtype=np.int64)
            shards.append(done.shard)
            numbers.append(number)
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
    if expected != plan.num_items:
        raise FormatError(f"{store.url}: the shards of {split!r} end at {expected} of {plan.num_items} pictures")
    if not shards:
        some = "\n  ".join(first_failures)
        raise ConversionError(f"{store.url}: none of {num_failures} pictures could be encoded, the first:\n  {some}")
    [shape] = shapes if len(shapes) == 1 else [None]
    columns = join_column_types(types)
    names = [store.where(rows_name(split, number)) for number in numbers]
    rows = zip(names, _rows(store, split, numbers), types, strict=True)
    labels = join_rows(rows, folder / "index.parquet", mirror=plan.settings.mirror, columns=columns)
    with (folder / "index.parquet").open("rb") as index:
        index_sha256 = hashlib.file_digest(index, "sha256").hexdigest()
    notes = notes_of(plan, left_out, labels=labels)
    record = SplitRecord(
        source={name: value for name, value in plan.source.items() if name != "column_types"} | {"notes": list(notes)},
        num_samples=sum(shard.num_samples for shard in shards),
        num_failures=num_failures,
        shards=tuple(shards),
        latent_shape=shape if shape is None else (shape[0], shape[1], shape[2]),
        labelled=plan.labelled,
        statistics=ChannelStatistics(tuple(map(tuple, counts.tolist()))),
        index_sha256=index_sha256,
        columns=columns,
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


def _rows(store: Store, split: str, numbers: list[int]) -> Iterator[bytes]:
    """The files of the shards' rows."""
    return in_order(lambda number: store.read_bytes(rows_name(split, number), max_bytes=2**31), numbers, store=store)


def timm_info(manifest: Manifest) -> dict[str, Any]:
    """What timm's WebDataset reader looks for in the root."""
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
