"""The journal of a split: its plan and the records of finished shards, from which a conversion resumes.

.walloc/{split}/plan.json         the plan
.walloc/{split}/00000.parquet     the shard's rows of the index
.walloc/{split}/00000.json        ShardDone: written last, so it means that the other files are complete

Where the source is read in fragments, a unit of work has several shards, 00000-000, 00000-001 and so on, and

.walloc/{split}/00000-end.json    UnitEnd: written when all its shards are done

In the records of such a shard, positions and source indices are relative to the first picture of the unit, because the
number of pictures before it is known only when all units are done. This module checks what it reads and writes nothing.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, TypeVar

from walloc_data import storage
from walloc_data.convert.plan import Plan, ShardId, differences
from walloc_data.errors import FormatError, SettingsMismatchError
from walloc_data.format import (
    MANIFEST_NAME,
    MAX_JSON_BYTES,
    ChannelStatistics,
    CodecSpec,
    EncodeSettings,
    Manifest,
    ShardRecord,
    check_columns,
    dump_json,
    load_json,
    shard_name,
)
from walloc_data.storage import DaemonThreads, Store

__all__ = [
    "Failure",
    "ShardDone",
    "UnitEnd",
    "check_siblings",
    "done_marks",
    "done_name",
    "end_name",
    "finished_shards",
    "finished_units",
    "in_order",
    "limit_is_fixed",
    "old_end_name",
    "plan_name",
    "planned_splits",
    "read_manifest",
    "read_plan",
    "rows_name",
    "unit_ends",
    "work_folder",
]


def work_folder(split: str) -> str:
    """Return the folder of a split's plan and done marks."""
    return f".walloc/{split}"


def plan_name(split: str) -> str:
    """Return the plan's path inside the data set."""
    return f"{work_folder(split)}/plan.json"


def old_end_name(split: str) -> str:
    """Return the path at which earlier versions wrote the length of a stream."""
    return f"{work_folder(split)}/end.json"


def end_name(split: str, unit: int) -> str:
    """Return the path of a unit's end mark inside the data set."""
    return f"{work_folder(split)}/{unit:05d}-end.json"


def done_name(split: str, shard: ShardId) -> str:
    """Return a done mark's path inside the data set."""
    return f"{work_folder(split)}/{shard}.json"


def rows_name(split: str, shard: ShardId) -> str:
    """Return the path of a shard's index rows inside the data set."""
    return f"{work_folder(split)}/{shard}.parquet"


@dataclass(frozen=True)
class UnitEnd:
    """End mark of a unit of a source that is read in fragments."""

    num_shards: int
    items: tuple[int, ...]  # number of pictures of each fragment, in the unit's order
    versions: tuple[str | None, ...]  # version of each fragment, such as an ETag

    def to_json(self) -> bytes:
        """Return the bytes of the end mark."""
        return dump_json(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes, *, context: str) -> Self:
        """Parse and check; `context` begins error messages."""
        value = load_json(data, context=context)
        num_shards, items, versions = (value.get(name) for name in ("num_shards", "items", "versions"))
        if not (
            type(num_shards) is int
            and 0 <= num_shards < 2**31
            and isinstance(items, list)
            and isinstance(versions, list)
            and len(items) == len(versions) > 0
            and all(type(number) is int and 0 <= number < 2**53 for number in items)
            and all(version is None or isinstance(version, str) for version in versions)
        ):
            raise FormatError(f"{context}: not the end mark of a unit")
        return cls(num_shards, tuple(items), tuple(versions))


@dataclass(frozen=True)
class Failure:
    """Picture that could not be encoded; a line of ``failures/{split}.jsonl``."""

    key: str
    name: str  # in the source
    source_index: int  # in the records of a shard: the index that `Plan.key` uses
    reason: str

    def __str__(self) -> str:
        return f"{self.name} (source index {self.source_index}): {self.reason}"


@dataclass(frozen=True)
class ShardDone:
    """Done mark of a shard."""

    shard: ShardRecord | None  # None: no picture of its range could be encoded, so there is no file
    md5: str | None
    first: int  # positions [first, last) in the order of the plan; in the unit if the source is read in fragments
    last: int
    failures: tuple[Failure, ...]
    latent_shape: tuple[int, ...] | None  # None where shapes vary
    statistics: ChannelStatistics
    num_pixels: int  # encoded, before padding
    source_bytes: int  # of all picture files, including broken ones
    webp_bytes: int  # of packed latents, mirrored ones not counted
    left_out: Mapping[str, int] = field(default_factory=dict)  # lost parts of pictures: number of pictures of each
    largest_picture: int | None = None  # pixels of the largest encoded picture, before resizing; None: unknown
    columns: Mapping[str, Any] | None = None  # name to type of the source's columns in the rows; None: version 1

    @property
    def num_samples(self) -> int:
        """Number of encoded pictures."""
        return self.shard.num_samples if self.shard else 0

    def to_json(self) -> bytes:
        """Return the bytes of the done mark."""
        return dump_json(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes, *, context: str) -> Self:
        """Parse and check; `context` begins error messages."""
        value: dict[str, Any] = load_json(data, context=context)
        try:
            shard = value["shard"]
            value["shard"] = None if shard is None else ShardRecord.from_dict(shard, context=context)
            value["statistics"] = ChannelStatistics.from_dict(value["statistics"], context=context)
            value["failures"] = tuple(_failure(item) for item in value["failures"])
            shape = value["latent_shape"]
            value["latent_shape"] = None if shape is None else tuple(int(side) for side in shape)
            value["left_out"] = {str(name): int(number) for name, number in value.get("left_out", {}).items()}
            done = cls(**value)
            if done.columns is not None:
                check_columns(done.columns)
            names = ["first", "last", "num_pixels", "source_bytes", "webp_bytes"]
            for name in names + (["largest_picture"] if done.largest_picture is not None else []):
                if type(getattr(done, name)) is not int or getattr(done, name) < 0:
                    raise FormatError(f"{context}: {name} must be a non-negative integer")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{context}: not a done mark ({error!r})") from error
        if done.num_samples + len(done.failures) != done.last - done.first:
            raise FormatError(
                f"{context}: {done.num_samples} samples and {len(done.failures)} failures are not the "
                f"{done.last - done.first} pictures of [{done.first}, {done.last})"
            )
        return done


def _failure(value: Mapping[str, Any]) -> Failure:
    return Failure(str(value["key"]), str(value["name"]), int(value["source_index"]), str(value["reason"]))


T = TypeVar("T")
Key = TypeVar("Key")
_TOO_LARGE = re.compile(r"\d+ x \d+ pixels; at most \d+ are read")  # reason of failures by `decode_picture`
_DONE = re.compile(r"([0-9]{5,12})(?:-([0-9]{3,12}))?\.json")
_END = re.compile(r"([0-9]{5,12})-end\.json")


def planned_splits(store: Store) -> list[str]:
    """Return the splits that have a plan, finished or not."""
    return [name for name in store.list_folders(".walloc") if store.exists(plan_name(name))]


def check_siblings(store: Store, plan: Plan, manifest: Manifest | None) -> None:
    """Check that a plan has the codec, settings and class names of the other splits, finished or not.

    Raises:
        SettingsMismatchError: names every field that differs.
    """
    others: list[tuple[str, list[str], CodecSpec, EncodeSettings, tuple[str, ...] | None]] = []
    for name in planned_splits(store):
        if name != plan.split and (other := read_plan(store, name)) is not None:
            others.append((f"split {name!r}", [name], other.codec, other.settings, other.class_names))
    if manifest is not None and (splits := sorted(set(manifest.splits) - {plan.split})):
        what = f"the manifest (splits {', '.join(splits)})"
        others.append((what, splits, manifest.codec, manifest.settings, manifest.class_names))
    for what, splits, codec, settings, class_names in others:
        reasons = [limit_is_fixed(store, name, settings, plan.settings) for name in splits]
        if not any(reasons):
            settings = replace(settings, max_pixels=plan.settings.max_pixels)
        there = replace(plan, codec=codec, settings=settings)
        if class_names is not None and plan.class_names is not None:
            there = replace(there, class_names=class_names)
        if found := differences(there, plan) + [reason for reason in reasons if reason]:
            raise SettingsMismatchError(
                f"{store.url}: {what} and split {plan.split!r} differ:\n  "
                + "\n  ".join(found)
                + "\nAll splits of a data set must have the same codec, settings and class names: use those, or write "
                "to another folder"
            )


def limit_is_fixed(
    store: Store, split: str, before: EncodeSettings, now: EncodeSettings, *, redo: Collection[ShardId] = ()
) -> str | None:
    """Return the reason why `max_pixels` cannot change; None if no finished shard would change.

    Args:
        redo: shards that will be made again.
    """
    old, new = before.max_pixels, now.max_pixels
    if old == new:
        return None
    if not store.exists(plan_name(split)):
        return f"max_pixels: the sizes of the pictures of split {split!r} are not recorded here"
    for done in done_marks(store, split, sorted(finished_shards(store, split) - set(redo))):
        if new < old and done.shard is not None and (done.largest_picture is None or done.largest_picture > new):
            largest = done.largest_picture
            size = "of unknown size" if largest is None else f"of {largest} pixels"
            return f"max_pixels cannot become {new}: split {split!r} has a picture {size} in {done.shard.name}"
        for failure in done.failures if new > old else ():
            if _TOO_LARGE.fullmatch(failure.reason):
                return (
                    f"max_pixels cannot become {new}: {failure}, in split {split!r} (--retry-failures encodes it again)"
                )
    return None


def read_manifest(store: Store) -> Manifest | None:
    """Return the manifest of the data set, or None if there is none yet."""
    if not store.exists(MANIFEST_NAME):
        return None
    return storage.read_manifest(store)


def read_plan(store: Store, split: str) -> Plan | None:
    """Return the plan of a split; None if there is none."""
    if not store.exists(plan_name(split)):
        return None
    try:
        plan = Plan.from_dict(_json(store, plan_name(split)), context=store.location(plan_name(split)))
    except FormatError as error:
        raise FormatError(f"{error}. The split cannot be resumed without it: overwrite it (--overwrite)") from error
    if plan.split != split:
        raise FormatError(
            f"{store.location(plan_name(split))}: this is the plan of split {plan.split!r}, not of {split!r}: "
            "overwrite the split (--overwrite)"
        )
    if plan.is_old_stream and store.exists(old_end_name(split)):
        context = store.location(old_end_name(split))
        value = _json(store, old_end_name(split)).get("num_items")
        if type(value) is not int or value < 1:
            raise FormatError(f"{context}: num_items must be a positive integer, not {value!r}")
        plan = plan.with_num_items(value)
    return plan


def _json(store: Store, path: str) -> dict[str, Any]:
    return load_json(store.read_bytes(path, max_bytes=MAX_JSON_BYTES), context=store.location(path))


def finished_shards(store: Store, split: str) -> set[ShardId]:
    """Return the finished shards: those with a done mark and a file."""
    names = {path.rpartition("/")[2] for path in store.list(work_folder(split))}
    marked = {
        ShardId(int(match[1]), int(match[2]) if match[2] else None)
        for name in names
        if (match := _DONE.fullmatch(name))
    }
    files = set(store.list("data"))
    without = sorted(shard for shard in marked if shard_name(split, *shard) not in files)
    marked -= {shard for shard, done in zip(without, done_marks(store, split, without), strict=True) if done.shard}
    return marked


def finished_units(store: Store, split: str, shards: Collection[ShardId]) -> set[int]:
    """Return the numbers of finished units, given the finished shards."""
    whole = {shard.unit for shard in shards if shard.number is None}
    for unit, end in unit_ends(store, split).items():
        if all(ShardId(unit, number) in shards for number in range(end.num_shards)):
            whole.add(unit)
    return whole


def unit_ends(store: Store, split: str) -> dict[int, UnitEnd]:
    """Return the end marks of units, by unit number in ascending order. Damaged ones are left out."""
    names = {path.rpartition("/")[2] for path in store.list(work_folder(split))}
    units = sorted(int(match[1]) for name in names if (match := _END.fullmatch(name)))

    def read(unit: int) -> UnitEnd | None:
        path = end_name(split, unit)
        data = store.read_bytes(path, max_bytes=MAX_JSON_BYTES)
        try:
            return UnitEnd.from_json(data, context=store.location(path))
        except FormatError:
            return None

    ends = zip(units, in_order(read, units, store=store), strict=True)
    return {unit: end for unit, end in ends if end is not None}


def done_marks(store: Store, split: str, shards: Sequence[ShardId]) -> Iterator[ShardDone]:
    """Yield the done marks of shards, in the given order."""

    def read(shard: ShardId) -> ShardDone:
        path = done_name(split, shard)
        data = store.read_bytes(path, max_bytes=MAX_JSON_BYTES)
        try:
            done = ShardDone.from_json(data, context=store.location(path))
            if done.shard is not None and done.shard.name != shard_name(split, *shard):
                raise FormatError(
                    f"{store.location(path)}: is for {done.shard.name}, not for {shard_name(split, *shard)}"
                )
        except FormatError as error:
            raise FormatError(f"{error}. Encode with repair=True (--repair) to make this shard again") from error
        return done

    yield from in_order(read, shards, store=store)


def in_order(read: Callable[[Key], T], shards: Sequence[Key], *, store: Store) -> Iterator[T]:
    """Yield `read` of each shard or unit, in order; several are read at once from a remote store."""
    if store.local_path is not None:
        yield from map(read, shards)
        return
    threads = DaemonThreads(16, name="walloc-data-read")
    try:
        for start in range(0, len(shards), 256):  # bounds the memory
            for future in [threads.submit(read, shard) for shard in shards[start : start + 256]]:
                yield future.result()
    finally:
        threads.close()
