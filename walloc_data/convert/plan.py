"""The plan of a conversion: the assignment of pictures to shards, and their order. Does no input or output.

A plan divides a source into units of work. If pictures are read by position, a unit is a range of the shuffled
positions and becomes one shard. If they are read in fragments, a unit is one fragment, or several small ones, in the
shuffled order of fragments, and becomes as many shards as needed, each of `samples_per_shard` samples except the last.
The bytes of a shard depend only on the source, the plan and the number of the shard.
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

# Raise this number with any change in the bytes of shards: in decoding, resizing, padding, encoding or packing of
# pictures, or in the writing of tars, keys and JSON. The WebP writer has its own version. Releases with equal numbers
# resume each other's conversions.
SHARDS_VERSION = "2"

MIN_UNIT_BYTES, MIN_UNITS = 2**25, 256  # smaller fragments are combined if there are many
_Index = npt.NDArray[np.int64]


class ShardId(NamedTuple):
    """Identity of a shard in its split: its unit of work, and its number within the unit.

    Example:
        >>> from walloc_data.convert.plan import ShardId
        >>> str(ShardId(7)), str(ShardId(7, 2))
        ('00007', '00007-002')
    """

    unit: int
    number: int | None = None  # None: the source is read by position, with one shard per unit

    def __str__(self) -> str:
        return f"{self.unit:05d}" if self.number is None else f"{self.unit:05d}-{self.number:03d}"


def fragments_per_unit(num_fragments: int, sizes: Sequence[int] | None) -> int:
    """Return the number of fragments per unit: more than one if there are many small fragments, to avoid tiny shards.

    Args:
        num_fragments: number of fragments of the source.
        sizes: bytes of each; None: unknown, assumed to be large.

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
    """Everything besides the pictures that the bytes of a shard depend on.

    `source` is `Source.describe()`, with `shuffled` (whether positions or fragments are in a seeded order) and, if it
    is read in fragments, `fragments_per_unit`.
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
            raise FormatError("settings and codec must be objects")
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
        """Number of pictures in the source; None if it is read in fragments."""
        number: int | None = self.source.get("num_items")
        return number

    @property
    def num_fragments(self) -> int | None:
        """Number of fragments of the source; None if it is read by position."""
        number: int | None = self.source.get("num_fragments")
        return number

    @property
    def is_old_stream(self) -> bool:
        """Whether this is an unfinished plan of an earlier version, which read streams sequentially."""
        return self.num_items is None and self.num_fragments is None

    @property
    def num_units(self) -> int:
        """Number of units of work."""
        if self.num_fragments is not None:
            return -(-self.num_fragments // (self.source.get("fragments_per_unit") or 1))
        if self.num_items is None:
            raise SettingsMismatchError(
                f"split {self.split!r} was started by an earlier version, as a stream, and is not finished: this "
                "version reads such sources in another order and cannot resume it. Overwrite the split (--overwrite)"
            )
        return -(-self.num_items // self.settings.samples_per_shard)

    @property
    def labelled(self) -> bool:
        """Whether every sample has a label."""
        return bool(self.source["labelled"])

    @property
    def pictures(self) -> tuple[str, ...]:
        """Names of second pictures of samples that are stored, such as masks."""
        return tuple(self.source.get("pictures", ()))

    @property
    def adopts(self) -> bool:
        """Whether samples are packed latents, which are adopted instead of encoded."""
        return self.source.get("latents") is True

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the other columns of the source, which are stored in the index."""
        return tuple(self.source["columns"])

    @property
    def column_types(self) -> Mapping[str, Any]:
        """Types of columns stated by the source; types of other columns are inferred from their values."""
        types: Mapping[str, Any] = self.source.get("column_types") or {}
        return types

    @property
    def column_classes(self) -> Mapping[str, Any]:
        """Class names of columns that contain class numbers."""
        names: Mapping[str, Any] = self.source.get("column_classes") or {}
        return names

    def with_num_items(self, num_items: int) -> Self:
        """Return the plan of an earlier version's stream whose length is known."""
        return replace(self, source={**self.source, "num_items": num_items})

    def source_indices(self, unit: int) -> _Index:
        """Return the positions in the source of a unit's pictures, in the order of its shard."""
        if self.num_items is None:
            raise FormatError("a source that is read in fragments has no positions")
        return self._range(unit, size=self.settings.samples_per_shard, end=self.num_items)

    def fragments(self, unit: int) -> list[int]:
        """Return the fragments of a unit, in reading order."""
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
        """Return the key of a sample, by its position in the source, or in its unit for a source of fragments."""
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
        """Check and build a plan; `context` begins error messages."""
        try:
            names = value["class_names"]
            if not (names is None or isinstance(names, list)):
                raise FormatError("class_names must be a list of strings or null")
            # Version 1 of the format always wrote a JSON file for every latent, without this setting.
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
    """Return every difference that prevents a conversion from being resumed, as ``name: before -> now``."""
    found = []
    for group in ("codec", "settings", "source"):
        old, new = before.to_dict()[group], now.to_dict()[group]
        if group == "source":  # location and notes do not affect shards
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
    """Return the differences in versions of programs that affect the bytes of shards, in the form of `differences`.

    Pillow's version is recorded but not compared, because the versions of its bundled libraries for the common formats
    are.
    """
    first = {"shards": "1"}  # the version of plans without this entry
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
    """Parse ``"I/N"``, I from 1 to N, to (I - 1, N): part I has the units whose number is I - 1 modulo N."""
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise FormatError(f"part {text!r} must be I/N with I from 1 to N, e.g. 1/8")
    return int(first) - 1, int(second)
