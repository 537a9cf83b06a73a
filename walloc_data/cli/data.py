"""Commands that make and check data sets."""

import argparse
from typing import TYPE_CHECKING, Any

from walloc_data.cli.command import (
    READING,
    Args,
    Command,
    Outcome,
    Parser,
    add_dataset,
    add_reading,
    add_split,
    add_storage,
    log_if_slow,
)
from walloc_data.errors import SourceError

if TYPE_CHECKING:
    from walloc_data.sources import Source

__all__ = ["COMMANDS"]


def _encode_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="a folder or archive of class folders, hf:NAME[/CONFIG], saved HF data, wds:URLS, parquet",
    )
    add("dataset", metavar="DATASET", help="the data set's folder, or s3://bucket/prefix")
    add("--split", default="train", help="the split to write; all, or A,B: those of the source (default: train)")
    _source_arguments(parser)
    add("--codec", metavar="CODEC", help="a bundled name, a folder, a .pth or hf://owner/repo/file.pth")
    _settings_arguments(parser)
    add("--no-shuffle", action="store_true", help="keep the source's order")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    add("--engine", choices=("local", "ray"), default="local", help="what runs the workers (default: local)")
    add("--address", metavar="ADDRESS", help="of a Ray cluster")
    add("--device", default="cpu", help="of the analysis: cpu or cuda; the latents are the same (default: cpu)")
    add("--part", metavar="I/N", help="convert the I-th of N parts only; the finish command joins them")
    add(
        "--on-error",
        choices=("record", "record-unreadable", "stop"),
        default="record",
        help="record broken pictures as failures; files that cannot be read, too; or stop at either (default: record)",
    )
    add("--max-failures", type=int, metavar="N", help="stop after more than N broken pictures")
    add("--overwrite", action="store_true", help="make this split anew, then replace the one there")
    add("--repair", action="store_true", help="check every byte of what is done, and make anew what is damaged")
    add("--retry-failures", action="store_true", help="do the pictures listed in failures/ again")
    add_storage(parser)
    _preview_argument(parser)


def _settings_arguments(parser: Parser) -> None:
    """Add the options whose defaults are the settings of the data set that a split joins, or those named here."""
    group = parser.add_argument_group("settings", "left out, they are those of the data set where it has a split")

    def add(name: str, **options: Any) -> None:
        group.add_argument(name, default=argparse.SUPPRESS, **options)

    add("--size", type=int, metavar="N", help="resize the shorter side to N pixels and crop the centre square")
    add(
        "--resize",
        metavar="HOW:N",
        help="crop:N, as --size N; shorter:N, the shorter side to N and nothing cut off; square:N, both sides to N",
    )
    add("--filter", choices=("bicubic", "lanczos"), help="that resizes (default: bicubic)")
    add("--snap", type=int, metavar="N", help="crop sides, around the centre, to multiples of N pixels")
    add("--samples-per-shard", type=int, metavar="N", help="(default: 2048)")
    add("--shuffle-seed", type=int, metavar="SEED", help="of the order in the shards (default: 0)")
    add("--effort", choices=("default", "fast"), help="of WebP; fast: a few per cent more bytes")
    add("--mirror", action="store_true", help="also store the latent of every mirrored picture: twice the bytes")
    add("--sample-json", action="store_true", help="also write a JSON beside every latent: 1 kB more a sample")
    add_reading(group)


def _preview_argument(parser: Parser) -> None:
    parser.add_argument("--no-preview", action="store_true", help="do not draw the card's picture, preview.webp")


def _source_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--source-split", metavar="NAME", help="the split of an HF data set to read (default: that of --split)")
    add("--image-column", metavar="NAME", help="the column of pictures (default: found by type)")
    add("--label-column", metavar="NAME", help="the column of labels, folder (of tars), or none (default: found)")
    add(
        "--keep-picture",
        action="append",
        default=[],
        metavar="COLUMN",
        help="keep a second picture of every sample, such as a mask, cut and scaled as the picture is; may be repeated",
    )
    add("--streaming", action="store_true", help="read an HF data set as a stream, in its own order")


def _open_source(args: Args) -> "Source":
    from walloc_data.sources import open_source

    return open_source(
        args.source,
        split=args.source_split or args.split,
        image_column=args.image_column,
        label_column=args.label_column,
        keep_pictures=args.keep_picture,
        streaming=args.streaming,
        storage_options=args.storage_options,
    )


def _verify_arguments(parser: Parser) -> None:
    add_split(parser)
    parser.add_argument("--source", metavar="SOURCE", help="also read what --split was encoded from, and compare")
    _source_arguments(parser)


def _encode(args: Args) -> Outcome:
    from walloc_data.convert import encode_dataset

    if args.split == "all" or "," in args.split:
        return _encode_splits(args)
    with log_if_slow(f"{args.source}: looking at what is there ..."):
        source = _open_source(args)
    summary = encode_dataset(source, args.dataset, split=args.split, **_encode_options(args))
    notes = _preview_notes(args) if args.part is None and summary.num_samples else []
    return Outcome(summary.to_dict() | {"preview_notes": notes}, "\n".join((str(summary), *notes)))


def _encode_splits(args: Args) -> Outcome:
    from walloc_data.convert import encode_splits

    if args.source_split is not None:
        raise SourceError(f"--source-split {args.source_split} names one split, and --split {args.split} several")
    summaries = encode_splits(
        args.source,
        args.dataset,
        splits=None if args.split == "all" else args.split.split(","),
        image_column=args.image_column,
        label_column=args.label_column,
        keep_pictures=args.keep_picture,
        streaming=args.streaming,
        **_encode_options(args),
    )
    notes = _preview_notes(args) if args.part is None else []
    return Outcome(
        {"splits": {name: summary.to_dict() for name, summary in summaries.items()}, "preview_notes": notes},
        "\n".join((*map(str, summaries.values()), *notes)),
    )


def _encode_options(args: Args) -> dict[str, Any]:
    """Return the arguments of `encode_dataset` besides the source and the split."""
    return dict(
        codec=args.codec,
        workers=args.workers,
        engine=args.engine,
        address=args.address,
        device=args.device,
        on_error=args.on_error,
        max_failures=args.max_failures,
        overwrite=args.overwrite,
        repair=args.repair,
        retry_failures=args.retry_failures,
        part=args.part,
        storage_options=args.storage_options,
        **_settings(args),
    )


def _settings(args: Args) -> dict[str, Any]:
    """Return the settings that were given; the others are the data set's, where it has a split."""
    names = {
        "size": "size_px",
        "resize": "resize",
        "filter": "filter",
        "snap": "snap",
        "samples_per_shard": "samples_per_shard",
        "shuffle_seed": "shuffle_seed",
        "effort": "webp_effort",
        "mirror": "mirror",
        "sample_json": "sample_json",
        **{name: name for name in READING},
    }
    given = {name: getattr(args, option) for option, name in names.items() if hasattr(args, option)}
    return given | ({"shuffle_seed": None} if args.no_shuffle else {})


def _preview_notes(args: Args) -> list[str]:
    """Draw the card's picture. The data set is whole without it, so what goes wrong is a note."""
    if args.no_preview:
        return []
    from walloc_data.report import add_preview

    try:
        add_preview(args.dataset, storage_options=args.storage_options)
    except Exception as error:
        return [f"The data set is finished, but its preview could not be drawn ({type(error).__name__}: {error})"]
    return []


def _finish_arguments(parser: Parser) -> None:
    add_split(parser)
    _preview_argument(parser)


def _finish(args: Args) -> Outcome:
    from walloc_data.convert import finish_dataset

    summaries = finish_dataset(args.dataset, split=args.split, storage_options=args.storage_options)
    notes = _preview_notes(args) if summaries else []
    return Outcome(
        {"splits": {name: summary.to_dict() for name, summary in summaries.items()}, "preview_notes": notes},
        "\n".join((*map(str, summaries.values()), *notes)),
    )


def _info(args: Args) -> Outcome:
    from walloc_data.convert import dataset_info

    info = dataset_info(args.dataset, storage_options=args.storage_options)
    return Outcome(info.to_dict(), str(info))


def _verify(args: Args) -> Outcome:
    from walloc_data.convert import verify_dataset

    source = None
    if args.source is not None:
        from walloc_data.errors import FormatError

        if args.split is None:
            raise FormatError(f"{args.source}: say with --split which split was encoded from it")
        source = _open_source(args)
    found = verify_dataset(args.dataset, split=args.split, source=source, storage_options=args.storage_options)
    return Outcome(found.to_dict(), str(found), exit_code=1 if found.problems else 0)


def _decode_arguments(parser: Parser) -> None:
    add_split(parser, default="train")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the PNG files go")
    parser.add_argument("--keys", nargs="+", metavar="KEY", help="which samples (default: all)")
    parser.add_argument("--codec", metavar="CODEC", help="another decoder than the data set's own")


def _decode(args: Args) -> Outcome:
    from walloc_data.convert import decode_dataset

    paths = decode_dataset(
        args.dataset,
        args.output,
        split=args.split,
        keys=args.keys,
        codec=args.codec,
        storage_options=args.storage_options,
    )
    return Outcome({"pictures": [str(path) for path in paths]}, f"{len(paths)} pictures in {args.output}")


COMMANDS = {
    "encode": Command(
        "encode a data set of pictures into shards of latents",
        _encode_arguments,
        _encode,
        (
            "walloc-data encode photos/ my-latents --size 256 --workers 4",
            "walloc-data encode hf:uoft-cs/cifar10 my-latents --split all",
            "walloc-data encode imagenette2-160.tgz my-latents --split train,val --size 160",
            "walloc-data encode 'wds:train-{0000..0146}.tar' s3://bucket/latents",
        ),
    ),
    "finish": Command(
        "join the parts of a conversion into one data set",
        _finish_arguments,
        _finish,
        ("walloc-data encode photos/ my-latents --part 1/8   # ... --part 8/8", "walloc-data finish my-latents"),
    ),
    "info": Command("say what a data set is", add_dataset, _info, ("walloc-data info my-latents",)),
    "verify": Command(
        "check every byte of a data set; exit 1 and the exact places otherwise",
        _verify_arguments,
        _verify,
        ("walloc-data verify my-latents", "walloc-data verify my-latents --split train --source photos/"),
    ),
    "decode": Command(
        "decode latents to PNG pictures",
        _decode_arguments,
        _decode,
        ("walloc-data decode my-latents -o pictures --keys 000000007 000000012",),
    ),
}
