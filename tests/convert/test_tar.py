"""Plain ustar, the same bytes as Python's own writer makes from bare headers."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from walloc_data.convert.tar import TarWriter, header
from walloc_data.errors import FormatError

MEMBERS = [
    ("000000001.webp", b"abc"),
    ("000000001.cls", b""),
    ("x" * 100, bytes(range(256)) * 5),
    ("b.json", b"{}" * 256),
]


def test_bytes_are_those_of_a_ustar_archive_without_times_and_owners(tmp_path: Path) -> None:
    path = tmp_path / "ours.tar"
    with TarWriter(path) as tar:
        offsets = [*tar.add(MEMBERS[:3]), *tar.add(MEMBERS[3:])]
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as theirs:
        for name, data in MEMBERS:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            theirs.addfile(member, io.BytesIO(data))
    written = path.read_bytes()
    assert len(written) == len(expected.getvalue()) == tar.num_bytes
    # tarfile fills the device numbers, which only device files have, and so has another checksum.
    device, checksum = slice(329, 345), slice(148, 156)
    for offset in offsets:
        ours, other = (bytearray(data[offset - 512 : offset]) for data in (written, expected.getvalue()))
        assert ours[device] == bytes(16)
        for field in (device, checksum):
            ours[field] = other[field] = bytes(field.stop - field.start)
        assert ours == other
    with tarfile.open(path, "r:") as opened:
        assert [(member.name, member.offset_data) for member in opened] == [
            (name, offset) for (name, _), offset in zip(MEMBERS, offsets, strict=True)
        ]
        for name, data in MEMBERS:
            member = opened.getmember(name)
            assert (member.mtime, member.uid, member.gid, member.mode, member.uname) == (0, 0, 0, 0o644, "")
            assert opened.extractfile(member).read() == data  # type: ignore[union-attr]


def test_hashes_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with TarWriter(path) as tar:
        tar.add([("a", b"1")])
    data = path.read_bytes()
    assert tar.sha256 == hashlib.sha256(data).hexdigest()
    assert tar.md5 == hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(("name", "num_bytes"), [("x" * 101, 1), ("x", 8**11)])
def test_what_does_not_fit_a_header_is_refused(name: str, num_bytes: int) -> None:
    with pytest.raises(FormatError, match="do not fit a ustar header"):
        header(name, num_bytes)
