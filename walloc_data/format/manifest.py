"""The manifest `walloc.json`, with records of splits and shards."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import FormatError
from walloc_data.format.checks import Record, check_bool, check_int, check_json, check_text, check_texts, short_repr
from walloc_data.format.columns import check_columns
from walloc_data.format.json_text import MAX_JSON_BYTES, MAX_JSON_VALUES, dump_json, load_json
from walloc_data.format.names import FORMAT_VERSION, check_name, check_relative_path, check_sha256, index_name
from walloc_data.format.spec import CodecSpec, EncodeSettings
from walloc_data.format.statistics import ChannelStatistics

__all__ = ["Manifest", "ReadShards", "ShardRecord", "ShardsFile", "SplitRecord"]

# Names of held-out splits, in order of preference.
HELD_OUT_SPLITS = ("val", "validation", "valid", "dev", "test")


def _split_order(name: str) -> tuple[int, str]:
    """Return the sort key of splits: train, the held-out ones, then others by name."""
    known = ("train", *HELD_OUT_SPLITS)
    return known.index(name) if name in known else len(known), name


_MAX_SAMPLES = 2**40  # per split, so that sums fit 64 bits
_MAX_SHARD_BYTES = 2**50


@dataclass(frozen=True)
class ShardRecord(Record):
    """Record of a shard.

    Example:
        >>> from walloc_data import LatentDataset
        >>> [(shard.name, shard.num_samples) for shard in LatentDataset("my-latents").record.shards]
        [('data/train-00000.tar', 4), ('data/train-00001.tar', 4)]
    """

    name: str  # relative to the data set's root
    num_samples: int
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_relative_path(self.name, context="shard name")
        check_text("shard name", self.name)
        check_int("num_samples", self.num_samples, low=1, high=_MAX_SAMPLES)
        check_int("num_bytes", self.num_bytes, low=1, high=_MAX_SHARD_BYTES)
        check_sha256("sha256", self.sha256)


@dataclass(frozen=True)
class ShardsFile(Record):
    """Record of the file that lists the shards of a split, if there are too many for the manifest.

    Example:
        >>> from walloc_data.format import ShardsFile, shards_name
        >>> ShardsFile(shards_name("train"), "0" * 64, num_shards=488_282).to_dict()["name"]
        'index/train.shards.parquet'
    """

    name: str  # relative to the data set's root
    sha256: str
    num_shards: int

    def __post_init__(self) -> None:
        check_relative_path(self.name, context="shards_file")
        check_text("shards_file", self.name)
        check_sha256("shards_file's sha256", self.sha256)
        check_int("shards_file's num_shards", self.num_shards, low=1, high=2**26)


ReadShards = Callable[[ShardsFile], tuple[ShardRecord, ...]]


@dataclass(frozen=True)
class SplitRecord(Record):
    """Record of a split: its shards in order, and counts of samples and failures.

    Example:
        >>> from walloc_data import LatentDataset
        >>> record = LatentDataset("my-latents").record
        >>> record.num_samples, record.num_failures, record.latent_shape, len(record.shards)
        (8, 0, (12, 12, 12), 2)
    """

    source: Mapping[str, Any]  # the encoded source: kind, location, length
    num_samples: int
    num_failures: int
    shards: tuple[ShardRecord, ...] = field(repr=False)
    latent_shape: tuple[int, int, int] | None  # None if shapes differ: batches then need a transform or buckets
    labelled: bool
    statistics: ChannelStatistics
    index_sha256: str | None = None  # of the index file; None: written by an early version
    columns: Mapping[str, Any] | None = None  # name to type of the source's columns in the index; None: version 1
    column_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # class names of columns of classes

    def __post_init__(self) -> None:
        check_json("source", self.source)
        check_int("num_samples", self.num_samples, low=0, high=_MAX_SAMPLES)
        check_int("num_failures", self.num_failures, low=0, high=_MAX_SAMPLES)
        check_bool("labelled", self.labelled)
        if not isinstance(self.shards, tuple) or not all(isinstance(shard, ShardRecord) for shard in self.shards):
            raise FormatError(f"shards must be shard records, not {short_repr(self.shards)}")
        if not isinstance(self.statistics, ChannelStatistics):
            raise FormatError(f"statistics must be counts of each channel, not {short_repr(self.statistics)}")
        if self.index_sha256 is not None:
            check_sha256("index_sha256", self.index_sha256)
        if self.columns is not None:
            check_columns(self.columns)
        self._check_classes()
        if self.latent_shape is not None:
            if not isinstance(self.latent_shape, tuple) or len(self.latent_shape) != 3:
                raise FormatError(f"latent_shape must be three integers or null, not {short_repr(self.latent_shape)}")
            for value in self.latent_shape:
                check_int("latent_shape", value, low=1, high=2**20)
        if (counted := sum(shard.num_samples for shard in self.shards)) != self.num_samples:
            raise FormatError(f"num_samples is {self.num_samples} but the shards have {counted}")
        names = [shard.name for shard in self.shards]
        if len(set(names)) != len(names):
            raise FormatError("a shard is listed twice")

    def _check_classes(self) -> None:
        if not isinstance(self.column_classes, Mapping) or not self.column_classes.keys() <= set(self.columns or ()):
            raise FormatError("column_classes must be an object of columns and their class names")
        for name, classes in self.column_classes.items():
            if not isinstance(classes, list | tuple):
                raise FormatError(f"column_classes of {name!r} must be a list of names, not {short_repr(classes)}")
            for item in classes:
                check_text(f"a class of column {name!r}", item)
        frozen = {name: tuple(classes) for name, classes in self.column_classes.items()}
        object.__setattr__(self, "column_classes", frozen)

    @property
    def num_bytes(self) -> int:
        """Total bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @cached_property  # callers ask once a shard, and it looks through all shards
    def root(self) -> str:
        """Folder, inside the data set, that contains the split's ``data/`` and ``index/``; usually "".

        While a split is overwritten or changed, the new one is made in a separate folder. The manifest refers to that
        folder from the moment the new split is complete until its files are at their usual places, so that readers
        never see a mixture. Unchanged shards stay at their usual places.
        """
        return next((found for shard in self.shards if (found := shard.name.rpartition("data/")[0])), "")

    def index_name(self, split: str) -> str:
        """Return the path of the index of this split inside the data set.

        Example:
            >>> from walloc_data import LatentDataset
            >>> LatentDataset("my-latents").record.index_name("train")
            'index/train.parquet'
        """
        return self.root + index_name(split)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, context: str, read_shards: ReadShards | None = None) -> Self:
        """Build and validate from a parsed JSON object.

        Args:
            value: JSON object of the split, as written by `Manifest.to_json`.
            context: text that begins error messages.
            read_shards: function that reads the list of shards if it is a separate file.
        """
        if not isinstance(value, Mapping):
            raise FormatError(f"{context}: expected an object, found {type(value).__name__}")
        shards, statistics = value.get("shards"), value.get("statistics")
        parsed = dict(value)
        if (file := parsed.pop("shards_file", None)) is not None:
            listed = ShardsFile.from_dict(file, context=f"{context}: shards_file")
            if read_shards is None or shards is not None:
                raise FormatError(
                    f"{context}: its shards are listed in {listed.name}: use walloc_data.storage.read_manifest"
                )
            parsed["shards"] = read_shards(listed)
        elif not isinstance(shards, list):
            raise FormatError(f"{context}: shards must be a list")
        else:
            parsed["shards"] = tuple(
                ShardRecord.from_dict(shard, context=f"{context}: shard {i}") for i, shard in enumerate(shards)
            )
        parsed["statistics"] = ChannelStatistics.from_dict(
            statistics if isinstance(statistics, Mapping) else {}, context=f"{context}: statistics"
        )
        return super().from_dict(parsed, context=context)


@dataclass(frozen=True)
class Manifest(Record):
    """Manifest of a data set, `walloc.json`. Its splits are ordered: train, held-out splits, others by name.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data import Manifest
        >>> manifest = Manifest.from_json(Path("my-latents/walloc.json").read_bytes(), context="walloc.json")
        >>> manifest.class_names, manifest.settings.size_px, manifest.codec.name
        (('cat', 'coffee'), 96, 'rgb-16x-v1')
        >>> manifest.split("train", context="walloc.json").num_samples
        8
        >>> manifest.held_out_split(context="walloc.json")
        Traceback (most recent call last):
        walloc_data.errors.FormatError: walloc.json: no split to validate on; it has ['train']: ...
    """

    codec: CodecSpec
    settings: EncodeSettings
    class_names: tuple[str, ...] | None
    splits: Mapping[str, SplitRecord]
    written_by: Mapping[str, str]  # versions of walloc_data and libwebp, which may affect bytes, but not pixels

    def __post_init__(self) -> None:
        if not isinstance(self.codec, CodecSpec) or not isinstance(self.settings, EncodeSettings):
            raise FormatError("codec and settings must be objects")
        if self.class_names is not None and not (
            isinstance(self.class_names, tuple) and all(isinstance(name, str) for name in self.class_names)
        ):
            raise FormatError("class_names must be a list of strings or null")
        for name in self.class_names or ():
            check_text("class name", name)
        check_texts("written_by", self.written_by)
        if not isinstance(self.splits, Mapping):
            raise FormatError(f"splits must be an object, not {short_repr(self.splits)}")
        object.__setattr__(self, "splits", dict(sorted(self.splits.items(), key=lambda item: _split_order(item[0]))))
        for split, record in self.splits.items():
            check_name(split, what="split", context="manifest")
            if not isinstance(record, SplitRecord):
                raise FormatError(f"split {split!r} must be the record of a split, not {short_repr(record)}")
            if record.latent_shape is not None and record.latent_shape[0] != self.codec.latent_dim:
                raise FormatError(
                    f"split {split!r}: latents of shape {record.latent_shape} from a codec of "
                    f"{self.codec.latent_dim} channels"
                )
            rows = record.statistics.counts
            if len(rows) != self.codec.latent_dim or len(rows[0]) != 2**self.codec.latent_bits:
                raise FormatError(
                    f"split {split!r}: the statistics do not match the codec's {self.codec.latent_dim} channels"
                )

    def split(self, name: str, *, context: str) -> SplitRecord:
        """Return the record of a split; raise FormatError, listing the existing splits, if there is none."""
        if name not in self.splits:
            raise FormatError(f"{context}: no split {name!r}; it has {sorted(self.splits)}")
        return self.splits[name]

    def held_out_split(self, name: str | None = None, *, context: str) -> str:
        """Return the split for validation: `name`, else the first that exists of val, validation, valid, dev, test.

        Raises:
            FormatError: there is none; the message lists the existing splits.
        """
        if name is None:
            name = next((split for split in HELD_OUT_SPLITS if split in self.splits), None)
        if name is None:
            raise FormatError(
                f"{context}: no split to validate on; it has {sorted(self.splits)}: encode one, or choose one of these"
            )
        self.split(name, context=context)
        return name

    def to_json(self, *, shards_files: Mapping[str, ShardsFile] | None = None) -> str:
        """Return the text of `walloc.json`; equal manifests give equal texts.

        Raises:
            FormatError: it would exceed the limits of reading (1.2e9 samples at 2048 per shard).
        """
        head: dict[str, Any] = {"format": "walloc_data", "format_version": FORMAT_VERSION}
        named = shards_files or {}
        splits = {k: replace(v, shards=(), num_samples=0) if k in named else v for k, v in self.splits.items()}
        value = head | replace(self, splits=splits).to_dict()
        for split, file in named.items():
            value["splits"][split] |= {"num_samples": self.splits[split].num_samples, "shards_file": file.to_dict()}
            del value["splits"][split]["shards"]
        for split, record in self.splits.items():
            # Derived from the counts, for readers without this package.
            value["splits"][split]["statistics"] |= {
                "mean": record.statistics.mean,
                "std": record.statistics.std,
            }
        text = dump_json(value)
        num_values = text.count(",") + text.count("[") + text.count("{")
        if len(text.encode()) > MAX_JSON_BYTES or num_values > MAX_JSON_VALUES:
            raise FormatError(
                f"a manifest of {sum(len(record.shards) for record in self.splits.values())} shards would be longer "
                f"than the {MAX_JSON_BYTES} bytes and {MAX_JSON_VALUES} values that are read of one: put more samples "
                "into a shard (samples_per_shard)"
            )
        return text

    @classmethod
    @renamed_arguments(where="context")
    def from_json(cls, data: bytes | str, *, context: str, read_shards: ReadShards | None = None) -> Self:
        """Parse and check `walloc.json`. `context` is the path or URL that errors name."""
        value = load_json(data, context=context)
        if value.pop("format", None) != "walloc_data":
            raise FormatError(f"{context}: not a walloc_data manifest")
        version = value.pop("format_version", None)
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise FormatError(
                f"{context}: format version {version!r}; this walloc_data reads up to {FORMAT_VERSION}: upgrade it"
            )
        splits = value.get("splits")
        if not isinstance(splits, dict):
            raise FormatError(f"{context}: splits must be an object")
        for record in splits.values():
            if isinstance(record, dict) and isinstance(record.get("statistics"), dict):
                record["statistics"] = {"counts": record["statistics"].get("counts")}
        value["codec"] = CodecSpec.from_dict(value.get("codec") or {}, context=f"{context}: codec")
        settings = value.get("settings") or {}
        if version == 1 and isinstance(settings, dict):
            settings = {"sample_json": True, **settings}  # version 1 always had it
        value["settings"] = EncodeSettings.from_dict(settings, context=f"{context}: settings")
        value["splits"] = {
            name: SplitRecord.from_dict(record, context=f"{context}: split {name!r}", read_shards=read_shards)
            for name, record in splits.items()
        }
        return super().from_dict(value, context=context)
