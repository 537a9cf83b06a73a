"""Reading of the samples of finished shards, and rewriting with other keys and labels."""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from walloc_data.convert.tar import BLOCK_BYTES, TarWriter, header
from walloc_data.errors import CorruptShardError, FormatError
from walloc_data.format import ShardRecord, sample_key

__all__ = ["Change", "MadeShard", "check_shard", "rewrite_shard", "samples_of"]

_MAX_MEMBER_BYTES = 2**31
_CHUNK_BYTES = 2**20

Members = list[tuple[str, bytes]]  # of one sample: (suffix after the key, bytes)


@dataclass(frozen=True)
class Change:
    """Change of samples that move to another split."""

    offset: int = 0  # added to positions in the source
    labels: Mapping[int, int] | None = None  # old label to new; None: labels stay
    new_keys: bool = False  # new keys by the new positions; else unchanged

    def label(self, label: int | None, *, context: str) -> int | None:
        """Return the new label of a sample.

        Raises:
            FormatError: the label is not the number of a class.
        """
        if label is None or self.labels is None:
            return label
        if label not in self.labels:
            raise FormatError(f"{context}: label {label} is not the number of a class. Nothing was changed")
        return self.labels[label]


@dataclass(frozen=True)
class MadeShard:
    """Rewritten shard, with the changes of its rows in the index."""

    record: ShardRecord
    md5: str
    changes: dict[str, list[Any]]  # columns of the index, by row


def check_shard(file: Path, shard: ShardRecord, *, context: str) -> str:
    """Check the length and SHA-256 of a shard; return its MD5, for wids.

    Raises:
        CorruptShardError: the shard does not match its record.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    num_bytes = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            sha256.update(chunk)
            md5.update(chunk)
            num_bytes += len(chunk)
    if (num_bytes, sha256.hexdigest()) != (shard.num_bytes, shard.sha256):
        raise CorruptShardError(
            f"{context}: does not match the manifest ({num_bytes} of {shard.num_bytes} bytes): repair the data set "
            "first; `walloc-data verify` lists all damage. Nothing was changed"
        )
    return md5.hexdigest()


def samples_of(
    file: Path, rows: Sequence[Mapping[str, Any]], *, context: str
) -> Iterator[tuple[Mapping[str, Any], Members]]:
    """Yield each row of the index with its sample's members, in the shard's order.

    Raises:
        CorruptShardError: the shard does not have these samples.
    """
    with file.open("rb") as opened:
        name, waiting = _next_header(opened, context)
        for row in rows:
            key, members = row["key"], Members()
            while name is not None and name.partition(".")[0] == key:
                if waiting > _MAX_MEMBER_BYTES or len(data := opened.read(waiting)) != waiting:
                    raise CorruptShardError(f"{context}: {name} ends early")
                opened.seek(-waiting % BLOCK_BYTES, 1)
                members.append((name[len(key) :], data))
                name, waiting = _next_header(opened, context)
            if not members or members[0][0] != ".webp" or not _is_whole(members[0][1], row.get("crc32")):
                raise CorruptShardError(f"{context}: sample {key} differs from the index")
            yield row, members
        if name is not None:
            raise CorruptShardError(f"{context}: {name} is not in the index")


def _is_whole(webp: bytes, crc32: int | None) -> bool:
    return crc32 is None or zlib.crc32(webp) == crc32


def _next_header(file: BinaryIO, context: str) -> tuple[str | None, int]:
    """Return the name and length in bytes of the next member; None and 0 at the end."""
    block = file.read(BLOCK_BYTES)
    if not any(block):
        return None, 0
    try:
        name, num_bytes = block[:100].rstrip(b"\0").decode("ascii"), int(block[124:135], 8)
        if header(name, num_bytes) == block:
            return name, num_bytes
    except ValueError:
        pass
    raise CorruptShardError(f"{context}: no valid header at byte {file.tell() - BLOCK_BYTES}")


def rewrite_shard(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    target: Path,
    *,
    name: str,
    context: str,
    change: Change,
    keep: Callable[[Mapping[str, Any]], bool] = lambda row: True,
    dropped: Callable[[bytes], None] = lambda webp: None,
) -> MadeShard | None:
    """Write some samples of a shard as a new shard, without decoding.

    Args:
        file: the shard.
        rows: its rows of the index.
        target: the file to write.
        name: path of the new shard in its data set.
        keep: function of a row that returns whether its sample is written.
        dropped: receives the packed latent of each other sample.

    Returns:
        The shard; None, without a file, if no sample is kept.

    Raises:
        CorruptShardError: the shard does not have these samples.
        FormatError: a label is not the number of a class.
    """
    columns = ("key", "label", "source_index", "offset", *(("mirror_offset",) if "mirror_offset" in rows[0] else ()))
    changes: dict[str, list[Any]] = {column: [] for column in columns}
    with TarWriter(target) as tar:
        for row, members in samples_of(file, rows, context=context):
            if not keep(row):
                dropped(members[0][1])
                continue
            index = row["source_index"] + change.offset
            key = sample_key(index) if change.new_keys else row["key"]
            label = change.label(row["label"], context=f"{context}: sample {row['key']}")
            found = [
                (suffix, _changed(suffix, data, label=label, index=index if change.new_keys else None))
                for suffix, data in members
            ]
            offsets = dict(zip((suffix for suffix, _ in found), tar.add([(key + s, d) for s, d in found]), strict=True))
            values = (key, label, index, offsets[".webp"], offsets.get(".mirror.webp"))
            for column, value in zip(columns, values, strict=False):
                changes[column].append(value)
    if not changes["key"]:
        target.unlink()
        return None
    record = ShardRecord(name, len(changes["key"]), tar.num_bytes, tar.sha256)
    return MadeShard(record, tar.md5, changes)


def _changed(suffix: str, data: bytes, *, label: int | None, index: int | None) -> bytes:
    """Return a member with the sample's new label and position in the source."""
    if suffix == ".cls":
        return str(label).encode()
    if suffix == ".json" and index is not None:
        value = json.loads(data)
        if isinstance(value, dict):
            return json.dumps(value | {"source_index": index}, separators=(",", ":")).encode()
    return data
