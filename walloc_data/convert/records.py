"""What a finished shard leaves beside it: its done mark, with everything the manifest needs to know of it.

.walloc/{split}/plan.json         the plan
.walloc/{split}/00000.parquet     the shard's rows of the index
.walloc/{split}/00000.json        ShardDone: written last, so it means that all the rest is there

Where the source is read in fragments, a unit of work has several shards, 00000-000, 00000-001 and so on, and

.walloc/{split}/00000-end.json    UnitEnd: written when all its shards are done

In the records of such a shard, positions and source indices count from the unit's first picture: how many pictures
come before it in the source is known when all units are done.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from walloc_data.convert.plan import ShardId
from walloc_data.errors import FormatError
from walloc_data.format import ChannelStatistics, ShardRecord, check_columns, dump_json, load_json

__all__ = [
    "Failure",
    "ShardDone",
    "UnitEnd",
    "done_name",
    "end_name",
    "old_end_name",
    "plan_name",
    "rows_name",
    "work_folder",
]


def work_folder(split: str) -> str:
    """Where a split's plan and done marks lie."""
    return f".walloc/{split}"


def plan_name(split: str) -> str:
    """The plan's path inside the data set."""
    return f"{work_folder(split)}/plan.json"


def old_end_name(split: str) -> str:
    """Where earlier versions wrote a stream's length."""
    return f"{work_folder(split)}/end.json"


def end_name(split: str, unit: int) -> str:
    """The path of a unit's end mark inside the data set."""
    return f"{work_folder(split)}/{unit:05d}-end.json"


def done_name(split: str, shard: ShardId) -> str:
    """A done mark's path inside the data set."""
    return f"{work_folder(split)}/{shard}.json"


def rows_name(split: str, shard: ShardId) -> str:
    """The path of a shard's index rows inside the data set."""
    return f"{work_folder(split)}/{shard}.parquet"


@dataclass(frozen=True)
class UnitEnd:
    """The end mark of a unit whose source is read in fragments."""

    num_shards: int
    items: tuple[int, ...]  # pictures of each of its fragments, in the unit's order
    versions: tuple[str | None, ...]  # what told each fragment from another of its name

    def to_json(self) -> bytes:
        """The bytes of the end mark."""
        return dump_json(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> Self:
        """Parse and check; `where` is named in errors."""
        value = load_json(data, where=where)
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
            raise FormatError(f"{where}: not the end mark of a unit")
        return cls(num_shards, tuple(items), tuple(versions))


@dataclass(frozen=True)
class Failure:
    """One picture that could not be encoded; one line of ``failures/{split}.jsonl``."""

    key: str
    name: str  # in the source
    source_index: int  # in the records of a shard: as `Plan.key` counts
    reason: str

    def __str__(self) -> str:
        return f"{self.name} (source index {self.source_index}): {self.reason}"


@dataclass(frozen=True)
class ShardDone:
    """One shard's done mark."""

    shard: ShardRecord | None  # None: every picture of its range was broken, so there is no file
    md5: str | None
    first: int  # positions [first, last) of the plan's order; where it is read in fragments, of the unit
    last: int
    failures: tuple[Failure, ...]
    latent_shape: tuple[int, ...] | None  # None where shapes vary
    statistics: ChannelStatistics
    num_pixels: int  # encoded, before padding
    source_bytes: int  # of all picture files, broken ones included
    webp_bytes: int  # of packed latents, mirrored ones not counted
    left_out: Mapping[str, int] = field(default_factory=dict)  # what encoded pictures have lost: in how many of them
    largest_picture: int | None = None  # pixels of the largest picture encoded, as its source has it; None: not known
    columns: Mapping[str, Any] | None = None  # of the source, in the rows: name to type; None: version 1, without

    @property
    def num_samples(self) -> int:
        """Pictures encoded."""
        return self.shard.num_samples if self.shard else 0

    def to_json(self) -> bytes:
        """The bytes of the done mark."""
        return dump_json(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> Self:
        """Parse and check; `where` is named in errors."""
        value: dict[str, Any] = load_json(data, where=where)
        try:
            shard = value["shard"]
            value["shard"] = None if shard is None else ShardRecord.from_dict(shard, where=where)
            value["statistics"] = ChannelStatistics.from_dict(value["statistics"], where=where)
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
                    raise FormatError(f"{where}: {name} must be a non-negative integer")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{where}: not a done mark ({error!r})") from error
        if done.num_samples + len(done.failures) != done.last - done.first:
            raise FormatError(
                f"{where}: {done.num_samples} samples and {len(done.failures)} failures are not the "
                f"{done.last - done.first} pictures of [{done.first}, {done.last})"
            )
        return done


def _failure(value: Mapping[str, Any]) -> Failure:
    return Failure(str(value["key"]), str(value["name"]), int(value["source_index"]), str(value["reason"]))
