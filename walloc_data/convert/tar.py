"""Plain ustar archives whose bytes depend on names and contents alone."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

from walloc_data.errors import FormatError

__all__ = ["BLOCK_BYTES", "TarWriter", "header"]

BLOCK_BYTES = 512
RECORD_BYTES = 10240  # what GNU tar and Python's tarfile round a whole archive up to


class TarWriter:
    """Write members one after another; no timestamps, no owners, mode 0644.

    Hashes are taken as the bytes pass. `close` ends the archive and makes it durable.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self.num_bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one member and return where its data begins."""
        self._write(header(name, len(data)))
        offset = self.num_bytes
        self._write(data)
        self._write(bytes(-len(data) % BLOCK_BYTES))
        return offset

    @property
    def sha256(self) -> str:
        """Of all bytes so far."""
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        """Of all bytes so far; wids indexes carry it."""
        return self._md5.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._md5.update(data)
        self.num_bytes += len(data)

    def close(self) -> None:
        """End the archive; its file and hashes are then final."""
        import os

        self._write(bytes(2 * BLOCK_BYTES))
        self._write(bytes(-self.num_bytes % RECORD_BYTES))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def header(name: str, num_bytes: int) -> bytes:
    """One 512-byte ustar header (POSIX.1-1988)."""
    encoded = name.encode("ascii")
    if len(encoded) > 100 or not 0 <= num_bytes < 8**11:
        raise FormatError(f"{name}: {num_bytes} bytes under a name of {len(encoded)} do not fit a ustar header")
    fields = (
        encoded.ljust(100, b"\0"),
        b"0000644\0",  # mode
        b"0000000\0",  # user
        b"0000000\0",  # group
        b"%011o\0" % num_bytes,
        b"00000000000\0",  # modified at
        b"        ",  # checksum, counted as spaces
        b"0",  # a regular file
        bytes(100),
        b"ustar\00000",
    )
    block = b"".join(fields).ljust(BLOCK_BYTES, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
