"""What a subcommand is: arguments, a call, and what it found."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Args", "Command", "Outcome", "Parser", "add_dataset", "add_split"]

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


def add_split(parser: Parser, *, default: str | None = None) -> None:
    """The data set, and one of its splits."""
    add_dataset(parser)
    parser.add_argument("--split", default=default, help=f"one split (default: {default or 'all'})")
