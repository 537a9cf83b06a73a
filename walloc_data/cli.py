"""`walloc-data`: one subcommand, one call. Parsing and printing only; rooms load when their command runs.

Exit codes: 0 done; 1 it failed, or `verify` found damage; 2 the command line is wrong; 130 interrupted.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from walloc_data import __version__
from walloc_data.errors import WallocDataError

__all__ = ["main"]

Parser = argparse.ArgumentParser
Args = argparse.Namespace


@dataclass(frozen=True)
class Outcome:
    """What a command found: `data` for --json, `text` for people."""

    data: dict[str, Any]
    text: str
    exit_code: int = 0


def _encode_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "source", metavar="SOURCE", help="a folder of class folders, hf:NAME[/CONFIG], saved HF data, wds:URLS, parquet"
    )
    add("out", metavar="OUT", help="the data set's folder, or s3://bucket/prefix")
    add("--split", default="train", help="the split to write (default: train)")
    add("--source-split", metavar="NAME", help="the split of an HF data set to read (default: that of --split)")
    add("--image-column", metavar="NAME", help="the column of pictures (default: found by type)")
    add("--label-column", metavar="NAME", help="the column of labels, or none (default: found by type)")
    add("--streaming", action="store_true", help="read an HF data set as a stream, in its own order")
    add("--codec", metavar="CODEC", help="a bundled name, a folder, a .pth or hf://owner/repo/file.pth")
    add("--size", type=int, metavar="N", help="resize the shorter side to N pixels and crop the centre square")
    add("--samples-per-shard", type=int, default=2048, metavar="N", help="(default: 2048)")
    add("--shuffle-seed", type=int, default=0, metavar="SEED", help="of the order in the shards (default: 0)")
    add("--no-shuffle", action="store_true", help="keep the source's order")
    add("--effort", choices=("default", "fast"), default="default", help="of WebP; fast makes up to 15%% more bytes")
    add("--mirror", action="store_true", help="also store the latent of every mirrored picture: twice the bytes")
    add("--max-pixels", type=int, default=2**28, metavar="N", help="larger pictures become failures (default: 2^28)")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    add("--engine", choices=("local", "ray"), default="local", help="what runs the workers (default: local)")
    add("--address", metavar="ADDRESS", help="of a Ray cluster")
    add("--device", default="cpu", help="of the analysis: cpu or cuda; the latents are the same (default: cpu)")
    add("--part", metavar="I/N", help="convert the I-th of N parts only; the finish command joins them")
    add("--on-error", choices=("record", "stop"), default="record", help="what a broken picture does (default: record)")
    add("--max-failures", type=int, metavar="N", help="stop after more than N broken pictures")
    add("--overwrite", action="store_true", help="delete this split first, if there is one")


def _encode(args: Args) -> Outcome:
    from walloc_data.convert import encode_dataset
    from walloc_data.format import EncodeSettings
    from walloc_data.sources import open_source

    source = open_source(
        args.source,
        split=args.source_split or args.split,
        image_column=args.image_column,
        label_column=args.label_column,
        streaming=args.streaming,
    )
    summary = encode_dataset(
        source,
        args.out,
        split=args.split,
        codec=args.codec,
        settings=EncodeSettings(
            size_px=args.size,
            samples_per_shard=args.samples_per_shard,
            shuffle_seed=None if args.no_shuffle else args.shuffle_seed,
            webp_effort=args.effort,
            mirror=args.mirror,
            max_pixels=args.max_pixels,
        ),
        workers=args.workers,
        engine=args.engine,
        address=args.address,
        device=args.device,
        on_error=args.on_error,
        max_failures=args.max_failures,
        overwrite=args.overwrite,
        part=args.part,
    )
    return Outcome(summary.to_dict(), str(summary))


def _dataset_arguments(parser: Parser) -> None:
    parser.add_argument("out", metavar="OUT", help="the data set: a folder or URL")


def _split_arguments(parser: Parser, *, default: str | None = None) -> None:
    _dataset_arguments(parser)
    parser.add_argument("--split", default=default, help=f"one split (default: {default or 'all'})")


def _finish(args: Args) -> Outcome:
    from walloc_data.convert import finish_dataset

    summaries = finish_dataset(args.out, split=args.split)
    return Outcome(
        {"splits": {name: summary.to_dict() for name, summary in summaries.items()}},
        "\n".join(map(str, summaries.values())),
    )


def _info(args: Args) -> Outcome:
    from walloc_data.convert import dataset_info

    info = dataset_info(args.out)
    return Outcome(info.to_dict(), str(info))


def _verify(args: Args) -> Outcome:
    from walloc_data.convert import verify_dataset

    found = verify_dataset(args.out, split=args.split)
    return Outcome(found.to_dict(), str(found), exit_code=1 if found.problems else 0)


def _decode_arguments(parser: Parser) -> None:
    _split_arguments(parser, default="train")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the PNG files go")
    parser.add_argument("--keys", nargs="+", metavar="KEY", help="which samples (default: all)")
    parser.add_argument("--codec", metavar="CODEC", help="another decoder than the data set's own")


def _decode(args: Args) -> Outcome:
    from walloc_data.convert import decode_dataset

    paths = decode_dataset(args.out, args.output, split=args.split, keys=args.keys, codec=args.codec)
    return Outcome({"pictures": [str(path) for path in paths]}, f"{len(paths)} pictures in {args.output}")


def _preview_arguments(parser: Parser) -> None:
    _split_arguments(parser, default="train")
    parser.add_argument("-o", "--output", default="preview.png", metavar="FILE", help="(default: preview.png)")
    parser.add_argument("--keys", nargs="+", metavar="KEY", help="which samples (default: a few of many classes)")
    parser.add_argument("--num-samples", type=int, default=8, metavar="N", help="(default: 8)")
    parser.add_argument("--original", metavar="SOURCE", help="show the source's pictures beside, with PSNR")


def _preview(args: Args) -> Outcome:
    from walloc_data.convert import dataset_info, original_pictures
    from walloc_data.report import preview
    from walloc_data.sources import open_source

    original = None
    if args.original is not None and (manifest := dataset_info(args.out).manifest) is not None:
        source = open_source(args.original, split=args.split)
        original = original_pictures(source, settings=manifest.settings)
    path = preview(
        args.out,
        args.output,
        split=args.split,
        keys=args.keys,
        num_samples=args.num_samples,
        original=original,
    )
    return Outcome({"picture": str(path)}, str(path))


def _report_arguments(parser: Parser) -> None:
    _dataset_arguments(parser)
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE", help="(default: report.html)")


def _report(args: Args) -> Outcome:
    from walloc_data.report import report

    path = report(args.out, args.output)
    return Outcome({"page": str(path)}, str(path))


def _push_arguments(parser: Parser) -> None:
    _dataset_arguments(parser)
    parser.add_argument("destination", metavar="DESTINATION", help="hf://datasets/USER/NAME or s3://bucket/prefix")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent; send nothing")
    parser.add_argument("--replace", action="store_true", help="the destination may hold another data set")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def _push(args: Args) -> Outcome:
    from dataclasses import asdict

    from walloc_data.push import push

    def progress(path: str, sent: int, total: int) -> None:
        print(f"{sent / 1e6:.1f} of {total / 1e6:.1f} MB  {path}", file=sys.stderr)

    result = push(
        args.out,
        args.destination,
        dry_run=args.dry_run,
        replace=args.replace,
        private=args.private,
        progress=progress,
    )
    verb = "would go" if result.dry_run else "sent"
    text = (
        f"{result.destination}: {len(result.uploaded)} files {verb}, {result.num_bytes / 1e6:.1f} MB; "
        f"{len(result.unchanged)} were there already"
    )
    if result.left_out:
        text += f"; left at home: {', '.join(result.left_out)}"
    return Outcome(asdict(result), text)


def _demo_arguments(parser: Parser) -> None:
    parser.add_argument("out", metavar="FOLDER", nargs="?", default="walloc-demo", help="(default: walloc-demo)")
    parser.add_argument("--epochs", type=int, default=20, help="of training (default: 20, about a minute)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="of the conversion (default: 1)")


def _demo(args: Args) -> Outcome:
    from walloc_data.demo import run_demo

    # Progress goes to stderr, so that --json leaves one object on stdout.
    result = run_demo(
        args.out, epochs=args.epochs, workers=args.workers, say=lambda line: print(line, file=sys.stderr, flush=True)
    )
    return Outcome(result.to_dict(), str(result))


@dataclass(frozen=True)
class Command:
    """A subcommand: its one-line help, examples, arguments and the call behind it."""

    help: str
    arguments: Callable[[Parser], None]
    run: Callable[[Args], Outcome]
    examples: tuple[str, ...] = ()


COMMANDS = {
    "demo": Command(
        "encode bundled photographs, train on the latents, draw a picture",
        _demo_arguments,
        _demo,
        ("walloc-data demo",),
    ),
    "encode": Command(
        "encode a data set of pictures into shards of latents",
        _encode_arguments,
        _encode,
        (
            "walloc-data encode photos/ my-latents --size 256 --workers 4",
            "walloc-data encode hf:uoft-cs/cifar10 my-latents --split test",
            "walloc-data encode 'wds:train-{0000..0146}.tar' s3://bucket/latents",
        ),
    ),
    "finish": Command(
        "join the parts of a conversion into one data set",
        _split_arguments,
        _finish,
        ("walloc-data encode photos/ my-latents --part 1/8   # ... --part 8/8", "walloc-data finish my-latents"),
    ),
    "info": Command("say what a data set is", _dataset_arguments, _info, ("walloc-data info my-latents",)),
    "verify": Command(
        "check every byte of a data set; exit 1 and the exact places otherwise",
        _split_arguments,
        _verify,
        ("walloc-data verify my-latents",),
    ),
    "decode": Command(
        "decode latents to PNG pictures",
        _decode_arguments,
        _decode,
        ("walloc-data decode my-latents -o pictures --keys 000000007 000000012",),
    ),
    "preview": Command(
        "draw a contact sheet: latents, channels, reconstructions",
        _preview_arguments,
        _preview,
        ("walloc-data preview my-latents -o preview.png --original photos/",),
    ),
    "report": Command(
        "write one HTML page about a data set", _report_arguments, _report, ("walloc-data report my-latents",)
    ),
    "push": Command(
        "upload a data set to the Hugging Face Hub or a bucket",
        _push_arguments,
        _push,
        (
            "walloc-data push my-latents hf://datasets/me/my-latents --dry-run",
            "walloc-data push my-latents s3://bucket/my-latents",
        ),
    ),
}


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(
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
    try:
        outcome: Outcome = args.run(args)
        print(json.dumps(outcome.data, ensure_ascii=False) if args.json else outcome.text, flush=True)
    except WallocDataError as error:
        print(f"walloc-data: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        # The converter's own message says how to resume.
        print(f"\nwalloc-data: interrupted{': ' + str(error) if str(error) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `walloc-data ... | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return outcome.exit_code
