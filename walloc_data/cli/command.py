"""What a subcommand is: arguments, a call, and what it found."""

import argparse
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Args", "Command", "Outcome", "Parser", "add_dataset", "add_split", "add_storage", "say_if_slow"]

Parser = argparse.ArgumentParser
Args = argparse.Namespace


@dataclass(frozen=True)
class Outcome:
    """What a command found: `data` for --json, `text` for people."""

    data: dict[str, Any]
    text: str
    exit_code: int = 0


@dataclass(frozen=True)
class Command:
    """A subcommand: its one-line help, arguments, the call behind it, and examples."""

    help: str
    arguments: Callable[[Parser], None]
    run: Callable[[Args], Outcome]
    examples: tuple[str, ...]


def add_dataset(parser: Parser) -> None:
    """The data set that a command is about."""
    parser.add_argument("out", metavar="OUT", help="the data set: a folder or URL")
    add_storage(parser)


def add_storage(parser: Parser) -> None:
    """Options of the file system behind a URL."""
    parser.add_argument(
        "--storage-options",
        type=_json_object,
        metavar="JSON",
        help="for the URL's file system, such as '{\"anon\": true}' for a public bucket; secrets go in the environment",
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
    """The data set, and one of its splits."""
    add_dataset(parser)
    parser.add_argument("--split", default=default, help=f"one split (default: {default or 'all'})")


@contextmanager
def say_if_slow(what: str, *, after_s: float = 2.0) -> Iterator[None]:
    """A line on stderr when something without a progress bar of its own takes longer than people wait in silence."""
    timer = threading.Timer(after_s, lambda: print(what, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
