"""The plan: which pictures of a source go into which shard, in which order. It computes; it reads and writes nothing.

A shard is a pure function of (source, plan, shard number): the same bytes whoever makes it, and whenever.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from walloc_data.errors import FormatError
from walloc_data.format import CodecSpec, ColumnType, EncodeSettings, check_name
from walloc_data.permutations import permute_source

__all__ = ["SHARDS_VERSION", "Plan", "differences", "parse_part", "version_differences"]

# To be raised with any change of ours by which a shard gets other bytes: how pictures are read, resized, padded,
# encoded or packed, and how tars, keys and JSON are written. The WebP writer has a version of its own. A release that
# changes none of these resumes what another began.
SHARDS_VERSION = "2"

_Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Everything that a shard's bytes depend on, besides the pictures.

    `source` is `Source.describe()` and `shuffled`: streams keep their order, as what comes last is not known when the
    first shard is written.
    """

    split: str
    source: Mapping[str, Any]
    settings: EncodeSettings
    codec: CodecSpec
    class_names: tuple[str, ...] | None
    written_by: Mapping[str, str]

    def __post_init__(self) -> None:
        check_name(self.split, what="split", where="plan")
        for name, kind in (("shuffled", bool), ("labelled", bool), ("columns", list)):
            if not isinstance(self.source, Mapping) or not isinstance(self.source.get(name), kind):
                raise FormatError(f"source.{name} must be a {kind.__name__}")
        if self.num_items is not None and (type(self.num_items) is not int or self.num_items < 1):
            raise FormatError("source.num_items must be a positive integer or null")
        if not isinstance(self.column_types, Mapping):
            raise FormatError("source.column_types must be an object")
        for name, kind in self.column_types.items():
            try:
                ColumnType.from_json(kind)
            except FormatError as error:
                raise FormatError(f"source.column_types: {name!r}: {error}") from error

    @property
    def num_items(self) -> int | None:
        """Pictures in the source; None for a stream until its end has been seen."""
        number: int | None = self.source.get("num_items")
        return number

    @property
    def num_shards(self) -> int | None:
        """How many shards there are, those included whose pictures all turn out to be broken."""
        return None if self.num_items is None else -(-self.num_items // self.settings.samples_per_shard)

    @property
    def labelled(self) -> bool:
        """Whether every sample has a label."""
        return bool(self.source["labelled"])

    @property
    def columns(self) -> tuple[str, ...]:
        """The source's other columns, which go into the index."""
        return tuple(self.source["columns"])

    @property
    def column_types(self) -> Mapping[str, Any]:
        """The types that the source states of its columns; those of the others follow from their values."""
        types: Mapping[str, Any] = self.source.get("column_types") or {}
        return types

    def with_num_items(self, num_items: int) -> Self:
        """The plan of a stream whose end has been seen."""
        return replace(self, source={**self.source, "num_items": num_items})

    def source_indices(self, shard: int) -> _Index:
        """Positions in the source of a shard's pictures, in the shard's order."""
        if self.num_items is None:
            raise FormatError("a stream's positions are known once it has ended")
        first = shard * self.settings.samples_per_shard
        last = min(self.num_items, first + self.settings.samples_per_shard)
        if not 0 <= first < last:
            raise FormatError(f"no shard {shard}: there are {self.num_shards}")
        positions = np.arange(first, last, dtype=np.int64)
        if not self.source["shuffled"] or self.settings.shuffle_seed is None:
            return positions
        return permute_source(positions, num_items=self.num_items, seed=self.settings.shuffle_seed)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` is its inverse."""
        return {
            "split": self.split,
            "source": dict(self.source),
            "settings": self.settings.to_dict(),
            "codec": self.codec.to_dict(),
            "class_names": None if self.class_names is None else list(self.class_names),
            "written_by": dict(self.written_by),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> Self:
        """Check and build; `where` is named in errors."""
        try:
            names = value["class_names"]
            # Version 1 of the format wrote a JSON beside every latent, and did not say so.
            settings = {"sample_json": True, **value["settings"]}
            return cls(
                split=value["split"],
                source=value["source"],
                settings=EncodeSettings.from_dict(settings, where="settings"),
                codec=CodecSpec.from_dict(value["codec"], where="codec"),
                class_names=None if names is None else tuple(str(name) for name in names),
                written_by=value["written_by"],
            )
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from error
        except (KeyError, TypeError) as error:
            raise FormatError(f"{where}: not a plan ({error!r})") from error


def differences(before: Plan, now: Plan) -> list[str]:
    """Every field by which a resumed conversion would differ, as ``name: before -> now``; empty if none."""
    found = []
    for group in ("codec", "settings", "source"):
        old, new = before.to_dict()[group], now.to_dict()[group]
        if group == "source":  # a source may be mounted elsewhere, its content decides; notes are for people
            ignored = {"location", "notes"}
            if "column_types" not in old or "column_types" not in new:  # not recorded by earlier versions
                ignored.add("column_types")
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
    """``"I/N"``, I from 1 to N, as (I - 1, N): part I does the shards whose number is I - 1 modulo N."""
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise FormatError(f"part {text!r} must be I/N with I from 1 to N, e.g. 1/8")
    return int(first) - 1, int(second)
