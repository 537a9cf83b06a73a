"""Commands that make, check and decode data sets."""

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
        help="folder or archive of class folders, hf:NAME[/CONFIG], saved HF data set, wds:URLS or parquet",
    )
    add("dataset", metavar="DATASET", help="folder or URL of the data set, such as s3://bucket/prefix")
    add(
        "--split",
        default="train",
        help="split to write; 'all' or 'A,B' encodes these splits of the source (default: train)",
    )
    _source_arguments(parser)
    add(
        "--codec",
        metavar="CODEC",
        help="bundled name, folder, .pth file or hf://owner/repo/file.pth (default: the data set's, else rgb-16x-v1)",
    )
    _settings_arguments(parser)
    add("--no-shuffle", action="store_true", help="keep the order of the source")
    add("--workers", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    add("--engine", choices=("local", "ray"), default="local", help="where the workers run (default: local)")
    add("--address", metavar="ADDRESS", help="address of the Ray cluster, with --engine ray")
    add("--device", default="cpu", help="cpu or cuda; the latents are identical (default: cpu)")
    add("--part", metavar="I/N", help="convert only part I of N; run 'walloc-data finish' when all parts are done")
    add(
        "--on-error",
        choices=("record", "record-unreadable", "stop"),
        default="record",
        help="record: list broken pictures in failures/, stop if a file cannot be read from its store; "
        "record-unreadable: list both; stop: stop at either (default: record)",
    )
    add("--max-failures", type=int, metavar="N", help="stop when more than N pictures cannot be encoded")
    add("--overwrite", action="store_true", help="encode the split again, then replace the existing one")
    add("--repair", action="store_true", help="verify the finished shards and encode damaged or missing ones again")
    add("--retry-failures", action="store_true", help="encode the pictures listed in failures/ again")
    add_storage(parser)
    _preview_argument(parser)


def _settings_arguments(parser: Parser) -> None:
    """Add the encode settings; options that are not given are absent from the arguments."""
    group = parser.add_argument_group("settings", "if the data set has a split already, its settings are the defaults")

    def add(name: str, **options: Any) -> None:
        group.add_argument(name, default=argparse.SUPPRESS, **options)

    add("--size", type=int, metavar="N", help="resize the shorter side to N pixels and crop the centre square")
    add(
        "--resize",
        metavar="HOW:N",
        help="crop:N is --size N; shorter:N resizes the shorter side to N without cropping; square:N resizes both "
        "sides to N",
    )
    add("--filter", choices=("bicubic", "lanczos"), help="resampling filter (default: bicubic)")
    add("--snap", type=int, metavar="N", help="crop both sides, around the centre, to multiples of N pixels")
    add("--samples-per-shard", type=int, metavar="N", help="samples per shard (default: 2048)")
    add("--shuffle-seed", type=int, metavar="SEED", help="seed of the order in the shards (default: 0)")
    add(
        "--effort",
        choices=("default", "fast"),
        help="effort of WebP compression; fast gives files a few per cent larger",
    )
    add("--mirror", action="store_true", help="also store the latent of every mirrored picture; doubles the size")
    add("--sample-json", action="store_true", help="also write a JSON file for every latent; adds 1 kB per sample")
    add_reading(group)


def _preview_argument(parser: Parser) -> None:
    parser.add_argument("--no-preview", action="store_true", help="do not draw preview.webp for the data set card")


def _source_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("--source-split", metavar="NAME", help="split of an HF data set to read (default: --split)")
    add("--image-column", metavar="NAME", help="column of the pictures (default: found by type)")
    add(
        "--label-column",
        metavar="NAME",
        help="column of the labels; 'folder' (of tars) or 'none' (default: found by type)",
    )
    add(
        "--keep-picture",
        action="append",
        default=[],
        metavar="COLUMN",
        help="store a second picture of every sample, such as a mask, cropped and resized like the first; repeatable",
    )
    add(
        "--streaming",
        action="store_true",
        help="read an HF data set as a stream, in its own order, without downloading it first",
    )


def _open_source(args: Args, *, encoded: bool = False) -> "Source":
    """Open the source, or what a split was encoded from."""
    from walloc_data.sources import open_source, open_split

    return (open_split if encoded else open_source)(
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
    parser.add_argument(
        "--source", metavar="SOURCE", help="also compare with this source, from which --split was encoded"
    )
    _source_arguments(parser)


def _encode(args: Args) -> Outcome:
    from walloc_data.convert import encode_dataset

    if args.split == "all" or "," in args.split:
        return _encode_splits(args)
    with log_if_slow(f"{args.source}: listing the pictures ..."):
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
    """Return the settings that were given; the converter takes the others from the data set if it has a split."""
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
    """Draw the preview of the card. The data set is complete without it, so an error becomes a note."""
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
            raise FormatError(f"{args.source}: name the split that was encoded from it with --split")
        source = _open_source(args, encoded=True)
    found = verify_dataset(args.dataset, split=args.split, source=source, storage_options=args.storage_options)
    return Outcome(found.to_dict(), str(found), exit_code=1 if found.problems else 0)


def _decode_arguments(parser: Parser) -> None:
    add_split(parser, default="train")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder for the PNG files")
    parser.add_argument("--keys", nargs="+", metavar="KEY", help="keys of the samples to decode (default: all)")
    parser.add_argument("--codec", metavar="CODEC", help="codec to decode with (default: the data set's own)")


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
        "write the manifest after all --part conversions are done",
        _finish_arguments,
        _finish,
        ("walloc-data encode photos/ my-latents --part 1/8   # ... --part 8/8", "walloc-data finish my-latents"),
    ),
    "info": Command("describe a data set", add_dataset, _info, ("walloc-data info my-latents",)),
    "verify": Command(
        "check every byte of a data set; list damaged places and exit with 1 if there are any",
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
