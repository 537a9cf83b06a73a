"""Detection of finished shards whose pictures have changed or whose files are damaged.

The identity of a source is a hash of names and lengths, which does not change when a picture is replaced by one of the
same length. So the rows of every shard record a version of each picture (the modification time or an ETag) and the
CRC-32 of its bytes. If the versions differ, the CRC-32 decides, so a copy with new dates is the same source. For
sources that are read in fragments, the end marks of units record versions of fragments, and only changed fragments are
read again. Rows written by earlier versions record neither, and are not compared.
"""

import hashlib
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from walloc_data.convert.inspect import local_file
from walloc_data.convert.journal import (
    ShardDone,
    UnitEnd,
    done_marks,
    finished_shards,
    finished_units,
    in_order,
    planned_splits,
    read_manifest,
    read_plan,
    rows_name,
    unit_ends,
)
from walloc_data.convert.plan import Plan, ShardId
from walloc_data.convert.progress import ProgressMeter
from walloc_data.convert.rows import SOURCE_CRC32, SOURCE_VERSION
from walloc_data.convert.units import UnitReader
from walloc_data.errors import FormatError, SettingsMismatchError, StorageError
from walloc_data.format import MANIFEST_NAME
from walloc_data.parquet import open_parquet
from walloc_data.sources import Sample, Source
from walloc_data.storage import Store
from walloc_data.tables import read_parquet

__all__ = [
    "changed_samples",
    "check_source",
    "compare_source",
    "damaged_shards",
    "drop_broken_manifest",
    "join_complete_splits",
    "refuse_changes",
    "rows_of_source",
    "shards_with_failures",
]

MAX_NAMED = 5
Recorded = dict[int, tuple[str | None, int]]  # by the index that `Plan.key` uses: version and CRC-32


def rows_of_source(store: Store, split: str, shards: Sequence[ShardId]) -> Iterator[Recorded]:
    """Yield the recorded versions and CRC-32 of each shard's pictures; nothing for shards without records."""
    import pyarrow as pa

    columns = ["source_index", SOURCE_VERSION, SOURCE_CRC32]

    def read(shard: ShardId) -> Recorded:
        path = rows_name(split, shard)
        if not store.exists(path):  # no picture of the shard could be encoded
            return {}
        try:
            with open_parquet(data := store.read_bytes(path, max_bytes=2**31)) as file:
                if not set(columns) <= set(file.schema_arrow.names):
                    return {}
            found = read_parquet(data, columns=columns).to_pydict()
        except (pa.ArrowException, OSError, ValueError):  # damaged: reported when the rows are joined
            return {}
        return dict(zip(found[columns[0]], zip(found[columns[1]], found[columns[2]], strict=True), strict=True))

    yield from in_order(read, shards, store=store)


def check_source(store: Store, plan: Plan, source: Source, *, part: tuple[int, int] = (0, 1)) -> None:
    """Raise an error if pictures of finished shards have changed.

    Args:
        plan: plan of the shards; the source must have the same number of pictures or fragments.
        part: (i, n): check only the units whose number is i modulo n; other parts check theirs.

    Raises:
        SettingsMismatchError: names some of the changed pictures.
    """
    shards = sorted(shard for shard in finished_shards(store, plan.split) if shard.unit % part[1] == part[0])
    changed: list[str] = []
    if plan.num_fragments is not None:
        ends = unit_ends(store, plan.split)
        for unit in sorted(finished_units(store, plan.split, shards) & ends.keys()):
            if _may_differ(plan, source, unit, ends[unit]):
                recorded = _rows_of_unit(store, plan, unit, shards)
                changed.extend(changed_samples(recorded, _samples_of_unit(plan, source, unit)))
    else:
        for recorded in rows_of_source(store, plan.split, shards):
            for index, (version, crc32) in recorded.items():
                if version is None or (now := source.version(index)) is None or now == version:
                    continue
                if changes := _changes(source.read(index), version, crc32):
                    changed.append(changes)
    refuse_changes(store, plan.split, changed)


def _may_differ(plan: Plan, source: Source, unit: int, end: UnitEnd) -> bool:
    now = (source.fragment_version(fragment) for fragment in plan.fragments(unit))
    return any(None not in (before, after) and before != after for before, after in zip(end.versions, now, strict=True))


def _rows_of_unit(store: Store, plan: Plan, unit: int, shards: Iterable[ShardId]) -> Recorded:
    together: Recorded = {}
    for recorded in rows_of_source(store, plan.split, [shard for shard in shards if shard.unit == unit]):
        together |= recorded
    return together


def _samples_of_unit(plan: Plan, source: Source, unit: int) -> Iterator[tuple[int, Sample]]:
    with tempfile.TemporaryDirectory(prefix="walloc_data-") as scratch:
        yield from UnitReader(plan, source, unit, on_error="record", scratch=Path(scratch)).read()


def _changes(sample: Sample, version: str | None, crc32: int) -> str | None:
    if zlib.crc32(sample.data) == crc32:
        return None
    if sample.version is None or sample.version == version:
        return f"{sample.name}: its bytes differ from those encoded"
    return f"{sample.name}: {version} -> {sample.version}"


def changed_samples(recorded: Recorded, samples: Iterable[tuple[int, Sample]]) -> Iterator[str]:
    """Return a line for each sample that has changed."""
    for index, sample in samples:
        if index in recorded and (changes := _changes(sample, *recorded[index])):
            yield changes


def compare_source(store: Store, split: str, source: Source, *, meter: ProgressMeter) -> Iterator[str]:
    """Read all of a source and yield a line for each picture that differs from the encoded one.

    Raises:
        FormatError: the split has no records of its pictures.
    """
    plan = read_plan(store, split)
    if plan is None or plan.is_old_stream:
        raise FormatError(f"{store.url}: split {split!r} is not finished")
    old = enumerate(source.stream()) if plan.num_fragments is None and source.num_items is None else None
    if old is None and (source.num_items, source.num_fragments) != (plan.num_items, plan.num_fragments):
        what = "pictures" if plan.num_fragments is None else "fragments"
        now, before = source.num_items or source.num_fragments, plan.num_items or plan.num_fragments
        yield f"{source.location}: {now} {what}, and {before} when it was encoded"
        return
    ends, per_unit = unit_ends(store, split), dict[int, list[ShardId]]()
    for shard in sorted(finished_shards(store, split)):
        per_unit.setdefault(shard.unit, []).append(shard)
    num_compared = num_done = 0
    for unit in range(plan.num_units):
        recorded, num_before = _rows_of_unit(store, plan, unit, per_unit.get(unit, ())), num_done
        for index, sample in (
            islice(old, len(plan.source_indices(unit))) if old is not None else _samples_of_unit(plan, source, unit)
        ):
            for changes in changed_samples(recorded, [(index, sample)]):
                yield f"{source.location}: {changes}"
            num_done += 1
            meter.tick(num_done=num_done, num_failures=0)
        if unit in ends and num_done - num_before != sum(ends[unit].items):
            names = ", ".join(source.fragment_name(fragment) for fragment in plan.fragments(unit))
            before = sum(ends[unit].items)
            yield f"{source.location}: {names}: {num_done - num_before} pictures, and {before} when it was encoded"
        num_compared += len(recorded)
    if old is not None and (num_done != plan.num_items or next(old, None) is not None):
        yield f"{source.location}: not the {plan.num_items} pictures that it had when it was encoded"
    if num_compared == 0:
        raise FormatError(f"{store.url}: split {split!r} was made by a version that recorded nothing of its source")


def refuse_changes(store: Store, split: str, changed: list[str]) -> None:
    """Raise an error that names the changed pictures, if there are any."""
    if changed:
        more = [f"and {len(changed) - MAX_NAMED} more"] if len(changed) > MAX_NAMED else []
        number = f"{len(changed)} pictures of its source have" if len(changed) > 1 else "a picture of its source has"
        raise SettingsMismatchError(
            f"{store.url}: split {split!r}: {number} changed since it was encoded:\n  "
            + "\n  ".join([*changed[:MAX_NAMED], *more])
            + "\nRestore the pictures that were encoded, or overwrite the split (--overwrite)"
        )


def drop_broken_manifest(store: Store) -> None:
    """Delete a manifest that cannot be read; it is rebuilt from the records of the shards."""
    try:
        read_manifest(store)
    except FormatError:
        store.delete(MANIFEST_NAME)


def join_complete_splits(store: Store) -> None:
    """Add every split that is complete but missing in the manifest."""
    from walloc_data.convert.join import join_split

    manifest = read_manifest(store)
    for split in planned_splits(store):
        plan = read_plan(store, split)
        if (manifest is not None and split in manifest.splits) or plan is None or plan.is_old_stream:
            continue
        if finished_units(store, split, finished_shards(store, split)) >= set(range(plan.num_units)):
            join_split(store, split)


def shards_with_failures(store: Store, split: str) -> set[ShardId]:
    """Return the finished shards with pictures that could not be encoded."""
    shards = sorted(finished_shards(store, split))
    return {shard for shard, done in zip(shards, done_marks(store, split, shards), strict=True) if done.failures}


def damaged_shards(store: Store, split: str, shards: Iterable[ShardId], *, meter: ProgressMeter) -> dict[ShardId, str]:
    """Check every byte of finished shards, and that their records and rows of the index can be read.

    Args:
        shards: shards that have a record.
        meter: receives the number of checked samples.

    Returns:
        The problem of each damaged shard.
    """
    damaged: dict[ShardId, str] = {}
    num_done = 0
    for shard in shards:
        try:
            [done] = done_marks(store, split, [shard])
            num_done += done.num_samples
            if problem := _problem(store, split, shard, done):
                damaged[shard] = problem
        except (FormatError, StorageError) as error:
            damaged[shard] = str(error)
        meter.tick(num_done=num_done, num_failures=0)
    return damaged


def _problem(store: Store, split: str, shard: ShardId, done: ShardDone) -> str | None:
    import pyarrow as pa

    if done.shard is None:
        return None
    with local_file(store, done.shard.name) as file:
        if (num_bytes := file.stat().st_size) != done.shard.num_bytes:
            return f"{store.location(done.shard.name)}: {num_bytes} bytes, but its record says {done.shard.num_bytes}"
        if _sha256(file) != done.shard.sha256:
            return f"{store.location(done.shard.name)}: its SHA-256 differs from its record"
    path = rows_name(split, shard)
    try:
        num_rows = read_parquet(store.read_bytes(path, max_bytes=2**31)).num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"{store.location(path)}: not rows of an index ({error})"
    if num_rows != done.shard.num_samples:
        return f"{store.location(path)}: {num_rows} rows for {done.shard.num_samples} samples"
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
