"""The plan: which pictures of a source go into which shard, in which order. It computes; it reads and writes nothing.

A plan divides a source into units of work. Where pictures are read by position, a unit is a range of the shuffled
positions, and gives one shard. Where they are read in fragments, a unit is one fragment, or several small ones, in the
shuffled order of fragments; it gives as many shards as it takes, of `samples_per_shard` each but for the last. A shard
is a pure function of (source, plan, its number): the same bytes whoever makes it, and whenever.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from walloc_data.errors import FormatError, SettingsMismatchError
from walloc_data.format import (
    CodecSpec,
    ColumnType,
    EncodeSettings,
    check_json,
    check_name,
    check_text,
    check_texts,
    fragment_key,
    sample_key,
)
from walloc_data.permutations import permute_source

__all__ = [
    "SHARDS_VERSION",
    "Plan",
    "ShardId",
    "differences",
    "fragments_per_unit",
    "parse_part",
    "version_differences",
]

# To be raised with any change of ours by which a shard gets other bytes: how pictures are read, resized, padded,
# encoded or packed, and how tars, keys and JSON are written. The WebP writer has a version of its own. A release that
# changes none of these resumes what another began.
SHARDS_VERSION = "2"

MIN_UNIT_BYTES, MIN_UNITS = 2**25, 256  # of fragments: smaller ones are read together, if there are many
_Index = npt.NDArray[np.int64]


class ShardId(NamedTuple):
    """Identity of a shard in its split: its unit of work, and its number among the unit's shards.

    Example:
        >>> from walloc_data.convert.plan import ShardId
        >>> str(ShardId(7)), str(ShardId(7, 2))
        ('00007', '00007-002')
    """

    unit: int
    number: int | None = None  # None: a unit has one shard, as the source is read by position

    def __str__(self) -> str:
        return f"{self.unit:05d}" if self.number is None else f"{self.unit:05d}-{self.number:03d}"


def fragments_per_unit(num_fragments: int, sizes: Sequence[int] | None) -> int:
    """Return how many fragments to read as one: several where there are very many small ones, as a shard each would be
    small.

    Args:
        num_fragments: of the source.
        sizes: the bytes of each; None: not known, and then fragments are not small.

    Example:
        >>> from walloc_data.convert.plan import fragments_per_unit
        >>> fragments_per_unit(10, [10**6] * 10), fragments_per_unit(10_000, [10**6] * 10_000)
        (1, 33)
    """
    if not sizes or num_fragments < 2 * MIN_UNITS:
        return 1
    fitting = MIN_UNIT_BYTES * num_fragments // max(1, sum(sizes))
    return max(1, min(fitting, num_fragments // MIN_UNITS))


@dataclass(frozen=True)
class Plan:
    """Everything that a shard's bytes depend on, besides the pictures.

    `source` is `Source.describe()`; `shuffled`: whether positions, or fragments, are in a seeded order; and
    `fragments_per_unit`, where it is read in fragments.
    """

    split: str
    source: Mapping[str, Any]
    settings: EncodeSettings
    codec: CodecSpec
    class_names: tuple[str, ...] | None
    written_by: Mapping[str, str]

    def __post_init__(self) -> None:
        check_name(self.split, what="split", context="plan")
        if not isinstance(self.settings, EncodeSettings) or not isinstance(self.codec, CodecSpec):
            raise FormatError("settings and codec must be records of their own")
        check_json("source", self.source)
        check_texts("written_by", self.written_by)
        for name in self.class_names or ():
            check_text("class name", name)
        for name, kind in (("shuffled", bool), ("labelled", bool), ("columns", list)):
            if not isinstance(self.source, Mapping) or not isinstance(self.source.get(name), kind):
                raise FormatError(f"source.{name} must be a {kind.__name__}")
        if not all(isinstance(name, str) for name in self.source["columns"]):
            raise FormatError("source.columns must be a list of names")
        if not isinstance(self.column_types, Mapping):
            raise FormatError("source.column_types must be an object")
        if not isinstance(self.column_classes, Mapping):
            raise FormatError("source.column_classes must be an object")
        for name, kind in self.column_types.items():
            try:
                ColumnType.from_json(kind)
            except FormatError as error:
                raise FormatError(f"source.column_types: {name!r}: {error}") from error
        for name in ("num_items", "num_fragments", "fragments_per_unit"):
            number = self.source.get(name)
            if number is not None and (type(number) is not int or not 1 <= number < 2**53):
                raise FormatError(f"source.{name} must be a positive integer or null")
        if self.num_fragments is not None and self.num_items is not None:
            raise FormatError("a source has either source.num_items or source.num_fragments")

    @property
    def num_items(self) -> int | None:
        """Pictures in the source; None where it is read in fragments."""
        number: int | None = self.source.get("num_items")
        return number

    @property
    def num_fragments(self) -> int | None:
        """Fragments of the source; None where it is read by position."""
        number: int | None = self.source.get("num_fragments")
        return number

    @property
    def is_old_stream(self) -> bool:
        """True for the unfinished plan of an earlier version, which read streams as a whole."""
        return self.num_items is None and self.num_fragments is None

    @property
    def num_units(self) -> int:
        """Number of units of work."""
        if self.num_fragments is not None:
            return -(-self.num_fragments // (self.source.get("fragments_per_unit") or 1))
        if self.num_items is None:
            raise SettingsMismatchError(
                f"split {self.split!r} was begun by an earlier version, as a stream, and is not finished: this version "
                "reads such sources in another order, so that it cannot go on. Overwrite the split (--overwrite)"
            )
        return -(-self.num_items // self.settings.samples_per_shard)

    @property
    def labelled(self) -> bool:
        """True if every sample has a label."""
        return bool(self.source["labelled"])

    @property
    def pictures(self) -> tuple[str, ...]:
        """Second pictures of samples that are kept, such as masks."""
        return tuple(self.source.get("pictures", ()))

    @property
    def adopts(self) -> bool:
        """True if samples are packed latents already, and not pictures to be encoded."""
        return self.source.get("latents") is True

    @property
    def columns(self) -> tuple[str, ...]:
        """The source's other columns, which go into the index."""
        return tuple(self.source["columns"])

    @property
    def column_types(self) -> Mapping[str, Any]:
        """The types that the source states of its columns; those of the others follow from their values."""
        types: Mapping[str, Any] = self.source.get("column_types") or {}
        return types

    @property
    def column_classes(self) -> Mapping[str, Any]:
        """Class names of columns of class numbers."""
        names: Mapping[str, Any] = self.source.get("column_classes") or {}
        return names

    def with_num_items(self, num_items: int) -> Self:
        """Return the plan of an earlier version's stream whose end has been seen."""
        return replace(self, source={**self.source, "num_items": num_items})

    def source_indices(self, unit: int) -> _Index:
        """Return positions in the source of a unit's pictures, in the order of its shard."""
        if self.num_items is None:
            raise FormatError("a source that is read in fragments has no positions")
        return self._range(unit, size=self.settings.samples_per_shard, end=self.num_items)

    def fragments(self, unit: int) -> list[int]:
        """Return the fragments of a unit, in the order in which it reads them."""
        if self.num_fragments is None:
            raise FormatError("a source that is read by position has no fragments")
        found: list[int] = self._range(
            unit, size=self.source.get("fragments_per_unit") or 1, end=self.num_fragments
        ).tolist()
        return found

    def _range(self, unit: int, *, size: int, end: int) -> _Index:
        first, last = unit * size, min(end, (unit + 1) * size)
        if not 0 <= first < last:
            raise FormatError(f"no unit {unit}: there are {self.num_units}")
        positions = np.arange(first, last, dtype=np.int64)
        if not self.source["shuffled"] or self.settings.shuffle_seed is None:
            return positions
        return permute_source(positions, num_items=end, seed=self.settings.shuffle_seed)

    def key(self, unit: int, index: int) -> str:
        """Return the key of a sample: of its position in the source, or of that in its unit where it is read in
        fragments.
        """
        return sample_key(index) if self.num_fragments is None else fragment_key(unit, index)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `from_dict` is its inverse."""
        return {
            "split": self.split,
            "source": dict(self.source),
            "settings": self.settings.to_dict(),
            "codec": self.codec.to_dict(),
            "class_names": None if self.class_names is None else list(self.class_names),
            "written_by": dict(self.written_by),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, context: str) -> Self:
        """Check and build; `context` is named in errors."""
        try:
            names = value["class_names"]
            if not (names is None or isinstance(names, list)):
                raise FormatError("class_names must be a list of strings or null")
            # Version 1 of the format wrote a JSON beside every latent, and did not say so.
            settings = {"sample_json": True, **value["settings"]}
            return cls(
                split=value["split"],
                source=value["source"],
                settings=EncodeSettings.from_dict(settings, context="settings"),
                codec=CodecSpec.from_dict(value["codec"], context="codec"),
                class_names=None if names is None else tuple(names),
                written_by=value["written_by"],
            )
        except FormatError as error:
            raise FormatError(f"{context}: {error}") from error
        except (KeyError, TypeError) as error:
            raise FormatError(f"{context}: not a plan ({error!r})") from error


def differences(before: Plan, now: Plan) -> list[str]:
    """Return every field by which a resumed conversion would differ, as ``name: before -> now``; empty if none."""
    found = []
    for group in ("codec", "settings", "source"):
        old, new = before.to_dict()[group], now.to_dict()[group]
        if group == "source":  # a source may be mounted elsewhere, its content decides; notes are for people
            ignored = {"location", "notes"}
            # Not recorded by earlier versions.
            ignored |= {name for name in ("column_types", "column_classes") if name not in old or name not in new}
            old, new = ({k: v for k, v in side.items() if k not in ignored} for side in (old, new))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                found.append(f"{group}.{name}: {old.get(name)!r} -> {new.get(name)!r}")
    if before.class_names != now.class_names:
        found.append(f"class_names: {_short(before.class_names)} -> {_short(now.class_names)}")
    return found


def version_differences(before: Plan, now: Plan) -> list[str]:
    """Return what else the bytes of shards depend on, as ``differences`` names it: programs that write and read files.

    Pillow's version is recorded and not compared: what of it changes most are the libraries that it comes with, and
    those that the common formats are read with are named beside it.
    """
    first = {"shards": "1"}  # what plans without this entry were written with
    old, new = (
        first | {k: v for k, v in plan.written_by.items() if k not in ("walloc_data", "pillow")}
        for plan in (before, now)
    )
    return [
        f"written_by.{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _short(names: tuple[str, ...] | None) -> str:
    return repr(names) if names is None or len(names) <= 4 else f"{len(names)} names from {names[0]!r} to {names[-1]!r}"


def parse_part(text: str) -> tuple[int, int]:
    """Parse ``"I/N"``, I from 1 to N, to (I - 1, N): part I does the units whose number is I - 1 modulo N."""
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise FormatError(f"part {text!r} must be I/N with I from 1 to N, e.g. 1/8")
    return int(first) - 1, int(second)
