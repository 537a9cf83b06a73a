"""Progress as people see it: one line that is rewritten, or one now and then."""

import io
import re
from dataclasses import replace

import pytest

from walloc_data.convert.progress import (
    ConversionSummary,
    Progress,
    ProgressMeter,
    ProgressPrinter,
    format_bytes,
    format_seconds,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set: its last value is the time."""
    times = [100.0]
    monkeypatch.setattr("walloc_data.convert.progress.time.monotonic", lambda: times[-1])
    return times


def progress(num_done: int, *, failures: int = 0) -> Progress:
    return Progress("train", num_done, 200, failures, 50.0, (200 - num_done) / 50)


def test_a_terminal_has_a_bar_that_is_rewritten_and_taken_away(clock: list[float]) -> None:
    stream = Terminal()
    printer = ProgressPrinter(stream)
    printer(progress(0))
    assert stream.getvalue() == ""  # nothing in the first second
    clock.append(101.5)
    printer(progress(75, failures=2))
    assert re.fullmatch(
        r"\rtrain: 38%\|[^|]+\| 75/200 pictures, 50/s, 2 s left, 2 failures", stream.getvalue().rstrip()
    )
    clock.append(101.6)
    printer(progress(80))  # too soon to be worth a line
    clock.append(102.0)
    printer(progress(100))
    assert stream.getvalue().count("\rtrain:") == 2
    printer.close()
    assert re.search(r"\| 100/200 pictures, 50/s, 2 s left *\r *\r$", stream.getvalue())
    assert "\n" not in stream.getvalue()


def test_a_line_that_stays_comes_after_the_bar_is_gone(clock: list[float]) -> None:
    stream = Terminal()
    printer = ProgressPrinter(stream)
    clock.append(101.5)
    printer(replace(progress(70), num_items=None, seconds_left=None))
    assert stream.getvalue().rstrip() == "\rtrain: 70 pictures, 50/s"
    printer.note("kept")
    assert re.search(r"\r *\rkept\n$", stream.getvalue())


def test_a_file_has_a_line_every_ten_seconds(clock: list[float]) -> None:
    stream = io.StringIO()
    printer = ProgressPrinter(stream)
    for second in range(1, 26):
        clock.append(100.0 + second)
        printer(progress(second))
    assert [line.split(",")[1] for line in stream.getvalue().splitlines()] == [
        f" {n}/200 pictures" for n in (1, 11, 21)
    ]
    printer.note("kept")
    printer.close()
    assert stream.getvalue().endswith("\nkept\n")


def test_the_rate_is_this_runs_and_time_left_follows_from_it(clock: list[float]) -> None:
    seen: list[Progress] = []
    meter = ProgressMeter(seen.append, split="train", num_items=1000, num_done=400)
    meter.tick(num_done=400, num_failures=0)
    assert (seen[-1].samples_per_s, seen[-1].seconds_left) == (0.0, None)
    clock.append(110.0)
    meter.tick(num_done=500, num_failures=1)
    assert (seen[-1].samples_per_s, seen[-1].seconds_left, seen[-1].num_failures) == (10.0, 50.0, 1)


def test_a_stream_has_no_share_and_no_end() -> None:
    assert str(Progress("train", 70, None, 0, 12.3, None)) == "train: 70 pictures, 12/s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (18120, "5 h 02 min")]
)
def test_seconds_are_written_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(999, "999 B"), (1000, "1.0 kB"), (9_800_000, "9.8 MB"), (7e9, "7.0 GB"), (2e15, "2000.0 TB")],
)
def test_bytes_are_written_for_people(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


def test_the_last_line_says_it_all() -> None:
    summary = ConversionSummary("out", "train", 90, 10, 2, 5_000_000, 400_000, 300_000, 4_800_000, 90, 4.5)
    summary = replace(summary, kept=("label (3 classes)", "column caption"), notes=("left out: 1 .txt",))
    assert str(summary) == (
        "train: 90 samples and 10 failures in 2 shards; 5.0 MB in, 400.0 kB out, 0.500 bits per pixel; 90 made in 4 s, "
        "20 samples/s. Failures are listed in failures/train.jsonl; --retry-failures encodes "
        "them again\n"
        "kept with each picture: label (3 classes), column caption\n"
        "left out: 1 .txt"
    )
