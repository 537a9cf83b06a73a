"""Commands that change finished data sets: adopt, append, remove, merge, retry."""

import argparse
from pathlib import Path
from typing import Any

from walloc_data.cli.command import Args, Command, Outcome, Parser, add_dataset, add_split, add_storage
from walloc_data.errors import FormatError

__all__ = ["COMMANDS"]

_MAX_LIST_BYTES = 2**28


def _work_arguments(parser: Parser) -> None:
    """Add the arguments of commands that encode pictures."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder or archive, hf:NAME[/CONFIG], wds:URLS or parquet, as for encode")
    add_split(parser, default="train")
    add("--image-column", metavar="NAME", help="column of the pictures (default: found by type)")
    add(
        "--label-column",
        metavar="NAME",
        help="column of the labels; 'folder' (of tars) or 'none' (default: found by type)",
    )
    add("--keep-picture", action="append", default=[], metavar="COLUMN", help="second picture to keep, as for encode")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    add("--device", default="cpu", help="cpu or cuda; the latents are identical (default: cpu)")
    add("--max-failures", type=int, metavar="N", help="stop when more than N pictures cannot be encoded")


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
        help="codec that made the latents: a bundled name, a folder, a .pth file or hf://owner/repo/file.pth",
    )
    add("--source-split", metavar="NAME", help="split of an HF data set to read (default: --split)")
    add("--streaming", action="store_true", help="read an HF data set as a stream, without downloading it first")
    add(
        "--resize",
        default=argparse.SUPPRESS,
        metavar="HOW:N",
        help="resizing of the pictures behind the latents, e.g. shorter:288; only recorded",
    )
    add(
        "--samples-per-shard",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="samples per shard (default: 2048)",
    )
    add("--trusted", action="store_true", help="skip the check that the pictures are latents of this codec")


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
    parser.add_argument("--again", action="store_true", help="append even if the same pictures were appended before")
    parser.add_argument("--restart", action="store_true", help="discard an interrupted append of other pictures")


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
    add("--split", required=True, help="split to remove from; without other options, the split itself is removed")
    add("--keys", nargs="+", default=[], metavar="KEY", help="remove the samples with these keys")
    add("--names", nargs="+", default=[], metavar="NAME", help="remove the pictures with these names in the source")
    add("--names-from", metavar="FILE", help="file of names to remove, one per line")
    add("--classes", nargs="+", default=[], metavar="CLASS", help="remove all samples of these classes")


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
    parser.add_argument("first", metavar="FIRST", help="folder or URL of a finished data set")
    parser.add_argument("second", metavar="SECOND", help="another data set with the same codec and settings")
    parser.add_argument("-o", "--output", required=True, metavar="DATASET", help="folder or URL of the new data set")
    add_storage(parser)


def _merge(args: Args) -> Outcome:
    from walloc_data.maintain import merge_datasets

    summaries = merge_datasets(args.first, args.second, args.output, storage_options=args.storage_options)
    return Outcome(
        {"splits": {summary.split: summary.to_dict() for summary in summaries}}, "\n".join(map(str, summaries))
    )


COMMANDS = {
    "adopt": Command(
        "make a data set from published packed latents",
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
        "merge two data sets into a new one",
        _merge_arguments,
        _merge,
        ("walloc-data merge first-latents second-latents -o both-latents",),
    ),
    "retry": Command(
        "encode the pictures listed in failures/ again",
        _work_arguments,
        _retry,
        ("walloc-data retry photos/ my-latents --split train",),
    ),
}
