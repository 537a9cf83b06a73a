"""Commands of a data set's later life: pictures added or removed, data sets joined, failures done again."""

import argparse
from pathlib import Path
from typing import Any

from walloc_data.cli.command import Args, Command, Outcome, Parser, add_dataset, add_split, add_storage
from walloc_data.errors import FormatError

__all__ = ["COMMANDS"]

_MAX_LIST_BYTES = 2**28


def _work_arguments(parser: Parser) -> None:
    """Options of the conversion behind a command."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="as for encode: a folder or archive, hf:NAME[/CONFIG], wds:URLS, parquet")
    add_split(parser, default="train")
    add("--image-column", metavar="NAME", help="the column of pictures (default: found by type)")
    add("--label-column", metavar="NAME", help="the column of labels, folder (of tars), or none (default: found)")
    add("--keep-picture", action="append", default=[], metavar="COLUMN", help="as for encode, where the split has it")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    add("--device", default="cpu", help="of the analysis: cpu or cuda; the latents are the same (default: cpu)")
    add("--max-failures", type=int, metavar="N", help="stop after more than N broken pictures")


def _work(args: Args) -> dict[str, Any]:
    return {
        "split": args.split,
        "workers": args.workers,
        "device": args.device,
        "max_failures": args.max_failures,
        "storage_options": args.storage_options,
    }


def _adopt_arguments(parser: Parser) -> None:
    _work_arguments(parser)
    add = parser.add_argument
    add(
        "--codec",
        required=True,
        metavar="CODEC",
        help="that made the latents: a bundled name, a folder, a .pth, hf://...",
    )
    add("--source-split", metavar="NAME", help="the split of an HF data set to read (default: that of --split)")
    add("--streaming", action="store_true", help="read an HF data set as a stream")
    add(
        "--resize",
        default=argparse.SUPPRESS,
        metavar="HOW:N",
        help="what their pictures were, e.g. shorter:288",
    )
    add("--samples-per-shard", type=int, default=argparse.SUPPRESS, metavar="N", help="(default: 2048)")
    add("--trusted", action="store_true", help="do not try whether these are latents")


def _adopt(args: Args) -> Outcome:
    from walloc_data.maintain import adopt_dataset
    from walloc_data.sources import open_source

    source = open_source(
        args.source,
        split=args.source_split or args.split,
        image_column=args.image_column,
        label_column=args.label_column,
        streaming=args.streaming,
        storage_options=args.storage_options,
    )
    given = {name: getattr(args, name) for name in ("resize", "samples_per_shard") if hasattr(args, name)}
    summary = adopt_dataset(source, args.dataset, codec=args.codec, trusted=args.trusted, **_work(args), **given)
    return Outcome(summary.to_dict(), str(summary))


def _append_arguments(parser: Parser) -> None:
    _work_arguments(parser)
    parser.add_argument("--again", action="store_true", help="also where these very pictures are there already")
    parser.add_argument("--restart", action="store_true", help="forget an interrupted append of other pictures")


def _append(args: Args) -> Outcome:
    from walloc_data.maintain import append_dataset

    summary = append_dataset(
        args.source,
        args.dataset,
        again=args.again,
        restart=args.restart,
        image_column=args.image_column,
        label_column=args.label_column,
        keep_pictures=args.keep_picture,
        **_work(args),
    )
    return Outcome(summary.to_dict(), str(summary))


def _retry(args: Args) -> Outcome:
    from walloc_data.maintain import retry_failures
    from walloc_data.sources import open_source

    source = open_source(
        args.source,
        split=args.split,
        image_column=args.image_column,
        label_column=args.label_column,
        keep_pictures=args.keep_picture,
        storage_options=args.storage_options,
    )
    summary = retry_failures(source, args.dataset, **_work(args))
    return Outcome(summary.to_dict(), str(summary))


def _remove_arguments(parser: Parser) -> None:
    add_dataset(parser)
    add = parser.add_argument
    add("--split", required=True, help="the split; without more, all of it")
    add("--keys", nargs="+", default=[], metavar="KEY", help="samples with these keys")
    add("--names", nargs="+", default=[], metavar="NAME", help="pictures of these names in the source")
    add("--names-from", metavar="FILE", help="the same, one a line")
    add("--classes", nargs="+", default=[], metavar="CLASS", help="all samples of these classes")


def _remove(args: Args) -> Outcome:
    from walloc_data.maintain import remove_samples, remove_split

    names = [*args.names, *(_lines(args.names_from) if args.names_from is not None else ())]
    if args.names_from is None and not (names or args.keys or args.classes):
        summary = remove_split(args.dataset, split=args.split, storage_options=args.storage_options)
    else:
        summary = remove_samples(
            args.dataset,
            split=args.split,
            keys=args.keys,
            names=names,
            classes=args.classes,
            storage_options=args.storage_options,
        )
    return Outcome(summary.to_dict(), str(summary))


def _lines(path: str) -> list[str]:
    from walloc_data.files import read_regular

    try:
        text = read_regular(Path(path), max_bytes=_MAX_LIST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not a list of names ({error})") from error
    return [line for line in text.splitlines() if line.strip()]


def _merge_arguments(parser: Parser) -> None:
    parser.add_argument("first", metavar="FIRST", help="a finished data set")
    parser.add_argument("second", metavar="SECOND", help="another, of the same codec and settings")
    parser.add_argument("-o", "--output", required=True, metavar="DATASET", help="a new folder or URL")
    add_storage(parser)


def _merge(args: Args) -> Outcome:
    from walloc_data.maintain import merge_datasets

    summaries = merge_datasets(args.first, args.second, args.output, storage_options=args.storage_options)
    return Outcome(
        {"splits": {summary.split: summary.to_dict() for summary in summaries}}, "\n".join(map(str, summaries))
    )


COMMANDS = {
    "adopt": Command(
        "make a data set of packed latents that exist already",
        _adopt_arguments,
        _adopt,
        ("walloc-data adopt hf:OWNER/NAME my-latents --codec rgb-16x-v1 --image-column image --split train",),
    ),
    "append": Command(
        "encode new pictures and add them to a finished split",
        _append_arguments,
        _append,
        ("walloc-data append new-photos/ my-latents --split train --workers 4",),
    ),
    "remove": Command(
        "remove a split, classes or samples from a data set",
        _remove_arguments,
        _remove,
        (
            "walloc-data remove my-latents --split val",
            "walloc-data remove my-latents --split train --classes airship zeppelin",
            "walloc-data remove my-latents --split train --names-from takedown.txt",
        ),
    ),
    "merge": Command(
        "make one data set of two",
        _merge_arguments,
        _merge,
        ("walloc-data merge first-latents second-latents -o both-latents",),
    ),
    "retry": Command(
        "do the pictures listed in failures/ again",
        _work_arguments,
        _retry,
        ("walloc-data retry photos/ my-latents --split train",),
    ),
}
