"""Types and arguments shared by the subcommands."""

import argparse
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from walloc_data.text import printable

__all__ = [
    "READING",
    "Args",
    "Command",
    "Outcome",
    "Parser",
    "add_dataset",
    "add_reading",
    "add_split",
    "add_storage",
    "log_if_slow",
]

READING = ("max_pixels", "max_value", "background")  # of `EncodeSettings`: how picture files are read

Parser = argparse.ArgumentParser
Args = argparse.Namespace


@dataclass(frozen=True)
class Outcome:
    """Result of a command: `data` is printed with --json, `text` without."""

    data: dict[str, Any]
    text: str
    exit_code: int = 0


@dataclass(frozen=True)
class Command:
    """Subcommand: its one-line help, its arguments, the function that runs it, and examples."""

    help: str
    arguments: Callable[[Parser], None]
    run: Callable[[Args], Outcome]
    examples: tuple[str, ...]


def add_dataset(parser: Parser) -> None:
    """Add the argument for the data set."""
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL of the data set")
    add_storage(parser)


def add_storage(parser: Parser) -> None:
    """Add the option for the file system behind a URL."""
    parser.add_argument(
        "--storage-options",
        type=_json_object,
        metavar="JSON",
        help="options of the URL's file system, such as '{\"anon\": true}' for a public bucket; give secrets in the "
        "environment instead",
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def add_split(parser: Parser, *, default: str | None = None) -> None:
    """Add the arguments for the data set and one of its splits."""
    add_dataset(parser)
    parser.add_argument("--split", default=default, help=f"split to work on (default: {default or 'all'})")


def add_reading(parser: "Parser | argparse._ArgumentGroup") -> None:
    """Add the options for reading picture files; options that are not given are absent from the arguments."""

    def add(name: str, **options: Any) -> None:
        parser.add_argument(name, default=argparse.SUPPRESS, **options)

    add("--max-pixels", type=int, metavar="N", help="refuse pictures of more than N pixels (default: 89478485)")
    add(
        "--max-value",
        type=int,
        metavar="N",
        help="value of white in PNG and TIFF files of more than 8 bits, e.g. 1023 or 4095 (default: 65535)",
    )
    add("--background", type=_colour, metavar="R,G,B", help="colour under transparent pixels (default: 255,255,255)")


def _colour(text: str) -> tuple[int, ...]:
    """Parse three integers; `EncodeSettings` checks their range."""
    try:
        return tuple(int(value) for value in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers, such as 255,255,255") from None


@contextmanager
def log_if_slow(what: str, *, after_s: float = 2.0) -> Iterator[None]:
    """Context: print a line to stderr if the block takes longer than `after_s` seconds."""
    timer = threading.Timer(after_s, lambda: print(printable(what), file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
