"""Which pictures are no longer those that were encoded.

A source's identity is made of names and lengths, so a picture in another's place, of the same name and length, is not
seen in it. Every shard's rows record what its source said of each picture (when the file was written, an ETag) and the
CRC-32 of its bytes: where the one differs, the other decides, so that a copy with new dates is the same source.
Rows written by earlier versions record neither, and are not compared.
"""

import zlib
from collections.abc import Iterable, Iterator
from itertools import islice

from walloc_data.convert.progress import ProgressMeter
from walloc_data.convert.records import rows_name
from walloc_data.convert.rows import SOURCE_CRC32, SOURCE_VERSION
from walloc_data.convert.state import in_order, read_plan
from walloc_data.errors import FormatError, SettingsMismatchError
from walloc_data.sources import Sample, Source
from walloc_data.storage import Store

__all__ = ["changed_samples", "check_source", "compare_source", "refuse_changes", "rows_of_source"]

MAX_NAMED = 5
Recorded = dict[int, tuple[str | None, int]]  # by source index: version and CRC-32


def rows_of_source(store: Store, split: str, shards: Iterable[int]) -> Iterator[Recorded]:
    """Yield what shards recorded of their pictures, shard by shard; nothing for those that recorded nothing."""
    import pyarrow as pa
    import pyarrow.parquet

    columns = ["source_index", SOURCE_VERSION, SOURCE_CRC32]

    def read(number: int) -> Recorded:
        path = rows_name(split, number)
        if not store.exists(path):  # every picture of the shard was broken
            return {}
        try:
            with pa.parquet.ParquetFile(pa.BufferReader(store.read_bytes(path, max_bytes=2**31))) as file:
                if not set(columns) <= set(file.schema_arrow.names):
                    return {}
                found = file.read(columns=columns).to_pydict()
        except (pa.ArrowException, OSError, ValueError):  # damaged: whoever joins the rows says so
            return {}
        return dict(zip(found[columns[0]], zip(found[columns[1]], found[columns[2]], strict=True), strict=True))

    yield from in_order(read, list(shards), store=store)


def check_source(store: Store, split: str, source: Source, shards: Iterable[int]) -> None:
    """Refuse to go on where pictures of finished shards have changed since.

    Raises:
        SettingsMismatchError: names some of them.
    """
    changed: list[str] = []
    for recorded in rows_of_source(store, split, shards):
        for index, (version, crc32) in recorded.items():
            if version is None or (now := source.version(index)) is None or now == version:
                continue
            if changes := _changes(source.read(index), version, crc32):
                changed.append(changes)
    refuse_changes(store, split, changed)


def _changes(sample: Sample, version: str | None, crc32: int) -> str | None:
    if zlib.crc32(sample.data) == crc32:
        return None
    if sample.version is None or sample.version == version:
        return f"{sample.name}: other bytes than those encoded"
    return f"{sample.name}: {version} -> {sample.version}"


def changed_samples(recorded: Recorded, samples: Iterable[tuple[int, Sample]]) -> Iterator[str]:
    """Return what has changed among samples that are at hand."""
    for index, sample in samples:
        if index in recorded and (changes := _changes(sample, *recorded[index])):
            yield changes


def compare_source(store: Store, split: str, source: Source, *, meter: ProgressMeter) -> Iterator[str]:
    """Read a whole source and yield a line for each of its pictures that is not the one that was encoded.

    Raises:
        FormatError: nothing was recorded of the pictures.
    """
    plan = read_plan(store, split)
    if plan is None or plan.num_shards is None:
        raise FormatError(f"{store.url}: split {split!r} is not finished")
    if source.num_items not in (None, plan.num_items):
        yield f"{source.location}: {source.num_items} pictures, and {plan.num_items} when it was encoded"
        return
    stream = enumerate(source.stream()) if source.num_items is None else None
    num_compared = num_done = 0
    for number, recorded in enumerate(rows_of_source(store, split, range(plan.num_shards))):
        samples: Iterable[tuple[int, Sample]]
        if stream is None:
            samples = ((index, source.read(index)) for index in plan.source_indices(number).tolist())
        else:
            samples = islice(stream, plan.settings.samples_per_shard)
        for index, sample in samples:
            for changes in changed_samples(recorded, [(index, sample)]):
                yield f"{source.location}: {changes}"
            num_done += 1
            meter.tick(num_done=num_done, num_failures=0)
        num_compared += len(recorded)
    if stream is not None and (num_done != plan.num_items or next(stream, None) is not None):
        yield f"{source.location}: not the {plan.num_items} pictures that it had when it was encoded"
    if num_compared == 0:
        raise FormatError(f"{store.url}: split {split!r} was made by a version that recorded nothing of its source")


def refuse_changes(store: Store, split: str, changed: list[str]) -> None:
    """Raise an error that names pictures, if there are any."""
    if changed:
        more = [f"and {len(changed) - MAX_NAMED} more"] if len(changed) > MAX_NAMED else []
        number = f"{len(changed)} pictures of its source have" if len(changed) > 1 else "a picture of its source has"
        raise SettingsMismatchError(
            f"{store.url}: split {split!r}: {number} changed since it was encoded:\n  "
            + "\n  ".join([*changed[:MAX_NAMED], *more])
            + "\nPut back what was encoded, or overwrite the split (--overwrite)"
        )
