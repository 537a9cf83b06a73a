"""Commands that draw, describe and upload data sets."""

import sys

from walloc_data.cli.command import Args, Command, Outcome, Parser, add_dataset, add_split
from walloc_data.text import printable

__all__ = ["COMMANDS"]


def _preview_arguments(parser: Parser) -> None:
    add_split(parser, default="train")
    parser.add_argument(
        "-o", "--output", default="preview.png", metavar="FILE", help="file to write (default: preview.png)"
    )
    parser.add_argument(
        "--keys",
        nargs="+",
        metavar="KEY",
        help="keys of the samples to draw (default: chosen from as many classes as possible)",
    )
    parser.add_argument(
        "--num-samples", type=int, default=8, metavar="N", help="number of samples to draw (default: 8)"
    )
    parser.add_argument(
        "--original", metavar="SOURCE", help="also draw the original pictures from this source, with PSNR"
    )


def _preview(args: Args) -> Outcome:
    from walloc_data.convert import dataset_info
    from walloc_data.pictures import original_pictures
    from walloc_data.report import preview
    from walloc_data.sources import open_split

    original = None
    options = args.storage_options
    if (
        args.original is not None
        and (manifest := dataset_info(args.dataset, storage_options=options).manifest) is not None
    ):
        source = open_split(args.original, split=args.split, storage_options=options)
        original = original_pictures(source, settings=manifest.settings)
    path = preview(
        args.dataset,
        args.output,
        split=args.split,
        keys=args.keys,
        num_samples=args.num_samples,
        original=original,
        storage_options=options,
    )
    return Outcome({"picture": str(path)}, str(path))


def _report_arguments(parser: Parser) -> None:
    add_dataset(parser)
    parser.add_argument(
        "-o", "--output", default="report.html", metavar="FILE", help="file to write (default: report.html)"
    )
    parser.add_argument("--samples-per-class", type=int, default=3, metavar="N", help="pictures per class (default: 3)")
    parser.add_argument("--max-classes", type=int, default=24, metavar="N", help="classes with pictures (default: 24)")


def _report(args: Args) -> Outcome:
    from walloc_data.report import report

    path = report(
        args.dataset,
        args.output,
        samples_per_class=args.samples_per_class,
        max_classes=args.max_classes,
        storage_options=args.storage_options,
    )
    return Outcome({"page": str(path)}, str(path))


def _push_arguments(parser: Parser) -> None:
    add_dataset(parser)
    parser.add_argument("destination", metavar="DESTINATION", help="hf://datasets/USER/NAME or s3://bucket/prefix")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files that would be uploaded, without uploading"
    )
    parser.add_argument("--replace", action="store_true", help="replace another data set at the destination")
    parser.add_argument("--private", action="store_true", help="create a new repository as private")


def _push(args: Args) -> Outcome:
    from dataclasses import asdict

    from walloc_data.push import push

    def progress(path: str, sent: int, total: int) -> None:
        print(f"{sent / 1e6:.1f} of {total / 1e6:.1f} MB  {printable(path)}", file=sys.stderr)

    result = push(
        args.dataset,
        args.destination,
        dry_run=args.dry_run,
        replace=args.replace,
        private=args.private,
        progress=progress,
        storage_options=args.storage_options,
    )
    verb = "would go" if result.dry_run else "sent"
    text = (
        f"{result.destination}: {len(result.uploaded)} files {verb}, {result.num_bytes / 1e6:.1f} MB; "
        f"{len(result.unchanged)} were already there"
    )
    if result.left_out:
        text += f"; not uploaded: {', '.join(result.left_out)}"
    return Outcome(asdict(result), text)


COMMANDS = {
    "preview": Command(
        "draw a contact sheet of latents, their channels and reconstructions",
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
