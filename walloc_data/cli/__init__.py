"""The command `walloc-data`. Every subcommand parses its arguments, calls one public function and prints the result.

The package behind a subcommand is imported when the subcommand runs. Exit codes: 0 success; 1 failure, or `verify`
found damage; 2 wrong command line; 130 interrupted.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from walloc_data.cli import cache, data, inspect, maintain, models
from walloc_data.cli.command import Args, Command, Outcome, Parser
from walloc_data.errors import MissingExtraError, WallocDataError
from walloc_data.text import printable
from walloc_data.version import __version__

__all__ = ["COMMANDS", "build_parser", "main"]


def _completion_arguments(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="shell to print the completion script for")


def _completion(args: Args) -> Outcome:
    try:
        import shtab
    except ImportError as error:
        raise MissingExtraError("shtab", extra="completion", purpose="shell completion") from error
    script = shtab.complete(build_parser(), shell=args.shell)
    return Outcome({"script": script}, script)


COMMANDS: dict[str, Command] = {
    "demo": models.COMMANDS["demo"],  # first in the help
    **data.COMMANDS,
    **maintain.COMMANDS,
    **inspect.COMMANDS,
    **models.COMMANDS,
    **cache.COMMANDS,
    "completion": Command(
        "print the completion script of a shell",
        _completion_arguments,
        _completion,
        ('eval "$(walloc-data completion bash)"', "walloc-data completion zsh > ~/.zfunc/_walloc-data"),
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="walloc-data",
        description="Encode image data sets once into WaLLoC latents, and work with the result.",
        epilog="exit codes: 0 done, 1 failed or damage found, 2 wrong command line, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"walloc_data {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog="\n".join(("examples:", *(f"  {example}" for example in command.examples))),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(sub)
        sub.add_argument("--json", action="store_true", help="print the result as one JSON object")
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse_args(argv)
    code = 1  # also if a pipe is closed before the end of the command: `walloc-data ... 2>&1 | head`
    try:
        try:
            outcome: Outcome = args.run(args)
            code = outcome.exit_code
            if args.json or outcome.text:
                print(_as_json(outcome.data) if args.json else printable(outcome.text), flush=True)
        except WallocDataError as error:
            print(f"walloc-data: {error}", file=sys.stderr)
        except MemoryError as error:
            print(f"walloc-data: not enough memory ({printable(str(error)) or 'none is left'})", file=sys.stderr)
        except KeyboardInterrupt as error:
            code = 130
            # The message of an interrupted conversion says how to resume.
            print(f"\nwalloc-data: interrupted{': ' + printable(str(error)) if str(error) else ''}", file=sys.stderr)
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:  # Python would flush it again when it ends
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _as_json(data: dict[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=False)
    return text if printable(text) == text else json.dumps(data)  # escape terminal control characters
