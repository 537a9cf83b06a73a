"""Writing of ustar archives whose bytes depend only on names and contents."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from walloc_data.errors import FormatError

__all__ = ["BLOCK_BYTES", "TarWriter", "header"]

BLOCK_BYTES = 512
RECORD_BYTES = 10240  # GNU tar and Python's tarfile pad archives to a multiple of this


class TarWriter:
    """Writer of tar members, without timestamps and owners, of mode 0644.

    Hashes are computed while writing. `close` ends the archive and waits until it is on the disk.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self.num_bytes = 0

    def add(self, members: Sequence[tuple[str, bytes]]) -> list[int]:
        """Append members, in a single write; return the offsets of their data."""
        blocks: list[bytes] = []
        offsets: list[int] = []
        end = self.num_bytes
        for name, data in members:
            blocks += (header(name, len(data)), data, bytes(-len(data) % BLOCK_BYTES))
            offsets.append(end + BLOCK_BYTES)
            end += BLOCK_BYTES + len(data) + len(blocks[-1])
        self._write(b"".join(blocks))
        return offsets

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes so far."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """MD5 of all bytes so far, for wids indices."""
        return self._md5.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._md5.update(data)
        self.num_bytes += len(data)

    def close(self) -> None:
        """End the archive; afterwards its file and hashes are final."""
        try:
            self._write(bytes(2 * BLOCK_BYTES))
            self._write(bytes(-self.num_bytes % RECORD_BYTES))
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._abandon()

    def _abandon(self) -> None:
        with suppress(OSError):  # flushing fails again on a full disk
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()


# Constant parts of a header: mode 0644, no owner, no time, a regular file, and zeros to the end of the block.
_OWNER = b"".join((b"0000644\x00", b"0000000\x00", b"0000000\x00"))
_TIME = b"00000000000\x00"
_REST = (b"0" + bytes(100) + b"ustar\x0000").ljust(BLOCK_BYTES - 156, b"\0")
_CONSTANT_SUM = sum(_OWNER) + sum(_TIME) + 8 * ord(" ") + sum(_REST)  # the checksum field counts as spaces


def header(name: str, num_bytes: int) -> bytes:
    """Return one 512-byte ustar header (POSIX.1-1988)."""
    encoded = name.encode("ascii")
    if len(encoded) > 100 or not 0 <= num_bytes < 8**11:
        raise FormatError(f"{name}: {num_bytes} bytes with a name of {len(encoded)} do not fit a ustar header")
    changing = encoded.ljust(100, b"\0"), b"%011o\x00" % num_bytes
    checksum = _CONSTANT_SUM + sum(changing[0]) + sum(changing[1])
    return b"".join((changing[0], _OWNER, changing[1], _TIME, b"%06o\x00 " % checksum, _REST))
