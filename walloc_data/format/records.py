"""The records of an encoded data set: frozen dataclasses that round-trip through JSON and refuse what is broken."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from walloc_data.errors import FormatError
from walloc_data.format.names import (
    FORMAT_VERSION,
    check_name,
    check_relative_path,
    check_sha256,
    dump_json,
    index_name,
    load_json,
)

# What data sets call the split that is not trained on, in the order of preference.
HELD_OUT_SPLITS = ("val", "validation", "valid", "dev", "test")


class _Record:
    """Shared JSON round trip of the frozen dataclasses below."""

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON values; `from_dict` is its inverse."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> Self:
        """Build and validate from a parsed JSON object; unknown and missing fields are errors that name them."""
        if not isinstance(value, Mapping):
            raise FormatError(f"{where}: expected an object, found {type(value).__name__}")
        names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(value) - names):
            raise FormatError(f"{where}: unknown fields {unknown}; written by a newer walloc_data?")
        try:
            return cls(**{name: _freeze(item) for name, item in value.items()})
        except TypeError as error:
            raise FormatError(f"{where}: {error}") from error
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from error


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def _check_int(name: str, value: Any, *, low: int, high: int = 2**63 - 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise FormatError(f"{name} must be an integer in [{low}, {high}], not {value!r}")


@dataclass(frozen=True)
class CodecSpec(_Record):
    """What a latent means: the codec's shape, and the hash of the weights that make latents from pictures.

    Example:
        >>> from walloc_data.storage import Store, read_manifest
        >>> spec = read_manifest(Store("my-latents")).codec
        >>> spec.cell_px, spec.latent_bits, spec.dimensionality_reduction
        (8, 8, 16.0)
        >>> spec.latent_shape(height=512, width=768)
        (12, 64, 96)
    """

    name: str
    channels: int  # of the picture: 3
    J: int  # wavelet-packet levels: one cell is 2^J pixels
    latent_dim: int
    latent_bits: int
    wavelet: str
    encoder_sha256: str

    def __post_init__(self) -> None:
        check_name(self.name, what="codec name", where="codec")
        _check_int("channels", self.channels, low=1, high=4)
        _check_int("J", self.J, low=1, high=8)
        _check_int("latent_dim", self.latent_dim, low=1, high=4096)
        _check_int("latent_bits", self.latent_bits, low=2, high=8)
        if self.wavelet != "bior4.4":
            raise FormatError(f"wavelet must be 'bior4.4', not {self.wavelet!r}")
        check_sha256("encoder_sha256", self.encoder_sha256)
        if self.latent_dim % self.channels or math.isqrt(self.tiles) ** 2 != self.tiles:
            raise FormatError(
                f"latent_dim {self.latent_dim} does not pack: it must be channels ({self.channels}) times a square"
            )

    @property
    def cell_px(self) -> int:
        """Pixels along one side of a latent cell."""
        return 1 << self.J

    @property
    def tiles(self) -> int:
        """Latent channels that share one colour plane of the packed picture."""
        return self.latent_dim // self.channels

    @property
    def dimensionality_reduction(self) -> float:
        """Picture values per latent value."""
        return self.channels * self.cell_px**2 / self.latent_dim

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(latent_dim, h, w) of a picture of `height` x `width` pixels, padding included."""
        return self.latent_dim, -(-height // self.cell_px), -(-width // self.cell_px)


@dataclass(frozen=True)
class EncodeSettings(_Record):
    """Everything besides source and codec that a shard's bytes depend on.

    Example:
        >>> from walloc_data.format import EncodeSettings
        >>> settings = EncodeSettings(size_px=256, mirror=True)
        >>> settings.samples_per_shard, settings.background
        (2048, (255, 255, 255))
        >>> EncodeSettings.from_dict(settings.to_dict(), where="settings") == settings
        True
    """

    size_px: int | None = None  # the shorter side is resized to this, then the centre is cropped; None: as it is
    samples_per_shard: int = 2048
    shuffle_seed: int | None = 0  # None keeps the source's order
    webp_effort: Literal["default", "fast"] = "default"
    background: tuple[int, int, int] = (255, 255, 255)  # RGB under transparent pixels
    mirror: bool = False  # store the latent of the mirrored picture beside each one
    # Larger pictures become failures: a bound on memory, and on decompression bombs. The default is Pillow's own.
    max_pixels: int = 89_478_485
    max_value: int | None = None  # of PNG and TIFF above 8 bits: what is full brightness, e.g. 4095; None: 65535

    def __post_init__(self) -> None:
        if self.size_px is not None:
            _check_int("size_px", self.size_px, low=1, high=65528)  # whose packed latent WebP can hold
        _check_int("samples_per_shard", self.samples_per_shard, low=1, high=10**7)
        if self.shuffle_seed is not None:
            _check_int("shuffle_seed", self.shuffle_seed, low=0)
        if self.webp_effort not in ("default", "fast"):
            raise FormatError(f"webp_effort must be 'default' or 'fast', not {self.webp_effort!r}")
        if not isinstance(self.background, tuple) or len(self.background) != 3:
            raise FormatError(f"background must be three values in [0, 255], not {self.background!r}")
        for value in self.background:
            _check_int("background", value, low=0, high=255)
        if not isinstance(self.mirror, bool):
            raise FormatError(f"mirror must be true or false, not {self.mirror!r}")
        _check_int("max_pixels", self.max_pixels, low=1)
        if self.max_value is not None:
            _check_int("max_value", self.max_value, low=256, high=65535)


@dataclass(frozen=True)
class ChannelStatistics(_Record):
    """How often each latent value occurs in each channel; everything else follows from these exact counts.

    Counts add up over shards in any order, so the statistics of a split are the same however it was made.

    Example:
        >>> from walloc_data.format import ChannelStatistics
        >>> seen = ChannelStatistics(((0, 1, 2, 1),))  # one channel of 2 bits: -1 once, 0 twice, 1 once
        >>> seen.mean, seen.entropy_bits, seen.bounds
        ((0.0,), (1.5,), ((-1, 1),))
        >>> (seen + seen).counts
        ((0, 2, 4, 2),)
    """

    counts: tuple[tuple[int, ...], ...]  # (latent_dim, 2^latent_bits); column i counts the value i - 2^(bits-1)

    def __post_init__(self) -> None:
        if not isinstance(self.counts, tuple) or not all(isinstance(row, tuple) for row in self.counts):
            raise FormatError("counts must be a list of lists")
        if len({len(row) for row in self.counts}) != 1 or not 1 <= len(self.counts) <= 4096:
            raise FormatError("counts must be one row a channel, all of one length")
        for row in self.counts:
            for count in row:
                _check_int("counts", count, low=0)

    @classmethod
    def zero(cls, spec: CodecSpec) -> Self:
        """No latents seen yet."""
        return cls(((0,) * 2**spec.latent_bits,) * spec.latent_dim)

    def __add__(self, other: Self) -> Self:
        pairs = zip(self.counts, other.counts, strict=True)
        return type(self)(tuple(tuple(a + b for a, b in zip(*pair, strict=True)) for pair in pairs))

    def _moment(self, row: tuple[int, ...], power: int) -> int:
        offset = len(row) // 2
        return sum(count * (i - offset) ** power for i, count in enumerate(row))

    @property
    def mean(self) -> tuple[float, ...]:
        """(latent_dim,) mean of the integers; 0 where nothing was counted."""
        return tuple(self._moment(row, 1) / max(1, sum(row)) for row in self.counts)

    @property
    def std(self) -> tuple[float, ...]:
        """(latent_dim,) standard deviation of the integers."""
        result = []
        for row in self.counts:
            n = max(1, sum(row))
            first, second = self._moment(row, 1), self._moment(row, 2)
            result.append(math.sqrt(n * second - first * first) / n)  # exact integers under the root
        return tuple(result)

    @property
    def entropy_bits(self) -> tuple[float, ...]:
        """(latent_dim,) zeroth-order entropy in bits per value."""
        result = []
        for row in self.counts:
            n = max(1, sum(row))
            result.append(-sum(count / n * math.log2(count / n) for count in row if count))
        return tuple(result)

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """(latent_dim,) pairs of smallest and largest value seen; (0, 0) where nothing was counted."""
        result = []
        for row in self.counts:
            seen = [i - len(row) // 2 for i, count in enumerate(row) if count]
            result.append((seen[0], seen[-1]) if seen else (0, 0))
        return tuple(result)


@dataclass(frozen=True)
class ShardRecord(_Record):
    """One published shard.

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
        check_relative_path(self.name, where="shard name")
        _check_int("num_samples", self.num_samples, low=1)
        _check_int("num_bytes", self.num_bytes, low=1)
        check_sha256("sha256", self.sha256)


@dataclass(frozen=True)
class SplitRecord(_Record):
    """One split: its shards in order, and what became of every picture of its source.

    Example:
        >>> from walloc_data import LatentDataset
        >>> record = LatentDataset("my-latents").record
        >>> record.num_samples, record.num_failures, record.latent_shape, len(record.shards)
        (8, 0, (12, 12, 12), 2)
    """

    source: Mapping[str, Any]  # what was encoded: kind, location, length
    num_samples: int
    num_failures: int
    shards: tuple[ShardRecord, ...]
    latent_shape: tuple[int, int, int] | None  # None where shapes vary: batches then need a transform or buckets
    labelled: bool
    statistics: ChannelStatistics
    index_sha256: str | None = None  # of the index's file; None: written before there were checksums

    def __post_init__(self) -> None:
        if not isinstance(self.source, Mapping):
            raise FormatError("source must be an object")
        _check_int("num_samples", self.num_samples, low=0)
        _check_int("num_failures", self.num_failures, low=0)
        if not isinstance(self.labelled, bool):
            raise FormatError(f"labelled must be true or false, not {self.labelled!r}")
        if self.index_sha256 is not None:
            check_sha256("index_sha256", self.index_sha256)
        if self.latent_shape is not None:
            if not isinstance(self.latent_shape, tuple) or len(self.latent_shape) != 3:
                raise FormatError(f"latent_shape must be three integers or null, not {self.latent_shape!r}")
            for value in self.latent_shape:
                _check_int("latent_shape", value, low=1, high=2**20)
        if (counted := sum(shard.num_samples for shard in self.shards)) != self.num_samples:
            raise FormatError(f"num_samples is {self.num_samples} but the shards hold {counted}")
        names = [shard.name for shard in self.shards]
        if len(set(names)) != len(names):
            raise FormatError("a shard is listed twice")

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def root(self) -> str:
        """Return where the split's folders ``data/`` and ``index/`` lie inside the data set: "" but for a few moments.

        While a split is overwritten, the new one grows in a folder of its own. The manifest names it there from the
        moment it is whole until its files are in their usual places, so that readers see the old or the new split,
        never some of each.
        """
        return self.shards[0].name.rpartition("data/")[0] if self.shards else ""

    def index_name(self, split: str) -> str:
        """Return where the index of this split lies inside the data set.

        Example:
            >>> from walloc_data import LatentDataset
            >>> LatentDataset("my-latents").record.index_name("train")
            'index/train.parquet'
        """
        return self.root + index_name(split)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> Self:
        if not isinstance(value, Mapping):
            raise FormatError(f"{where}: expected an object, found {type(value).__name__}")
        shards, statistics = value.get("shards"), value.get("statistics")
        if not isinstance(shards, list):
            raise FormatError(f"{where}: shards must be a list")
        parsed = dict(value)
        parsed["shards"] = tuple(
            ShardRecord.from_dict(shard, where=f"{where}: shard {i}") for i, shard in enumerate(shards)
        )
        parsed["statistics"] = ChannelStatistics.from_dict(
            statistics if isinstance(statistics, Mapping) else {}, where=f"{where}: statistics"
        )
        return super().from_dict(parsed, where=where)


@dataclass(frozen=True)
class Manifest(_Record):
    """`walloc.json`: what a reader must know before it opens a shard.

    Example:
        >>> from pathlib import Path
        >>> from walloc_data import Manifest
        >>> manifest = Manifest.from_json(Path("my-latents/walloc.json").read_bytes(), where="walloc.json")
        >>> manifest.class_names, manifest.settings.size_px, manifest.codec.name
        (('cat', 'coffee'), 96, 'rgb-16x-v1')
        >>> manifest.split("train", where="walloc.json").num_samples
        8
        >>> manifest.held_out_split(where="walloc.json")
        Traceback (most recent call last):
        walloc_data.errors.FormatError: walloc.json: no split to validate on; it has ['train']: ...
    """

    codec: CodecSpec
    settings: EncodeSettings
    class_names: tuple[str, ...] | None
    splits: Mapping[str, SplitRecord]
    written_by: Mapping[str, str]  # versions of walloc_data and libwebp: bytes, not pixels, may depend on them

    def __post_init__(self) -> None:
        if self.class_names is not None and not (
            isinstance(self.class_names, tuple) and all(isinstance(name, str) for name in self.class_names)
        ):
            raise FormatError("class_names must be a list of strings or null")
        for split, record in self.splits.items():
            check_name(split, what="split", where="manifest")
            rows = record.statistics.counts
            if len(rows) != self.codec.latent_dim or len(rows[0]) != 2**self.codec.latent_bits:
                raise FormatError(
                    f"split {split!r}: the statistics do not fit the codec's {self.codec.latent_dim} channels"
                )

    def split(self, name: str, *, where: str) -> SplitRecord:
        """The named split, or an error that lists the ones there are."""
        if name not in self.splits:
            raise FormatError(f"{where}: no split {name!r}; it has {sorted(self.splits)}")
        return self.splits[name]

    def held_out_split(self, name: str | None = None, *, where: str) -> str:
        """The name of the split to validate on: `name`, else the first there is of val, validation, valid, dev, test.

        Raises:
            FormatError: there is none; lists the ones there are.
        """
        if name is None:
            name = next((split for split in HELD_OUT_SPLITS if split in self.splits), None)
        if name is None:
            raise FormatError(
                f"{where}: no split to validate on; it has {sorted(self.splits)}: encode one, or name one of these"
            )
        self.split(name, where=where)
        return name

    def to_json(self) -> str:
        """The bytes of `walloc.json`: the same for equal manifests."""
        head: dict[str, Any] = {"format": "walloc_data", "format_version": FORMAT_VERSION}
        value = head | self.to_dict()
        for split, record in self.splits.items():
            # Derived, but a reader without this package wants them spelled out.
            value["splits"][split]["statistics"] |= {
                "mean": record.statistics.mean,
                "std": record.statistics.std,
            }
        return dump_json(value)

    @classmethod
    def from_json(cls, data: bytes | str, *, where: str) -> Self:
        """Parse and check `walloc.json`. `where` is the path or URL that errors name."""
        value = load_json(data, where=where)
        if value.pop("format", None) != "walloc_data":
            raise FormatError(f"{where}: not a walloc_data manifest")
        if (version := value.pop("format_version", None)) != FORMAT_VERSION:
            raise FormatError(
                f"{where}: format version {version!r}; this walloc_data reads version {FORMAT_VERSION}: upgrade it"
            )
        splits = value.get("splits")
        if not isinstance(splits, dict):
            raise FormatError(f"{where}: splits must be an object")
        for record in splits.values():
            if isinstance(record, dict) and isinstance(record.get("statistics"), dict):
                record["statistics"] = {"counts": record["statistics"].get("counts")}
        value["codec"] = CodecSpec.from_dict(value.get("codec") or {}, where=f"{where}: codec")
        value["settings"] = EncodeSettings.from_dict(value.get("settings") or {}, where=f"{where}: settings")
        value["splits"] = {
            name: SplitRecord.from_dict(record, where=f"{where}: split {name!r}") for name, record in splits.items()
        }
        return super().from_dict(value, where=where)
