"""Verification of one split: index, shards, failures, statistics, and completeness."""

import hashlib
import json
import re
import zlib
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from walloc_data.convert.inspect import failure_lines, index_rows, local_file
from walloc_data.convert.progress import ProgressMeter
from walloc_data.convert.shard import count_levels
from walloc_data.convert.tar import BLOCK_BYTES, header
from walloc_data.errors import FormatError, StorageError, WallocDataError
from walloc_data.files import check_regular, open_regular
from walloc_data.format import (
    Manifest,
    ShardRecord,
    SplitRecord,
    fragment_key,
    padding_for,
    sample_key,
)
from walloc_data.latents import decode_webp, unpack
from walloc_data.pictures import crop_box, encoded_size
from walloc_data.pictures.kept import png_size
from walloc_data.storage import ShardFile, Store

__all__ = ["SplitCheck"]

MAX_PROBLEMS = 100
MAX_MEMBER_BYTES = 2**28  # of a packed latent
MAX_END_BYTES = 2**20  # of zeros after the last member
MIN_FAILURE_BYTES = 16  # per line of the failures
_PLACE = re.compile(r"-([0-9]{5,12})-([0-9]{3,12})\.tar$")
_FRAGMENT_KEY = re.compile(r"([0-9]{5,12})-([0-9]{7,15})")


class Positions:
    """Set of positions in a source, marked one by one.

    Args:
        num_items: number of pictures in the source.
        num_removed: number of pictures removed later (which ones is not recorded).
        sparse: the number of items is not trusted. As with removed pictures, memory then grows with the number of
            marked positions, not with `num_items`.
    """

    def __init__(self, num_items: int, *, num_removed: int, sparse: bool = False) -> None:
        self.num_items, self.num_removed = num_items, num_removed
        self._sparse = sparse or num_removed > 0
        self._seen = np.zeros(0 if self._sparse else num_items, dtype=bool)
        self._marked = array("q")

    def mark(self, position: int) -> str | None:
        """Mark a position; return the problem with it, or None."""
        if not 0 <= position < self.num_items:
            return f"source index {position} is not in [0, {self.num_items})"
        if self._sparse:
            self._marked.append(position)
        elif self._seen[position]:
            return f"source index {position} occurs twice"
        else:
            self._seen[position] = True
        return None

    def problems(self, *, num_unread: int) -> Iterator[str]:
        """Yield the problems with the set of all positions.

        Args:
            num_unread: number of samples and failures that could not be read, so that their positions are not marked.
        """
        if not self._sparse:
            number = int((~self._seen).sum())
            if number > num_unread:
                first = int(np.argmin(self._seen))
                if num_unread:
                    yield f"{number - num_unread} pictures of the source are neither samples nor failures"
                    return
                yield f"{number} pictures of the source are neither samples nor failures, the first at {first}"
            return
        marked = np.sort(np.frombuffer(self._marked, dtype=np.int64)) if self._marked else np.zeros(0, np.int64)
        twice = np.flatnonzero(marked[1:] == marked[:-1])
        if len(twice):
            yield f"source index {int(marked[twice[0]])} occurs twice"
        missing = self.num_items - (len(marked) - len(twice))
        if missing > self.num_removed:
            missing = max(self.num_removed, missing - num_unread)
        if missing != self.num_removed:
            yield (
                f"{missing} pictures of the source are neither samples nor failures; {self.num_removed} were removed"
            )


class SplitCheck:
    """Verification of one split; its generators yield problems."""

    def __init__(self, store: Store, manifest: Manifest, name: str, record: SplitRecord, meter: ProgressMeter) -> None:
        self.store, self.manifest, self.name, self.record, self.meter = store, manifest, name, record, meter
        num_items = record.source.get("num_items")
        if type(num_items) is not int or num_items < 0:
            raise FormatError(f"{store.url}: split {name!r}: source.num_items must be an integer")
        self.num_items: int = num_items
        self.in_fragments = record.source.get("num_fragments") is not None
        removed = record.source.get("num_removed", 0)
        if type(removed) is not int or not 0 <= removed <= self.num_items:
            raise FormatError(f"{store.url}: split {name!r}: source.num_removed must be at most num_items")
        self.num_removed: int = removed
        self.is_merged = record.source.get("kind") == "merged"
        self.positions = Positions(0, num_removed=0)
        self.counts = np.zeros(np.shape(record.statistics.counts), dtype=np.int64)
        self.shapes: set[tuple[int, ...]] = set()
        self.num_done = 0
        self.some_unread = False  # a shard or the index could not be read to its end
        self.num_failures_unread = 0

    def check(self) -> Iterator[str]:
        context = self.store.location(self.record.index_name(self.name))
        most, is_short = self._most_items()
        if self.num_items > most and not (self.num_removed or is_short):
            yield (
                f"{self.store.url}: split {self.name!r}: source.num_items is {self.num_items}, but its files can hold "
                f"at most {most}"
            )
        counted = self.record.num_samples + self.record.num_failures
        if self.num_items - self.num_removed != counted:
            removed = f", of which {self.num_removed} were removed" if self.num_removed else ""
            yield (
                f"{self.store.url}: split {self.name!r}: source.num_items is {self.num_items}{removed}, but the "
                f"manifest counts {counted} samples and failures"
            )
        sparse = self.num_removed > 0 or is_short
        num_items = self.num_items if sparse else min(self.num_items, most)
        self.positions = Positions(num_items, num_removed=self.num_removed, sparse=sparse)
        try:
            with local_file(self.store, self.record.index_name(self.name)) as file:
                rows = index_rows(
                    file, mirror=self.manifest.settings.mirror, columns=self.record.columns, context=context
                )
                for position, shard in enumerate(self.record.shards):
                    mine = list(islice(rows, min(shard.num_samples, shard.num_bytes // (2 * BLOCK_BYTES))))
                    if len(mine) < shard.num_samples:
                        yield f"{context}: ends inside {shard.name}, after {self.num_done + len(mine)} rows"
                    yield from self._shard(position, shard, mine)
                if next(rows, None) is not None:
                    yield f"{context}: has more rows than the manifest's {self.record.num_samples} samples"
                if self.record.index_sha256 is not None and _sha256(file) != self.record.index_sha256:
                    yield f"{context}: its SHA-256 differs from the manifest"
        except (FormatError, StorageError) as error:
            self.some_unread = True
            yield str(error)
        yield from self._failures()
        yield from self._totals()

    def _most_items(self) -> tuple[int, bool]:
        """Return an upper bound of the split's pictures by file sizes, and whether files are absent or too short.

        Each picture takes two headers and data, or a line.
        """
        folders = {"data", f"{self.record.root}data"}
        sizes = {name: size for folder in folders for name, size in self.store.sizes(folder).items()}
        num_bytes = sum(sizes.values())
        is_short = any(sizes.get(shard.name, 0) < shard.num_bytes for shard in self.record.shards)
        try:
            num_failure_bytes = self.store.num_bytes(f"{self.record.root}failures/{self.name}.jsonl")
        except StorageError:  # reported by `_failures`
            num_failure_bytes, is_short = 0, True
        return num_bytes // (2 * BLOCK_BYTES) + num_failure_bytes // MIN_FAILURE_BYTES + 1, is_short

    def _mark(self, source_index: int, *, what: str) -> Iterator[str]:
        if problem := self.positions.mark(source_index):
            yield f"{what}: {problem}"

    def _failures(self) -> Iterator[str]:
        path = f"{self.record.root}failures/{self.name}.jsonl"
        context = self.store.location(path)
        number = 0
        try:
            with local_file(self.store, path) as file:
                for number, line in enumerate(failure_lines(file, context=context), start=1):
                    yield from self._mark(line["source_index"], what=f"{context}: line {number}")
        except WallocDataError as error:
            self.num_failures_unread = max(0, self.record.num_failures - number)
            yield str(error)
        if number != self.record.num_failures:
            yield f"{context}: {number} lines, but the manifest counts {self.record.num_failures} failures"

    def _totals(self) -> Iterator[str]:
        context = f"{self.store.url}: split {self.name!r}"
        # Pictures whose records could not be read are damaged, not missing.
        num_unread = self.num_failures_unread + (self.record.num_samples - self.num_done if self.some_unread else 0)
        yield from (f"{context}: {problem}" for problem in self.positions.problems(num_unread=num_unread))
        expected = self.shapes.pop() if len(self.shapes) == 1 else None
        if self.num_done == self.record.num_samples and expected != self.record.latent_shape:
            yield f"{context}: latent_shape is {self.record.latent_shape}, but the latents have {expected}"
        if self.num_done == self.record.num_samples and not np.array_equal(
            self.counts, np.asarray(self.record.statistics.counts)
        ):
            channel = int(np.argmax((self.counts != np.asarray(self.record.statistics.counts)).any(axis=1)))
            yield f"{context}: the statistics differ from those of the latents, first in channel {channel}"

    def _shard(self, position: int, shard: ShardRecord, rows: list[dict[str, Any]]) -> Iterator[str]:
        context = self.store.location(shard.name)
        try:
            with local_file(self.store, shard.name, max_bytes=shard.num_bytes + MAX_END_BYTES) as path:
                num_bytes = check_regular(path)
                if num_bytes != shard.num_bytes:
                    yield f"{context}: {num_bytes} bytes, but the manifest says {shard.num_bytes}"
                if num_bytes == 0 or num_bytes > shard.num_bytes:
                    self.some_unread = True
                    return
                data = ShardFile(path, num_bytes=num_bytes, context=context)
                if _sha256(path) != shard.sha256:
                    yield f"{context}: its SHA-256 differs from the manifest"
                yield from self._members(context, position, data, rows)
        except (FormatError, StorageError) as error:
            self.some_unread = True
            yield str(error)
        except OSError as error:
            self.some_unread = True
            yield f"{context}: cannot be read ({error.strerror or error})"

    def _members(self, context: str, position: int, data: ShardFile, rows: list[dict[str, Any]]) -> Iterator[str]:
        """Check the members in the order of the index; stop at the first difference, as later offsets are unknown."""
        offset = 0
        for row in rows:
            self.meter.tick(num_done=self.num_done, num_failures=0)
            what = f"{context}: sample {row['key']}"
            try:
                offset = self._sample(what, position, data, row, offset)
            except FormatError as error:
                self.some_unread = True
                yield str(error)
                return
            yield from self._mark(row["source_index"], what=what)
            self.num_done += 1
        rest = len(data) - offset
        if rest < 2 * BLOCK_BYTES or rest > MAX_END_BYTES or any(data.read(offset, rest)):
            yield f"{context}: unexpected data after the last sample"

    def _sample(self, what: str, position: int, data: ShardFile, row: dict[str, Any], offset: int) -> int:
        spec, settings, record = self.manifest.codec, self.manifest.settings, self.record
        if self._by_fragment(row["key"]):
            _check_key(what, row["key"], record.shards[position], settings.samples_per_shard)
        else:
            _same(what, "key", row["key"], sample_key(row["source_index"]))
        _same(what, "shard", row["shard"], position)
        height, width = row["height"], row["width"]
        if not (1 <= height <= 2**20 and 1 <= width <= 2**20):
            raise FormatError(f"{what}: {height} x {width} pixels in the index")
        shape = spec.latent_shape(height, width)
        for mirrored in (False, True) if settings.mirror else (False,):
            name = f"{row['key']}.mirror.webp" if mirrored else f"{row['key']}.webp"
            prefix = "mirror_" if mirrored else ""
            start, member, offset = _member(what, data, name, offset)
            _same(what, f"{prefix}offset", row[f"{prefix}offset"], start)
            _same(what, f"{prefix}length", row[f"{prefix}length"], len(member))
            if (checksum := row.get(f"{prefix}crc32")) is not None:
                _same(what, f"{prefix}crc32", checksum, zlib.crc32(member))
            latent = unpack(_picture(what, member, spec.channels), latent_dim=spec.latent_dim)
            _same(what, "latent shape", latent.shape, shape)
            if not mirrored:
                count_levels(latent[None], self.counts)
        self.shapes.add(shape)
        if record.labelled:
            _, member, offset = _member(what, data, f"{row['key']}.cls", offset)
            _same(what, "label", member.decode("ascii", "replace"), str(row["label"]))
            names = self.manifest.class_names
            if row["label"] is None or row["label"] < 0 or (names is not None and row["label"] >= len(names)):
                raise FormatError(f"{what}: label {row['label']} is not the number of a class")
        elif row["label"] is not None:
            raise FormatError(f"{what}: label {row['label']} in a split without labels")
        if record.columns is not None:
            _check_source_places(what, row)
            box = (row["crop_left"], row["crop_top"], row["crop_right"], row["crop_bottom"])
            size = encoded_size((row["source_width"], row["source_height"]), settings=settings)
            _same(what, "crop", box, crop_box((row["source_width"], row["source_height"]), settings=settings))
            _same(what, "size in pixels", (width, height), size)
        if settings.sample_json or _is_next(data, f"{row['key']}.json", offset):
            offset = self._json(what, data, row, offset)
        for picture in record.source.get("pictures", ()):
            if _is_next(data, name := f"{row['key']}.{picture}.png", offset):
                _, member, offset = _member(what, data, name, offset)
                _same(what, f"size of its {picture}", png_size(member), (width, height))
        return offset

    def _by_fragment(self, key: str) -> bool:
        """Return whether a key is from a source that is read in fragments; a merged split may have both kinds."""
        return self.in_fragments or (self.is_merged and "-" in key)

    def _json(self, what: str, data: ShardFile, row: dict[str, Any], offset: int) -> int:
        """Check the JSON of a sample, and return the offset of the next sample."""
        _, member, offset = _member(what, data, f"{row['key']}.json", offset)
        try:
            meta = json.loads(member)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{what}: its JSON cannot be read ({error})") from error
        height, width = row["height"], row["width"]
        for name, value in (
            ("height", height),
            ("width", width),
            ("source_index", None if self._by_fragment(row["key"]) else row["source_index"]),
            ("padding", list(padding_for(height, width, multiple=self.manifest.codec.cell_px))),
        ):
            _same(what, f"{name} in its JSON", meta.get(name) if isinstance(meta, dict) else None, value)
        return offset


def _check_source_places(what: str, row: dict[str, Any]) -> None:
    """Check that the crop lies inside the picture of the source."""
    for first, last, side in (("left", "right", "width"), ("top", "bottom", "height")):
        begin, end, length = row[f"crop_{first}"], row[f"crop_{last}"], row[f"source_{side}"]
        if None in (begin, end, length) or not 0 <= begin < end <= length:
            raise FormatError(f"{what}: its crop from {first} {begin} to {last} {end} is not inside {side} {length}")


def _is_next(data: ShardFile, name: str, offset: int) -> bool:
    """Return whether the next member has this name."""
    return data.read(offset, min(100, max(0, len(data) - offset))).rstrip(b"\0") == name.encode()


def _check_key(what: str, key: str, shard: ShardRecord, samples_per_shard: int) -> None:
    """Check that a key of a source in fragments has the unit of the shard, and a position that belongs to the shard."""
    place, found = _PLACE.search(shard.name), _FRAGMENT_KEY.fullmatch(key)
    if place is None or found is None or fragment_key(unit := int(found[1]), position := int(found[2])) != key:
        raise FormatError(f"{what}: its key or shard is not of a source that is read in fragments")
    if (unit, position // samples_per_shard) != (int(place[1]), int(place[2])):
        raise FormatError(f"{what}: its key belongs to another shard than {shard.name}")


def _picture(what: str, member: bytes, channels: int) -> Any:
    picture = decode_webp(member, context=what)
    return picture if channels == 3 else picture[..., :1]


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _same(what: str, name: str, found: object, expected: object) -> None:
    if found != expected:
        raise FormatError(f"{what}: {name} is {found!r}, expected {expected!r}")


def _member(what: str, data: ShardFile, name: str, offset: int) -> tuple[int, bytes, int]:
    """Return (offset, data, offset of the next header) of the next member, which must have this name."""
    block = data.read(offset, min(BLOCK_BYTES, max(0, len(data) - offset)))
    try:
        num_bytes = int(block[124:135], 8)
    except ValueError:
        raise FormatError(f"{what}: no header of {name} at byte {offset}") from None
    start = offset + BLOCK_BYTES
    if num_bytes > MAX_MEMBER_BYTES or start + num_bytes > len(data) or block != header(name, num_bytes):
        raise FormatError(f"{what}: no header of {name} at byte {offset}")
    return start, data.read(start, num_bytes), start + num_bytes + -num_bytes % BLOCK_BYTES
