"""Trouble of the machine or the store is never recorded as a fault of a picture."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.convert.conftest import as_bytes, hashes, make_folder, picture
from tests.test_sources import write_tar
from walloc_data import encode_dataset
from walloc_data.convert import verify_dataset
from walloc_data.errors import FormatError, SourceError
from walloc_data.pictures.memory import is_machine_error, lacks_memory
from walloc_data.sources import open_source

Check = Callable[[Path], None]


def once_after(num_done: int, action: Callable[[], object]) -> Callable[[Any], None]:
    """A progress callback that does something once, as soon as so many pictures are done."""
    did: list[bool] = []

    def callback(progress: Any) -> None:
        if progress.num_done >= num_done and not did:
            did.append(True)
            action()

    return callback


def failures_in(out: Path) -> list[str]:
    marks = [json.loads(path.read_text()) for path in sorted((out / ".walloc" / "train").glob("0*.json"))]
    assert marks, "no shard was published"
    return [failure["reason"] for mark in marks for failure in mark["failures"]]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_source_that_goes_away_stops_the_conversion_which_goes_on_when_it_is_back(
    pictures: Path, tmp_path: Path, workers: int
) -> None:
    source, out = Path(shutil.copytree(pictures, tmp_path / "pictures")), tmp_path / "out"
    away = once_after(8, lambda: source.rename(tmp_path / "away"))
    with pytest.raises(SourceError, match=r"\.jpg: cannot be read \(No such file or directory\)\. This is an error of"):
        encode_dataset(source, out, samples_per_shard=4, workers=workers, progress=away)
    assert failures_in(out) == []
    (tmp_path / "away").rename(source)
    summary = encode_dataset(source, out, samples_per_shard=4, progress=False)
    assert (summary.num_samples, summary.num_failures) == (24, 0)
    assert 0 < summary.new_samples < 24
    encode_dataset(pictures, tmp_path / "reference", samples_per_shard=4, progress=False)
    assert hashes(out) == hashes(tmp_path / "reference")


def test_a_tar_cut_short_after_it_was_opened_stops_the_conversion(tmp_path: Path) -> None:
    members = [
        (f"{n:03d}.{end}", data) for n in range(12) for end, data in (("png", as_bytes(picture(n))), ("cls", b"0"))
    ]
    write_tar(tmp_path / "a.tar", members)
    whole = (tmp_path / "a.tar").read_bytes()
    out = tmp_path / "out"
    cut = once_after(4, lambda: os.truncate(tmp_path / "a.tar", len(whole) // 2))
    with pytest.raises(SourceError, match=r"a\.tar: cannot be read \(it ends \d+ bytes early, and did not when it was"):
        encode_dataset(f"wds:{tmp_path}/a.tar", out, samples_per_shard=4, shuffle_seed=None, progress=cut)
    assert failures_in(out) == []
    (tmp_path / "a.tar").write_bytes(whole)
    summary = encode_dataset(f"wds:{tmp_path}/a.tar", out, samples_per_shard=4, shuffle_seed=None, progress=False)
    assert (summary.num_samples, summary.num_failures) == (12, 0)


def test_a_file_that_grows_or_shrinks_after_it_was_listed_is_named(pictures: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(pictures, tmp_path / "pictures"))
    late = source / "class_2" / "007.jpg"
    change = once_after(4, lambda: late.write_bytes(late.read_bytes() + b"x"))
    with pytest.raises(SourceError, match=r"class_2/007\.jpg: \d+ bytes, but \d+ when the source was opened: it chang"):
        encode_dataset(source, tmp_path / "out", samples_per_shard=4, shuffle_seed=None, progress=change)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_file_that_will_never_be_read_is_a_failure_where_that_is_asked_for(
    pictures: Path, tmp_path: Path, workers: int
) -> None:
    source, out = Path(shutil.copytree(pictures, tmp_path / "pictures")), tmp_path / "out"
    bad = source / "class_1" / "003.jpg"
    opened = open_source(source)
    bad.rename(tmp_path / "003.jpg")  # a bad sector is read with an error of the system, as this is
    options: dict[str, Any] = {"samples_per_shard": 8, "progress": False}
    for on_error in ("record", "stop"):
        with pytest.raises(SourceError, match=r"can, use --on-error record-unreadable \(on_error="):
            encode_dataset(opened, out, on_error=on_error, **options)  # type: ignore[arg-type]
    summary = encode_dataset(opened, out, on_error="record-unreadable", workers=workers, **options)
    assert (summary.num_samples, summary.num_failures) == (23, 1)
    [line] = (out / "failures" / "train.jsonl").read_text().splitlines()
    failure = json.loads(line)
    assert (failure["name"], failure["reason"]) == ("003.jpg", "cannot be read (No such file or directory)")
    assert str(tmp_path) not in line
    assert verify_dataset(out, progress=False).problems == ()
    (tmp_path / "003.jpg").rename(bad)
    summary = encode_dataset(opened, out, retry_failures=True, **options)
    assert (summary.num_samples, summary.num_failures) == (24, 0)


RUN = """
import resource, sys
from pathlib import Path
from walloc_data import encode_dataset
from walloc_data.codec import load_codec
codec = load_codec()[0]
source, out = sys.argv[1:]
did = []
def trouble(progress):
    if progress.num_done >= 5 and not did:  # the second shard's large picture is a window of its own
        did.append(True)
        TROUBLE
try:
    encode_dataset(source, out, codec=codec, samples_per_shard=4, shuffle_seed=None, progress=trouble)
except Exception as error:
    print(type(error).__name__, error)
"""
NO_FILES = "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))"
NO_MEMORY = (
    "size = int(Path('/proc/self/statm').read_text().split()[0]) * 4096; "
    "resource.setrlimit(resource.RLIMIT_AS, (size + 2**25, size + 2**25))"
)
NO_RIGHT = "[path.chmod(0) for path in Path(source).rglob('*.jpg')]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        (NO_FILES, r"UnreadableError .*cannot be read \(Too many open files\)"),
        # While the picture is decoded, or already while it is read.
        (
            NO_MEMORY,
            r"(ConversionError class_0/004y\.jpg \(source index 6\): .*out of memory\. Finished shards are kept"
            r"|UnreadableError .*sample 6: cannot be read \(out of memory\))",
        ),
        (NO_RIGHT, r"UnreadableError .*cannot be read \(Permission denied\)"),
    ],
    ids=["open files", "memory", "rights"],
)
def test_what_the_system_refuses_stops_the_conversion(tmp_path: Path, what: str, said: str) -> None:
    source, out = make_folder(tmp_path / "pictures", classes=1, per_class=6), tmp_path / "out"
    for name, side in (("004x.jpg", 2200), ("004y.jpg", 6000)):
        (source / "class_0" / name).write_bytes(as_bytes(picture(1).resize((side, side)), "JPEG"))
    command = ["-c", RUN.replace("TROUBLE", what), str(source), str(out)]
    if what == NO_RIGHT and os.geteuid() == 0:  # root reads everything, but for one without this right
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv to be less than root")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", sys.executable, *command]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    else:
        result = warm.run(command)
    assert re.match(said, result.stdout), result.stdout + result.stderr
    assert result.stdout.count("\n") == 1  # one error, no traceback
    assert failures_in(out) == []
    for path in source.rglob("*.jpg"):
        path.chmod(0o644)
    summary = encode_dataset(source, out, samples_per_shard=4, shuffle_seed=None, progress=False)
    assert (summary.num_samples, summary.num_failures, summary.new_samples) == (8, 0, 4)


def test_a_damaged_picture_that_asks_for_too_much_memory_is_its_own_fault() -> None:
    assert is_machine_error(MemoryError())
    assert not lacks_memory(MemoryError(), as_bytes(picture(1)))  # there is enough for a picture of 48 x 40
    assert not lacks_memory(OSError("out of memory error when reading image file"), b"damaged")
    assert not is_machine_error(OSError("image file is truncated (3 bytes not processed)"))
    assert lacks_memory(PermissionError(13, "Permission denied"), as_bytes(picture(1)))


@pytest.fixture
def outage(pictures: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A source of 24 pictures of which five are broken, and what was made of it; then the five are mended."""
    source, out = Path(shutil.copytree(pictures, tmp_path / "pictures")), tmp_path / "out"
    kept = {}
    for number in range(5):
        path = source / "class_1" / f"00{number}.jpg"
        kept[path] = path.read_bytes(), path.stat()
        path.write_bytes(bytes(len(kept[path][0])))
    summary = encode_dataset(source, out, samples_per_shard=4, shuffle_seed=None, progress=False)
    assert summary.num_failures == 5
    for path, (data, status) in kept.items():
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return source, out


def test_recorded_failures_are_done_again_when_asked(outage: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = outage
    options: dict[str, Any] = {"samples_per_shard": 4, "shuffle_seed": None, "progress": False}
    assert encode_dataset(source, out, **options).num_failures == 5
    summary = encode_dataset(source, out, retry_failures=True, **options)
    assert (summary.num_samples, summary.num_failures, summary.new_samples) == (24, 0, 8)  # two shards of four
    encode_dataset(source, tmp_path / "reference", **options)
    assert hashes(out) == hashes(tmp_path / "reference")
    assert encode_dataset(source, out, retry_failures=True, **options).new_samples == 0
    with pytest.raises(FormatError, match="overwrite encodes everything again: leave out repair and retry_failures"):
        encode_dataset(source, out, overwrite=True, retry_failures=True, **options)


@pytest.mark.slow
def test_a_retry_that_is_interrupted_leaves_the_split_as_it_was_and_goes_on(
    outage: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = outage
    options: dict[str, Any] = {"samples_per_shard": 4, "shuffle_seed": None}
    before = hashes(out)

    def interrupt(progress: Any) -> None:
        if progress.num_done >= 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_dataset(source, out, retry_failures=True, progress=interrupt, **options)
    assert {path: digest for path, digest in hashes(out).items() if ".walloc/train.retry" not in path} == before
    assert verify_dataset(out, progress=False).problems == ()
    summary = encode_dataset(source, out, retry_failures=True, progress=False, **options)
    assert (summary.num_samples, summary.num_failures, summary.new_samples) == (24, 0, 4)
    encode_dataset(source, tmp_path / "reference", progress=False, **options)
    assert hashes(out) == hashes(tmp_path / "reference")


def test_failures_of_an_unfinished_split_are_done_again_in_their_places(outage: tuple[Path, Path]) -> None:
    source, out = outage
    (out / "walloc.json").unlink()
    options: dict[str, Any] = {"samples_per_shard": 4, "shuffle_seed": None, "progress": False}
    assert encode_dataset(source, out, retry_failures=True, part="1/2", **options).num_failures == 0
    assert encode_dataset(source, out, retry_failures=True, **options).num_failures == 0
