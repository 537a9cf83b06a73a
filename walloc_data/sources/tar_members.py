"""Grouping of the members of a WebDataset tar into samples, by reading headers only, with detection of damage."""

import os
import re
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from walloc_data.errors import SourceError
from walloc_data.sources.reading import open_file, unreadable
from walloc_data.sources.stray import is_stray, listed, stray_note

__all__ = ["DamagedTarError", "Group", "TarScan", "groups", "groups_in", "members_of"]

MAX_HEADER_BYTES = 2**24  # of extended headers and long names
_META_MEMBER = re.compile(r"__[^/]*__(/|$)")  # names reserved by webdataset
# Exceptions of tarfile for damaged or hostile headers.
_HEADER_ERRORS = (
    tarfile.TarError,
    struct.error,
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError),
)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Group:
    """Adjacent members of one sample: extension to (offset, bytes) inside the tar."""

    key: str
    members: Mapping[str, tuple[int, int]]
    problem: str | None = None  # reason why the sample cannot be used


@dataclass
class TarScan:
    """Members of tars that do not belong to samples."""

    strays: Counter[str] = field(default_factory=Counter)  # by name
    special: Counter[str] = field(default_factory=Counter)  # links and the like, by kind
    folders: set[str] = field(default_factory=set)

    def notes(self) -> tuple[str, ...]:
        """Return notes on members that are left out, with numbers."""
        special = (f"left out: members that are no plain files: {listed(self.special)}",) if self.special else ()
        return stray_note(self.strays) + special


class DamagedTarError(SourceError):
    """Error for a tar that cannot be read to its end; samples before the damage are intact."""


class _TarBytes:
    """File for `tarfile`, with a limit on the bytes that a damaged header can request."""

    def __init__(self, read_at: Callable[[int, int], bytes], *, num_bytes: int) -> None:
        self._read_at, self.num_bytes, self._position = read_at, num_bytes, 0

    def read(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {num_bytes} bytes")
        num_bytes = max(0, min(num_bytes, self.num_bytes - self._position))
        data = self._read_at(self._position, num_bytes) if num_bytes else b""
        self._position += len(data)
        return data

    def seek(self, position: int) -> int:
        if not 0 <= position <= self.num_bytes:
            raise tarfile.ReadError("unexpected end of data")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


def groups(path: Path, *, context: str, scan: TarScan | None = None) -> Iterator[Group]:
    """Yield samples of one local tar, by reading headers only.

    A key is the path up to the first dot of its last part. Consecutive members of one key are one sample, as in
    webdataset; hidden and system files between them (`is_stray`) are left out. If an extension repeats, webdataset
    raises an error; here each repetition is a sample of its own with a `problem`.

    Raises:
        DamagedTarError: raised after the intact samples; a sample that may have lost members is left out.
        UnreadableError: the file cannot be read from the disk.
    """
    with _bytes_of(path, context=context) as data:
        yield from _groups(data, context=context, scan=scan if scan is not None else TarScan())


def members_of(path: Path, *, context: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a local tar, by reading headers only.

    Raises:
        DamagedTarError: raised after the intact members.
        UnreadableError: the file cannot be read from the disk.
    """
    with _bytes_of(path, context=context) as data:
        for member in _members(data, context=context):
            if isinstance(member, DamagedTarError):
                raise member
            yield member


@contextmanager
def _bytes_of(path: Path, *, context: str) -> Iterator[_TarBytes]:
    try:
        with open_file(path) as file:

            def read_at(start: int, num_bytes: int) -> bytes:
                file.seek(start)
                return file.read(num_bytes)

            yield _TarBytes(read_at, num_bytes=os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise unreadable(context, error) from error


def groups_in(
    read_at: Callable[[int, int], bytes], *, num_bytes: int, context: str, scan: TarScan | None = None
) -> Iterator[Group]:
    """Yield `groups` of a tar of `num_bytes` bytes, of which ``read_at(start, number)`` gives some."""
    data = _TarBytes(read_at, num_bytes=num_bytes)
    yield from _groups(data, context=context, scan=scan if scan is not None else TarScan())


def _groups(data: _TarBytes, *, context: str, scan: TarScan) -> Iterator[Group]:
    key, members, problem = "", dict[str, list[tuple[int, int]]](), None
    extensions: set[str] | None = None  # of the sample before
    for member in _members(data, context=context):
        if isinstance(member, DamagedTarError):
            if members and extensions == set(members):  # complete, compared with the previous sample
                yield from _split_repetitions(key, members, problem)
            elif members:
                member.args = (f"{member}. Its last sample, {key!r}, may have lost members, and is left out",)
            raise member
        name = _member_name(member, scan)
        if name is None:
            continue
        folder, _, last = name.rpartition("/")
        stem, dot, extension = last.partition(".")
        if not stem or not dot:
            continue
        this = f"{folder}/{stem}" if folder else stem
        if this != key and members:
            yield from _split_repetitions(key, members, problem)
            extensions, members, problem = set(members), {}, None
        key = this
        if member.issparse():
            problem = f"its member .{extension} is stored as a sparse file (tar --sparse), which is not read"
        members.setdefault(extension.lower(), []).append((member.offset_data, member.size))
    if members:
        yield from _split_repetitions(key, members, problem)


def _members(data: _TarBytes, *, context: str) -> Iterator[tarfile.TarInfo | DamagedTarError]:
    """Yield the members of a tar, then an error if it is damaged: `tarfile` treats damaged headers as the end."""

    def damaged(reason: object) -> DamagedTarError:
        return DamagedTarError(f"{context}: not a readable tar, or damaged: {reason}")

    head = data.read(8)
    data.seek(0)
    if kind := next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None):
        yield damaged(f"it is compressed ({kind}); compressed tars cannot be read by position: decompress them")
        return
    end = 0
    try:
        with tarfile.open(fileobj=cast(BinaryIO, data), mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header that it has seen
                end = member.offset_data + (0 if member.issparse() or not member.isreg() else member.size)
                if member.size < 0 or end > data.num_bytes:
                    yield damaged(
                        f"{member.name!r} should have {member.size} bytes from byte {member.offset_data} on, and the "
                        f"tar ends at byte {data.num_bytes}"
                    )
                    return
                yield member
            end = tar.offset
    except OSError:
        raise
    except _HEADER_ERRORS as error:
        yield damaged(error)
        return
    data.seek(min(end, data.num_bytes))
    block = data.read(tarfile.BLOCKSIZE)
    if not block:
        yield damaged(f"it ends at byte {data.num_bytes} without the blocks that end a tar")
    elif any(block):
        yield damaged(f"no header at byte {end}")
    else:
        while rest := data.read(2**20):
            if any(rest):
                yield damaged(f"it ends at byte {end}, and more follows (tars that were put together with cat?)")
                return


def _member_name(member: tarfile.TarInfo, scan: TarScan) -> str | None:
    """Return the name of a member that may belong to a sample; of others, count them in `scan` and return None."""
    name = member.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    stray = next((part for part in parts if is_stray(part)), None)
    if stray is not None:
        scan.strays[stray] += 1
    elif member.isdir():
        scan.folders.add("/".join(parts))
    elif _META_MEMBER.match(name):
        scan.special["webdataset metadata"] += 1
    elif not member.isreg():
        scan.special["links" if member.islnk() or member.issym() else "pipes or devices"] += 1
    else:
        return name
    return None


def _split_repetitions(key: str, members: Mapping[str, list[tuple[int, int]]], problem: str | None) -> Iterator[Group]:
    """Yield one group, or as many as its most frequent extension occurs."""
    copies = max(map(len, members.values()))
    if copies > 1:
        problem = (
            f"{copies} consecutive samples of this tar have the same name {key!r}, so their labels are ambiguous: give "
            "each its own name"
        )
    for number in range(copies):
        yield Group(key, {name: spans[number] for name, spans in members.items() if number < len(spans)}, problem)
