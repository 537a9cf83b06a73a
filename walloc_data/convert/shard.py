"""Writing of a shard: read, decode, encode, pack, write. The bytes depend only on the samples and the plan.

Pictures are encoded in windows, to bound memory, and those of one shape in batches. The grouping does not affect the
latents, because `codec.encode` is exact.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from walloc_data.convert.adopted import as_stored, read_packed
from walloc_data.convert.journal import Failure, ShardDone
from walloc_data.convert.plan import Plan, ShardId
from walloc_data.convert.rows import ShardRows, columns_that_fit
from walloc_data.convert.tar import TarWriter
from walloc_data.convert.units import OnError, machine_error
from walloc_data.errors import ConversionError
from walloc_data.format import (
    ChannelStatistics,
    CodecSpec,
    ShardRecord,
    finite_json,
    padding_for,
    shard_name,
)
from walloc_data.latents import encode_webps, pack, unpack
from walloc_data.pictures import PictureError, crop_box, decode_picture, kept_picture, resize_and_crop
from walloc_data.sources import Sample, Source
from walloc_data.storage import Store
from walloc_data.webp import MAX_SIDE

__all__ = ["WINDOW_PICTURES", "ShardWriter", "StageStats", "count_levels"]

Pixels = npt.NDArray[np.uint8]

_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

MAX_LEFT_OUT = 50  # kinds of lost parts that are counted separately, per shard
WINDOW_PICTURES = 128
WINDOW_PIXELS = 2**22  # a larger picture forms its own window


@dataclass
class StageStats:
    """Counts and seconds of each stage since the last report."""

    samples: int = 0
    failures: int = 0
    source_bytes: int = 0
    pixels: int = 0
    webp_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: "StageStats") -> None:
        """Add other counts."""
        for name in ("samples", "failures", "source_bytes", "pixels", "webp_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass
class _Item:
    """Picture of a window, and its position."""

    key: str
    index: int  # the index that `Plan.key` uses
    sample: Sample
    pixels: Pixels  # (H, W, 3); of an adopted packed latent, its values
    size: tuple[int, int]  # (width, height) of the encoded pixels
    source_size: tuple[int, int]  # (width, height), upright, before resizing
    box: tuple[int, int, int, int]  # (left, top, right, bottom) of the crop, in pixels of the source
    columns: Mapping[str, Any]  # of the source, as in the index
    pictures: Mapping[str, bytes]  # second pictures to store, by name
    files: list[bytes] = field(default_factory=list)  # the packed latent, and the mirrored one


class ShardWriter:
    """Writer of the shards of one plan; one per process.

    Args:
        plan: plan of the conversion.
        source: source of the pictures.
        codec: loaded codec with ``encode(images) -> latents``.
        store: data set in which shards are published.
        staging: local folder for unfinished files; on the file system of the store if that is local.
        on_error: "stop" raises an error at a broken picture; otherwise it is recorded as a failure.
        device: device of the codec.
        alive: called between windows; an exception stops the work before anything is published.
    """

    def __init__(
        self,
        plan: Plan,
        source: Source,
        codec: Any,
        *,
        store: Store,
        staging: Path,
        on_error: OnError = "record",
        device: str = "cpu",
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        import torch  # imported here, because verification needs no torch

        self.plan, self.source, self.codec, self.store, self.staging = plan, source, codec, store, staging
        self.on_error, self.device, self.alive = on_error, torch.device(device), alive

    def _write(
        self,
        shard: ShardId,
        local: Path,
        samples: Iterable[tuple[int, Sample]],
        *,
        first: int,
        report: Callable[[StageStats], None],
    ) -> tuple[ShardDone, bytes]:
        plan, spec = self.plan, self.plan.codec
        rows = ShardRows(plan.columns, plan.column_types, mirror=plan.settings.mirror)
        failures: list[Failure] = []
        counts = np.zeros((spec.latent_dim, 2**spec.latent_bits), dtype=np.int64)
        shapes: set[tuple[int, ...]] = set()
        total, left_out, largest = StageStats(), Counter[str](), 0
        with TarWriter(local) as tar:
            for items, failed, stats in self._windows(shard.unit, samples, left_out):
                self.alive()
                clock = _Clock(stats)
                failures.extend(failed)
                self._encode(items, counts, shapes, clock)
                for item in items:
                    self._append(tar, item, rows, unit=shard.unit)
                    largest = max(largest, item.source_size[0] * item.source_size[1])
                    stats.samples += 1
                    stats.pixels += item.size[0] * item.size[1]
                    stats.webp_bytes += len(item.files[0])
                clock.stop("tar")
                stats.failures = len(failed)
                total.add(stats)
                report(stats)
        record = None
        if total.samples:
            record = ShardRecord(shard_name(plan.split, *shard), total.samples, tar.num_bytes, tar.sha256)
        parquet, columns = rows.to_parquet()
        done = ShardDone(
            shard=record,
            md5=tar.md5 if record else None,
            first=first,
            last=first + total.samples + total.failures,
            failures=tuple(failures),
            latent_shape=shapes.pop() if len(shapes) == 1 else None,
            statistics=ChannelStatistics(tuple(map(tuple, counts.tolist()))),
            num_pixels=total.pixels,
            source_bytes=total.source_bytes,
            webp_bytes=total.webp_bytes,
            left_out=dict(left_out),
            largest_picture=largest,
            columns=columns,
        )
        return done, parquet

    def _windows(
        self, unit: int, samples: Iterable[tuple[int, Sample]], left_out: Counter[str]
    ) -> Iterator[tuple[list[_Item], list[Failure], StageStats]]:
        """Yield windows of decoded pictures, with failures; count lost parts of pictures in `left_out`."""
        items: list[_Item] = []
        failed: list[Failure] = []
        pixels, stats = 0, StageStats()
        clock = _Clock(stats)
        for index, sample in samples:
            clock.stop("read")
            stats.source_bytes += len(sample.data)
            _count(left_out, sample.left_out)
            key = self.plan.key(unit, index)
            try:
                if sample.problem is not None:
                    raise PictureError(sample.problem)
                lost: list[str] = []
                columns, large = columns_that_fit(sample.columns)
                if not self.plan.settings.sample_json:
                    lost += [f"value of column {name!r}, over 64 KiB (--sample-json keeps it)" for name in large]
                looked = self._read_pixels(sample, lost, clock)
                item = _Item(key, index, sample, *looked, columns, self._kept_pictures(sample, looked[2]))
                _count(left_out, lost)
                clock.stop("resize")
            except (MemoryError, OSError) as error:
                raise machine_error(f"{sample.name} (source index {index})", error) from error
            except PictureError as error:
                failure = Failure(key, sample.name, index, str(error))
                if self.on_error == "stop":
                    raise ConversionError(
                        f"{failure}. Stopped because of on_error='stop'; 'record' lists such pictures and continues"
                    ) from error
                failed.append(failure)
                clock.stop("decode")
                continue
            area = item.size[0] * item.size[1]
            if items and pixels + area > WINDOW_PIXELS:
                yield items, failed, stats
                items, failed, pixels, stats = [], [], 0, StageStats()
                clock = _Clock(stats)
            items.append(item)
            pixels += area
            if len(items) + len(failed) >= WINDOW_PICTURES:
                yield items, failed, stats
                items, failed, pixels, stats = [], [], 0, StageStats()
                clock = _Clock(stats)
        if items or failed:
            yield items, failed, stats

    def _read_pixels(
        self, sample: Sample, lost: list[str], clock: "_Clock"
    ) -> tuple[Pixels, tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
        """Return the pixels to encode, their size, the size of the source picture, and the crop box in it.

        Raises:
            PictureError: the picture cannot be encoded.
        """
        if self.plan.adopts:
            packed, size = read_packed(sample.data, spec=self.plan.codec)
            clock.stop("decode")
            return packed, size, size, (0, 0, *size)
        settings = self.plan.settings
        image = decode_picture(sample.data, settings=settings, left_out=lost)
        clock.stop("decode")
        pixels = resize_and_crop(image, settings=settings)
        _check_packed_sides(pixels, spec=self.plan.codec)
        size = pixels.shape[1], pixels.shape[0]
        return pixels, size, image.size, crop_box(image.size, settings=settings)

    def _kept_pictures(self, sample: Sample, size: tuple[int, int]) -> dict[str, bytes]:
        """Return the second pictures of a sample as PNG files, for a first picture of (width, height)."""
        kept = {}
        for name in self.plan.pictures:
            if name in sample.pictures:
                try:
                    kept[name] = kept_picture(sample.pictures[name], size=size, settings=self.plan.settings)
                except PictureError as error:
                    raise PictureError(f"its {name}: {error}") from error
        return kept

    def _encode(
        self, items: list[_Item], counts: npt.NDArray[np.int64], shapes: set[tuple[int, ...]], clock: "_Clock"
    ) -> None:
        """Encode all items, those of one shape in one batch, and set their files."""
        if self.plan.adopts:
            self._adopt(items, counts, shapes)
            clock.stop("count")
            return
        import torch

        groups: dict[tuple[int, ...], list[_Item]] = {}
        for item in items:
            groups.setdefault(item.pixels.shape, []).append(item)
        spec = self.plan.codec
        for group in groups.values():
            for mirrored in (False, True) if self.plan.settings.mirror else (False,):
                pictures = [item.pixels[:, ::-1] if mirrored else item.pixels for item in group]
                batch = _padded(pictures, multiple=spec.cell_px)
                clock.stop("pad")
                images = torch.from_numpy(batch).permute(0, 3, 1, 2)  # (N, 3, H, W), a view
                latents = self.codec.encode(images.to(self.device)).cpu()  # (N, 12, H/8, W/8)
                clock.stop("encode")
                packed = pack(latents, colours=spec.channels)
                clock.stop("pack")
                # Not in threads, even with a GPU: the writer holds the GIL.
                for item, data in zip(group, encode_webps(packed, effort=self.plan.settings.webp_effort), strict=True):
                    item.files.append(data)
                clock.stop("webp")
                if not mirrored:
                    shapes.add(tuple(latents.shape[1:]))
                    count_levels(latents.numpy(), counts)
                    clock.stop("count")

    def _adopt(self, items: list[_Item], counts: npt.NDArray[np.int64], shapes: set[tuple[int, ...]]) -> None:
        """Set the file of every item to the adopted packed latent."""
        spec = self.plan.codec
        for item in items:
            item.files.append(as_stored(item.sample.data, item.pixels, effort=self.plan.settings.webp_effort))
            latent = unpack(item.pixels, latent_dim=spec.latent_dim)
            shapes.add(latent.shape)
            count_levels(latent[None], counts)

    def _append(self, tar: TarWriter, item: _Item, rows: ShardRows, *, unit: int) -> None:
        """Write the members of one sample, and add its row to the index."""
        width, height = item.size
        sample, spec = item.sample, self.plan.codec
        members = [(f"{item.key}.webp", item.files[0])]
        if self.plan.settings.mirror:
            members.append((f"{item.key}.mirror.webp", item.files[1]))
        if self.plan.labelled:
            members.append((f"{item.key}.cls", str(sample.label).encode()))
        if self.plan.settings.sample_json or not spec.is_usual:
            meta = {
                "height": height,
                "width": width,
                "padding": padding_for(height, width, multiple=spec.cell_px),
                # Not known yet for samples of a fragment.
                **({"source_index": item.index} if self.plan.num_fragments is None else {}),
                "name": sample.name,
            }
            if self.plan.columns:
                meta["columns"] = finite_json({name: sample.columns.get(name) for name in self.plan.columns})
            members.append((f"{item.key}.json", _to_json(meta).encode()))
        members += [(f"{item.key}.{name}.png", data) for name, data in item.pictures.items()]
        offsets = tar.add(members)
        place = {
            "key": item.key,
            "shard": unit,
            "label": sample.label,
            "height": height,
            "width": width,
            "source_index": item.index,
            "source_name": sample.name,
            "source_width": item.source_size[0],
            "source_height": item.source_size[1],
            **dict(zip(("crop_left", "crop_top", "crop_right", "crop_bottom"), item.box, strict=True)),
        }
        files = list(zip(offsets, item.files, strict=False))
        rows.append(place, files, item.columns, version=sample.version, data=sample.data)


def _count(left_out: Counter[str], names: Iterable[str]) -> None:
    """Count names; their number is limited because a source may contain arbitrarily many."""
    for name in names:
        left_out[name if name in left_out or len(left_out) < MAX_LEFT_OUT else "other things"] += 1


class _Clock:
    """Stopwatch that adds the time since its last call to a stage."""

    def __init__(self, stats: StageStats) -> None:
        self._seconds = stats.seconds
        self._last = time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _check_packed_sides(pixels: Pixels, *, spec: CodecSpec) -> None:
    """Raise PictureError if a side of the packed latent exceeds WebP's limit."""
    height, width = pixels.shape[:2]
    n = math.isqrt(spec.tiles)
    _, h, w = spec.latent_shape(height, width)
    if n * max(h, w) > MAX_SIDE:
        raise PictureError(
            f"{width} x {height} pixels: its packed latent would have {n * w} x {n * h} pixels, and WebP allows "
            f"{MAX_SIDE} a side; resize the pictures (--size)"
        )


def _padded(pictures: list[Pixels], *, multiple: int) -> Pixels:
    """Pad (N, H, W, 3) by reflection to multiples of a cell, as specified by `format.padding_for`."""
    height, width = pictures[0].shape[:2]
    left, top, right, bottom = padding_for(height, width, multiple=multiple)
    if not (left or top or right or bottom):
        return np.stack(pictures)
    return np.stack([np.pad(picture, ((top, bottom), (left, right), (0, 0)), mode="reflect") for picture in pictures])


def count_levels(latents: npt.NDArray[np.int8], counts: npt.NDArray[np.int64]) -> None:
    """Add (N, C, h, w) latents to the (C, 2^bits) histograms of values."""
    dim, values = counts.shape
    levels = latents.astype(np.int16) + values // 2
    for channel in range(dim):
        counts[channel] += np.bincount(levels[:, channel].ravel(), minlength=values)
