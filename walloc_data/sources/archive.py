"""Archives of pictures: ZIP files and tars of class folders, read without unpacking.

Members of a ZIP file and of a plain tar are read by position. A compressed tar, which has no random access, is
decompressed once to a temporary file, which is deleted with the source.
"""

import bz2
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from walloc_data.errors import SourceError
from walloc_data.pictures import PICTURE_SUFFIXES
from walloc_data.sources.base import Source
from walloc_data.sources.folder import FolderSource
from walloc_data.sources.listing import SIDECARS, Listing, stem_of
from walloc_data.sources.reading import file_version, unreadable
from walloc_data.sources.stray import is_stray
from walloc_data.sources.tar_members import members_of

__all__ = ["SUFFIXES", "ArchiveSource", "archive_of", "open_archive", "top_folders"]

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
SUFFIXES = (".zip", ".tar", *_COMPRESSED)
MAX_MEMBER_BYTES = 2**31
_STORED, _DEFLATED, _ENCRYPTED, _OTHER, _SPARSE = 0, 1, 2, 3, 4  # storage methods of members
_LOCAL_HEADER_BYTES = 30  # of a ZIP file's member, before its name


@dataclass(frozen=True)
class _Member:
    """File in an archive."""

    path: str
    num_bytes: int
    offset: int  # of its bytes in a tar, of its header in a ZIP file
    num_stored: int
    method: int
    crc32: int  # -1: unknown


class ArchiveSource(FolderSource):
    """Pictures in a ZIP file or a tar, equivalent to `FolderSource` on the unpacked archive.

    The classes are the first folders below the folders that all pictures share.

    Args:
        file: file that is read; differs from `archive` if that is compressed.
        inside: read only this folder of the archive.
    """

    kind = "archive"

    def __init__(
        self, archive: Path, *, location: str, file: Path, inside: str = "", label_column: str | None = None
    ) -> None:
        self.root = archive.absolute()
        self._file_path = file.absolute()
        self._opened: BinaryIO | None = None
        self._is_zip = archive.suffix.lower() == ".zip"
        found, folders = Listing(), set[str]()
        walk = _zip_members if self._is_zip else _tar_members
        members = {member.path: member for member in walk(self._file_path, found, folders, context=location)}
        if not self._is_zip and any(path.endswith(".cls") for path in members):
            raise _SamplesError
        above = _shared_folder([path for path in members if Path(path).suffix.lower() in PICTURE_SUFFIXES])
        if inside:
            above = f"{above}{inside}/"
            if not any(path.startswith(above) for path in (*members, *(f"{folder}/" for folder in folders))):
                raise SourceError(f"{location}: the archive has no folder {above.rstrip('/')!r}")
        for path, member in members.items():
            if path.startswith(above):
                found.add(path.removeprefix(above), num_bytes=member.num_bytes, mtime_ns=0)
                folders.add(path.rpartition("/")[0])
            elif not inside:
                found.others[Path(path).suffix.lower() or "without a suffix"] += 1
        below = {folder.removeprefix(above) for folder in folders if folder.startswith(above)}
        found.folders = sorted({folder.partition("/")[0] for folder in below} - {""})
        self._members, self._above = members, above
        self._arrange(found, location=location, label_column=label_column)
        del self._members

    def _locate(self) -> None:
        kinds: tuple[str | None, ...] = (None, *SIDECARS)
        self._spans = {suffix: self._spans_of(self._members, self._above, suffix) for suffix in kinds}

    def _spans_of(self, members: Mapping[str, _Member], above: str, suffix: str | None) -> npt.NDArray[np.int64]:
        """Return (number of pictures, 5) where their files, or sidecars of a suffix, lie; -1 where there is none."""
        spans = np.full((len(self._paths), 5), -1, dtype=np.int64)
        for index in range(len(self._paths)):
            path = above + (self._paths[index] if suffix is None else stem_of(self._paths[index]) + suffix)
            if (member := members.get(path)) is not None:
                spans[index] = (member.offset, member.num_stored, member.num_bytes, member.method, member.crc32)
        return spans

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def __del__(self) -> None:
        if (opened := getattr(self, "_opened", None)) is not None:
            opened.close()

    def _file(self, index: int, suffix: str | None = None, *, most: int | None = None) -> tuple[bytes, str]:
        offset, num_stored, num_bytes, method, crc32 = self._spans[suffix][index].tolist()
        if method == _ENCRYPTED:
            raise ValueError("it is encrypted")
        if method == _SPARSE:
            raise ValueError("it is stored as a sparse file (tar --sparse), which is not read")
        if method == _OTHER:
            raise ValueError("it is compressed by another method than deflate")
        if num_bytes > MAX_MEMBER_BYTES:
            raise ValueError(f"{num_bytes} bytes; at most {MAX_MEMBER_BYTES} are read")
        try:
            if self._opened is None:
                self._opened = self._file_path.open("rb")
            status = os.fstat(self._opened.fileno())
            if self._is_zip:
                self._opened.seek(offset)
                head = self._opened.read(_LOCAL_HEADER_BYTES)
                if len(head) < _LOCAL_HEADER_BYTES or head[:4] != b"PK\x03\x04":
                    raise ValueError("the archive is damaged here")
                offset += (
                    _LOCAL_HEADER_BYTES + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
                )
            self._opened.seek(offset)
            data = self._opened.read(num_stored if method == _DEFLATED or most is None else min(most, num_stored))
        except OSError as error:
            raise unreadable(self.root, error) from error
        whole = num_bytes if most is None else min(most, num_bytes)
        if method == _DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(1, whole))
            except zlib.error as error:
                raise ValueError(f"the archive is damaged here ({error})") from error
        if len(data) != whole or (most is None and crc32 >= 0 and zlib.crc32(data) != crc32):
            raise ValueError("the archive is damaged here: length or CRC-32 differ")
        return data, file_version(status.st_size, status.st_mtime_ns)

    def version(self, index: int) -> str | None:
        try:
            status = self._file_path.stat()
        except OSError as error:
            raise unreadable(self.root, error) from error
        return file_version(status.st_size, status.st_mtime_ns)


def _shared_folder(paths: list[str]) -> str:
    """Return the folders that all paths share, "" or ending in '/'."""
    parts = [path.split("/")[:-1] for path in paths]
    if not parts:
        return ""
    first, last = min(parts), max(parts)
    depth = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return "".join(f"{part}/" for part in first[:depth])


def _clean(name: str, found: Listing) -> str | None:
    """Return a member's path without '.' and empty parts. Count members that are not part of a source; return None."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    stray = next((part for part in parts if is_stray(part)), None)
    if stray is not None:
        found.strays[stray] += 1
        return None
    return "/".join(parts) or None


def _zip_members(file: Path, found: Listing, folders: set[str], *, context: str) -> Iterator[_Member]:
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                path = _clean(info.filename, found)
                if path is None:
                    continue
                mode = info.external_attr >> 16
                if info.is_dir():
                    folders.add(path)
                elif mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    found.others["links and other special members"] += 1
                else:
                    method = {zipfile.ZIP_STORED: _STORED, zipfile.ZIP_DEFLATED: _DEFLATED}.get(
                        info.compress_type, _OTHER
                    )
                    yield _Member(
                        path,
                        info.file_size,
                        info.header_offset,
                        info.compress_size,
                        _ENCRYPTED if info.flag_bits & 1 else method,
                        info.CRC,
                    )
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise SourceError(f"{context}: not a readable ZIP file ({error})") from error


def _tar_members(file: Path, found: Listing, folders: set[str], *, context: str) -> Iterator[_Member]:
    # Damage of a compressed tar is found by its checksum; in a plain tar, tarfile treats damage as the end.
    compressed = file.name.lower().endswith(_COMPRESSED)
    for info in _unpacked_headers(file, context=context) if compressed else members_of(file, context=context):
        path = _clean(info.name, found)
        if path is None:
            continue
        if info.isdir():
            folders.add(path)
        elif not info.isreg():
            found.others["links and other special members"] += 1
        else:
            method = _SPARSE if info.issparse() else _STORED
            yield _Member(path, info.size, info.offset_data, info.size, method, -1)


def _unpacked_headers(file: Path, *, context: str) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(file, "r:*") as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
                yield info
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise SourceError(f"{context}: not a readable tar ({error})") from error


def archive_of(path: Path) -> tuple[Path, str] | None:
    """Split a path like ``photos.zip/train`` into the archive and the folder in it; None if there is no archive."""
    for candidate in (path, *path.parents):
        if candidate.name.lower().endswith(SUFFIXES) and candidate.is_file():
            return candidate, "/".join(path.relative_to(candidate).parts)
    return None


def top_folders(archive: Path, inside: str, *, context: str) -> list[str]:
    """Return the first folders of an archive below those that all its pictures share, or below a folder of it."""
    found, folders = Listing(), set[str]()
    if archive.suffix.lower() == ".zip":
        paths = [member.path for member in _zip_members(archive, found, folders, context=context)]
    else:
        paths = [member.path for member in _tar_members(archive, found, folders, context=context)]
    above = _shared_folder([path for path in paths if Path(path).suffix.lower() in PICTURE_SUFFIXES])
    above += f"{inside}/" if inside else ""
    below = {path.removeprefix(above).partition("/")[0] for path in paths if path.startswith(above)}
    return sorted(name for name in below if any(path.startswith(f"{above}{name}/") for path in paths))


def open_archive(
    archive: Path, inside: str, *, location: str, image_column: str | None, label_column: str | None
) -> Source:
    """Open an archive of pictures; a tar with ``.cls`` members is opened as WebDataset samples.

    Args:
        inside: read only this folder of the archive.

    Raises:
        SourceError: the archive cannot be read.
    """
    columns = {"image": image_column, "label": label_column}
    if not archive.name.lower().endswith(_COMPRESSED):
        return _source(archive, archive, inside, location=location, **columns)
    folder = Path(tempfile.mkdtemp(prefix="walloc_data-"))
    try:
        file = folder / "archive.tar"
        _decompress(archive, file, context=location)
        source = _source(archive, file, inside, location=location, **columns)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(source, shutil.rmtree, folder, ignore_errors=True)  # not in workers, which unpickle the source
    source.notes += (f"decompressed to a temporary file of {file.stat().st_size} bytes for as long as it is read",)
    return source


class _SamplesError(Exception):
    """The tar has WebDataset samples with labels."""


def _source(archive: Path, file: Path, inside: str, *, location: str, image: str | None, label: str | None) -> Source:
    from walloc_data.sources.wds import TarSource

    if image is None:
        try:
            return ArchiveSource(archive, location=location, file=file, inside=inside, label_column=label)
        except _SamplesError:
            pass
    if inside or archive.suffix.lower() == ".zip":
        raise SourceError(f"{location}: files in an archive have no columns; labels are its folders' names")
    return TarSource([str(file)], location=location, image_column=image, label_column=label)


def _decompress(archive: Path, file: Path, *, context: str) -> None:
    name = archive.name.lower()
    opener: Any = gzip.open if name.endswith(("gz",)) else bz2.open if name.endswith(("bz2",)) else lzma.open
    status = archive.stat()
    try:
        with opener(archive, "rb") as packed, file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 2**20)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{context}: not a readable compressed tar ({error})") from error
    except OSError as error:
        reason = error.strerror or error
        raise SourceError(
            f"{context}: cannot be decompressed to {file.parent} ({reason}): decompress it yourself"
        ) from error
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # the file's version must not change
