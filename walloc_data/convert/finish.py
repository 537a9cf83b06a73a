"""From done marks to a data set: the index, the failures, the statistics, and last the manifest."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from walloc_data.convert.card import write_card
from walloc_data.convert.lock import conversion_lock, disk_errors
from walloc_data.convert.plan import Plan, differences
from walloc_data.convert.records import ShardDone, done_name, end_name, plan_name, rows_name, work_folder
from walloc_data.convert.summary import ConversionSummary
from walloc_data.errors import ConversionError, FormatError, SettingsMismatchError
from walloc_data.format import (
    MANIFEST_NAME,
    MAX_JSON_BYTES,
    ChannelStatistics,
    CodecSpec,
    EncodeSettings,
    Manifest,
    SplitRecord,
    dump_json,
    index_name,
    load_json,
)
from walloc_data.storage import Store

__all__ = [
    "check_siblings",
    "done_marks",
    "finish_dataset",
    "finished_shards",
    "join_split",
    "read_manifest",
    "read_plan",
]

T = TypeVar("T")
ROWS_PER_GROUP = 2**17  # of the index's parquet file


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
    """
    store = Store(out, storage_options=storage_options)
    with disk_errors(store), conversion_lock(store):
        splits = [split] if split is not None else planned_splits(store)
        if not splits:
            raise ConversionError(f"{store.url}: no conversion was begun there")
        return {name: join_split(store, name) for name in splits}


def planned_splits(store: Store) -> list[str]:
    """Splits whose conversion was begun, finished or not."""
    return [name for name in store.list_folders(".walloc") if store.exists(plan_name(name))]


def check_siblings(store: Store, plan: Plan, manifest: Manifest | None) -> None:
    """All splits of a data set share codec, settings and class names, finished or not.

    Raises:
        SettingsMismatchError: names every field by which this plan differs from another split's.
    """
    others: dict[str, tuple[CodecSpec, EncodeSettings, tuple[str, ...] | None]] = {}
    for name in planned_splits(store):
        if name != plan.split and (other := read_plan(store, name)) is not None:
            others[f"split {name!r}"] = (other.codec, other.settings, other.class_names)
    if manifest is not None and set(manifest.splits) - {plan.split}:
        splits = ", ".join(sorted(set(manifest.splits) - {plan.split}))
        others[f"the manifest (splits {splits})"] = (manifest.codec, manifest.settings, manifest.class_names)
    for what, (codec, settings, class_names) in others.items():
        there = replace(plan, codec=codec, settings=settings)
        if class_names is not None and plan.class_names is not None:
            there = replace(there, class_names=class_names)
        if found := differences(there, plan):
            raise SettingsMismatchError(
                f"{store.url}: {what} and split {plan.split!r} differ:\n  "
                + "\n  ".join(found)
                + "\nAll splits of a data set share codec, settings and class names"
            )


def read_manifest(store: Store) -> Manifest | None:
    """The data set's manifest, or None where there is none yet."""
    if not store.exists(MANIFEST_NAME):
        return None
    return Manifest.from_json(
        store.read_bytes(MANIFEST_NAME, max_bytes=MAX_JSON_BYTES), where=store.where(MANIFEST_NAME)
    )


def read_plan(store: Store, split: str) -> Plan | None:
    """A split's plan, with a stream's length where its end has been seen; None where no conversion was begun."""
    if not store.exists(plan_name(split)):
        return None
    plan = Plan.from_dict(_json(store, plan_name(split)), where=store.where(plan_name(split)))
    if plan.num_items is None and store.exists(end_name(split)):
        value = _json(store, end_name(split)).get("num_items")
        if type(value) is not int or value < 1:
            raise FormatError(f"{store.where(end_name(split))}: num_items must be a positive integer, not {value!r}")
        plan = plan.with_num_items(value)
    return plan


def _json(store: Store, path: str) -> dict[str, Any]:
    return load_json(store.read_bytes(path, max_bytes=MAX_JSON_BYTES), where=store.where(path))


def finished_shards(store: Store, split: str) -> set[int]:
    """Numbers of the shards that need no more work: their done mark is there, and so is the file it speaks of."""
    names = {path.rpartition("/")[2] for path in store.list(work_folder(split))}
    marked = {int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()}
    files = set(store.list("data"))
    for shard in sorted(marked):
        if f"data/{split}-{shard:05d}.tar" not in files:
            [done] = done_marks(store, split, [shard])
            if done.shard is not None:
                marked.discard(shard)
    return marked


def done_marks(store: Store, split: str, shards: list[int]) -> Iterator[ShardDone]:
    """Done marks in the order asked for; a remote store is asked for several at once."""

    def read(shard: int) -> ShardDone:
        path = done_name(split, shard)
        return ShardDone.from_json(store.read_bytes(path, max_bytes=MAX_JSON_BYTES), where=store.where(path))

    yield from _ahead(read, shards, store=store)


def _ahead(read: Any, shards: list[int], *, store: Store) -> Iterator[Any]:
    if store.local_path is not None:
        yield from map(read, shards)
        return
    with ThreadPoolExecutor(16) as threads:
        for start in range(0, len(shards), 256):  # a bound on what waits in memory
            yield from threads.map(read, shards[start : start + 256])


def join_split(store: Store, split: str) -> ConversionSummary:
    """Write a split's index and failures, and the manifest with the split in it. The caller holds the lock."""
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
    _write(store, MANIFEST_NAME, joined.to_json())
    return summary


def _write(store: Store, path: str, text: str) -> None:
    store.write_bytes(path, text.encode())


def _join(store: Store, plan: Plan, folder: Path) -> tuple[SplitRecord, ConversionSummary, dict[str, Any]]:
    """One pass over the done marks, in memory that grows by a few hundred bytes a shard."""
    split, num_shards = plan.split, plan.num_shards or 0
    spec = plan.codec
    counts = np.zeros((spec.latent_dim, 2**spec.latent_bits), dtype=np.int64)
    shards, shapes, numbers = [], set(), []
    num_failures = num_pixels = source_bytes = webp_bytes = expected = 0
    shardlist = []
    with (folder / "failures.jsonl").open("w", encoding="utf-8") as failures:
        for number, done in enumerate(done_marks(store, split, list(range(num_shards)))):
            if done.first != expected:
                raise FormatError(f"{store.where(done_name(split, number))}: begins at {done.first}, not {expected}")
            expected = done.last
            for failure in done.failures:
                failures.write(json.dumps(vars(failure), sort_keys=True) + "\n")
            num_failures += len(done.failures)
            source_bytes += done.source_bytes
            if done.shard is None:
                continue
            counts += np.asarray(done.statistics.counts, dtype=np.int64)
            shards.append(done.shard)
            numbers.append(number)
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
    [shape] = shapes if len(shapes) == 1 else [None]
    record = SplitRecord(
        source=plan.source,
        num_samples=sum(shard.num_samples for shard in shards),
        num_failures=num_failures,
        shards=tuple(shards),
        latent_shape=shape if shape is None else (shape[0], shape[1], shape[2]),
        labelled=plan.labelled,
        statistics=ChannelStatistics(tuple(map(tuple, counts.tolist()))),
    )
    _join_rows(store, plan, numbers, folder / "index.parquet")
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
    )
    return record, summary, {"wids_version": 1, "name": split, "shardlist": shardlist}


def _join_rows(store: Store, plan: Plan, numbers: list[int], target: Path) -> None:
    """Concatenate the shards' rows; `shard` becomes the position in the manifest's list of shards."""
    import pyarrow as pa
    import pyarrow.parquet

    from walloc_data.convert.worker import index_schema

    schema = index_schema(mirror=plan.settings.mirror)

    def read(number: int) -> Any:
        path = rows_name(plan.split, number)
        data = store.read_bytes(path, max_bytes=2**31)
        try:
            return pa.parquet.read_table(pa.BufferReader(data)).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise FormatError(f"{store.where(path)}: not the rows of an index ({error})") from error

    with pa.parquet.ParquetWriter(target, schema) as writer:
        waiting: list[Any] = []
        for position, table in enumerate(_ahead(read, numbers, store=store)):
            column = pa.array(np.full(len(table), position, dtype=np.int32))
            waiting.append(table.set_column(schema.get_field_index("shard"), "shard", column))
            if sum(map(len, waiting)) >= ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())


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
