"""SIGKILL at any moment, to the whole tree or to single workers; full and read-only disks; Ctrl-C. Then resume."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.convert.conftest import Warm, as_bytes, hashes, make_folder, picture
from walloc_data import encode_dataset
from walloc_data.convert import verify_dataset
from walloc_data.errors import ConversionError, StorageError

Check = Callable[[Path], None]


def children_of(process: int) -> list[int]:
    """Process ids of a process's children (Linux)."""
    listed: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            listed.append(int(path.parent.name))
    return listed


def workers_of(process: int) -> list[int]:
    """Process ids of a conversion's workers, which the one process that it has started starts."""
    return [worker for server in children_of(process) for worker in children_of(server)]


@pytest.mark.slow
def test_killed_at_fifteen_moments_and_resumed_the_bytes_are_the_same(
    warm: Warm, pictures: Path, tmp_path: Path, same_as_reference: Check
) -> None:
    # How long an undisturbed run takes says which moments there are; a first run takes longer than those after it.
    duration = float("inf")
    for name in ("timed-0", "timed-1"):
        warm.begin(pictures, tmp_path / name, samples_per_shard=5)
        code, seconds = warm.end()
        assert code == 0
        duration = min(duration, seconds)
    moments = random.Random(0)
    killed = 0
    out, number = tmp_path / "out-0", 0
    for _ in range(15):
        process = warm.begin(pictures, out, samples_per_shard=5)
        time.sleep(moments.uniform(0, duration / 2))
        os.kill(process, signal.SIGKILL)
        code, _ = warm.end()
        killed += code == -signal.SIGKILL
        if (out / "walloc.json").exists():  # it got through: check, and start another
            same_as_reference(out)
            number += 1
            out = tmp_path / f"out-{number}"
    assert killed >= 5
    warm.begin(pictures, out, samples_per_shard=5)
    assert warm.end()[0] == 0
    same_as_reference(out)
    assert not list(out.rglob("*.partial"))


@pytest.mark.slow
def test_a_killed_tree_and_killed_workers_leave_the_same_bytes(
    warm: Warm, pictures: Path, tmp_path: Path, same_as_reference: Check
) -> None:
    out = tmp_path / "out"
    # The whole tree, while workers work.
    process = warm.begin(pictures, out, samples_per_shard=5, workers=2)
    wait_for(lambda: list((out / ".walloc" / "train").glob("0*.json")), what="a first shard")
    tree = [process, *children_of(process), *workers_of(process)]
    assert len(tree) == 4
    for member in tree:
        with suppress(ProcessLookupError):  # a worker that has noticed already
            os.kill(member, signal.SIGKILL)
    assert warm.end()[0] == -signal.SIGKILL
    # The parent alone: workers notice, stop, and the next run waits for them.
    process = warm.begin(pictures, out, samples_per_shard=5, workers=2)
    time.sleep(0.5)
    os.kill(process, signal.SIGKILL)
    warm.end()
    # One worker, whose work another takes over.
    process = warm.begin(pictures, out, samples_per_shard=5, workers=2)
    wait_for(lambda: len(workers_of(process)) == 2 or (out / "walloc.json").exists(), what="two workers")
    for child in workers_of(process)[:1]:
        with suppress(ProcessLookupError):  # it had nothing left to do
            os.kill(child, signal.SIGKILL)
    assert warm.end()[0] == 0
    same_as_reference(out)


@pytest.mark.slow
def test_the_process_that_starts_workers_may_be_killed_too(
    warm: Warm, pictures: Path, tmp_path: Path, same_as_reference: Check
) -> None:
    out = tmp_path / "out"
    process = warm.begin(pictures, out, samples_per_shard=5, workers=2)
    wait_for(lambda: len(workers_of(process)) == 2, what="two workers")
    workers = workers_of(process)
    os.kill(children_of(process)[0], signal.SIGKILL)
    wait_for(lambda: not set(workers) & set(workers_of(process)), what="the end of its workers")
    assert warm.end()[0] == 0
    same_as_reference(out)


def wait_for(condition: Callable[[], Any], *, what: str, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_picture_that_kills_its_worker_every_time_is_named_by_its_shard(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers end as the kernel's out-of-memory killer would end them, at one picture.
    monkeypatch.setattr("walloc_data.convert.executors.local.MAX_ATTEMPTS", 2)
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import os, signal, walloc_data.convert.shard as p\n"
        "real = p.decode_picture\n"
        "def fatal(data, **options):\n"
        "    if len(data) == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(data, **options)\n"
        "p.decode_picture = fatal\n"
    )
    monkeypatch.syspath_prepend(str(hook))
    folder = make_folder(tmp_path / "in", classes=1, per_class=3)
    (folder / "class_0" / "zz.jpg").write_bytes(b"deadly!")
    with pytest.raises(
        ConversionError,
        match=r"shard 1 of split 'train' \(positions 2 to 3\) ended its worker 2 times, last killed by SIGKILL",
    ):
        encode_dataset(folder, tmp_path / "out", samples_per_shard=2, shuffle_seed=None, workers=2, progress=False)


def test_what_a_worker_left_when_it_was_killed_is_gone_at_the_end(
    pictures: Path, tmp_path: Path, same_as_reference: Check
) -> None:
    out = tmp_path / "out"

    def leave_half_a_file(progress: Any) -> None:
        if progress.num_done >= 10:
            (out / ".walloc" / "train" / ".00001.json.x.partial").write_bytes(b"half")

    encode_dataset(pictures, out, samples_per_shard=5, progress=leave_half_a_file)
    same_as_reference(out)


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(pictures: Path, tmp_path: Path, same_as_reference: Check) -> None:
    out = tmp_path / "out"

    def interrupt(progress: Any) -> None:
        if progress.num_done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(
        KeyboardInterrupt, match=r"\d of 5 shards of split 'train' are published in .*; run the same command to resume"
    ):
        encode_dataset(pictures, out, samples_per_shard=5, progress=interrupt)
    assert not (out / ".walloc" / "staging").exists()
    assert not list(out.rglob("*.partial"))
    encode_dataset(pictures, out, samples_per_shard=5, progress=False)
    same_as_reference(out)


@pytest.mark.slow
def test_a_full_disk_stops_cleanly_and_resumes(tmp_path: Path, small_codec: Path) -> None:
    source = make_folder(tmp_path / "in", classes=1, per_class=4, width=400, height=400)
    encode_dataset(source, tmp_path / "reference", codec=small_codec, samples_per_shard=4, progress=False)
    out = tmp_path / "out"
    code = (
        "import resource, signal, sys\n"
        "from walloc_data import encode_dataset\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "try:\n"
        "    encode_dataset(*sys.argv[1:3], codec=sys.argv[3], samples_per_shard=4, progress=False)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    result = warm.run(["-c", code, source, out, small_codec], check=True)
    assert result.stdout.startswith(f"ConversionError {out}/data/train-00000.tar: cannot be written (File too large)")
    assert "run the same command to resume" in result.stdout
    assert not list(out.glob("data/*"))
    encode_dataset(source, out, codec=small_codec, samples_per_shard=4, progress=False)
    assert hashes(out) == hashes(tmp_path / "reference")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_really_full_stops_cleanly_and_resumes(tmp_path: Path, small_codec: Path) -> None:
    source = make_folder(tmp_path / "in", classes=2, per_class=20, width=120, height=120)
    encode_dataset(source, tmp_path / "reference", codec=small_codec, samples_per_shard=4, progress=False)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system: {mounted.stderr.decode().strip()}")
    try:
        out = small / "out"
        with pytest.raises((ConversionError, StorageError), match="No space left on device"):
            encode_dataset(source, out, codec=small_codec, samples_per_shard=4, progress=False)
        assert 1 <= len(list(out.glob("data/*.tar"))) < 10
        subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
        encode_dataset(source, out, codec=small_codec, samples_per_shard=4, progress=False)
        assert hashes(out) == hashes(tmp_path / "reference")
        assert verify_dataset(out, progress=False).problems == ()
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_output_that_cannot_be_written_is_named(pictures: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot be written"):
        encode_dataset(pictures, blocked / "out", progress=False)
    if os.geteuid() != 0:
        tmp_path.chmod(0o555)
        try:
            with pytest.raises(StorageError, match="cannot be written"):
                encode_dataset(pictures, tmp_path / "out", progress=False)
        finally:
            tmp_path.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_output_is_named(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no read-only file system: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(StorageError, match=r"cannot be written \(Read-only file system"):
            encode_dataset(pictures, folder / "out", progress=False)
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_fifty_megapixels_are_encoded_in_bounded_memory(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "big.jpg").write_bytes(as_bytes(picture(0).resize((8_400, 6_000)), "JPEG"))
    code = (
        "import resource\n"
        "from walloc_data import encode_dataset\n"
        "from walloc_data.codec import load_codec\n"
        "codec = load_codec()[0]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"encode_dataset({str(folder)!r}, {str(tmp_path / 'out')!r}, codec=codec, max_pixels=2**28, progress=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    result = warm.run(["-c", code], check=True)
    pixels_bytes = 8_400 * 6_000 * 3
    assert int(result.stdout) * 1024 < 4.5 * pixels_bytes
