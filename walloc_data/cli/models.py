"""Commands that train codecs, adapt models and classify pictures."""

import sys
from argparse import SUPPRESS
from typing import TYPE_CHECKING, Any

from walloc_data.cli.command import READING, Args, Command, Outcome, Parser, add_reading
from walloc_data.errors import CodecError
from walloc_data.text import printable

if TYPE_CHECKING:
    from walloc_data.codec import PictureSet

__all__ = ["COMMANDS"]


def _log(line: str) -> None:
    # Progress goes to stderr, so that --json leaves one object on stdout.
    print(printable(line), file=sys.stderr, flush=True)


def _demo_arguments(parser: Parser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        default="walloc-demo",
        help="folder for the results (default: walloc-demo)",
    )
    parser.add_argument("--epochs", type=int, default=10, help="training epochs (default: 10, one to two minutes)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that encode (default: 1)")


def _demo(args: Args) -> Outcome:
    from walloc_data.demo import run_demo

    result = run_demo(args.folder, epochs=args.epochs, workers=args.workers, log=_log)
    return Outcome(result.to_dict(), str(result))


def _train_codec_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="folders or tars of pictures; FOLDER=0.5 halves how often its pictures are drawn",
    )
    add("-o", "--output", required=True, metavar="FOLDER", help="folder of the codec; an interrupted run resumes there")
    add("--name", default=SUPPRESS, help="name of the codec, in lower case (default: my-codec)")
    add(
        "--closed-form",
        action="store_true",
        default=SUPPRESS,
        help="compute the KLT and a linear decoder instead of training; takes seconds for 12 channels",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=int, metavar="N", help="number of optimizer steps; gives the same codec on every machine"
    )
    length.add_argument("--minutes", type=float, metavar="M", help="train for about M minutes")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "--rate-weight",
        type=float,
        default=SUPPRESS,
        metavar="W",
        help="weight of the bit rate in the loss (default: 0.01)",
    )
    rate.add_argument(
        "--target-bpp", type=float, default=SUPPRESS, metavar="BPP", help="adjust the weight to reach this bit rate"
    )
    add(
        "--latent-channels",
        type=int,
        default=SUPPRESS,
        metavar="N",
        help="latent channels, 3 times a square (default: 12)",
    )
    add(
        "--levels",
        type=int,
        default=SUPPRESS,
        metavar="J",
        help="wavelet packet levels; a cell has 2^J pixels a side (default: 3)",
    )
    add("--encoder", metavar="CODEC", help="train only a decoder, for the encoder of this codec")
    add(
        "--decoder-version",
        default=SUPPRESS,
        metavar="NAME",
        help="with --encoder: version name of the decoder (default: 2)",
    )
    add(
        "--from-decoder",
        default=SUPPRESS,
        metavar="FILE",
        help="with --encoder: start from this decoder file instead of the linear decoder",
    )
    add(
        "--keep-size",
        action="store_true",
        default=SUPPRESS,
        help="with --encoder: do not downscale large pictures",
    )
    add("--decoder-width", type=int, default=192, metavar="N", help="channels of the decoder (default: 192)")
    add(
        "--decoder-blocks", type=int, metavar="N", help="residual blocks of the decoder (default: 8; with --encoder 13)"
    )
    add("--seed", type=int, default=0, help="random seed (default: 0)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--data-licence", default="not stated", metavar="TEXT", help="licence of the pictures, for the model card")
    add("--restart", action="store_true", help="start again instead of resuming")
    add_reading(parser)


# Options of one of the two trainings and the fields of its config; absent from the arguments unless given.
_OF_CODECS = {
    "name": "name",
    "closed_form": "closed_form",
    "rate_weight": "rate_weight",
    "target_bpp": "target_bpp",
    "latent_channels": "latent_dim",
    "levels": "J",
}
_OF_DECODERS = ("decoder_version", "from_decoder", "keep_size")


def _train_codec(args: Args) -> Outcome:
    from pathlib import Path

    from walloc_data.codec import PictureSet, TrainConfig, read_pictures, train_codec
    from walloc_data.format import EncodeSettings

    strange = [name for name in (_OF_CODECS if args.encoder else _OF_DECODERS) if hasattr(args, name)]
    if strange:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in strange)
        raise CodecError(
            f"{options}: cannot be combined with --encoder, which trains a decoder only"
            if args.encoder
            else f"{options}: only valid with --encoder CODEC, which trains a decoder for that codec"
        )
    settings = EncodeSettings(**{name: getattr(args, name) for name in READING if hasattr(args, name)})
    sets = []
    for source in args.source:
        path, weight = _weighted(source)
        reading = read_pictures(path, reduce=not hasattr(args, "keep_size"), settings=settings, log=_log)
        sets.append(PictureSet(Path(path).name, reading, weight))
    if args.encoder is not None:
        return _train_decoder(args, sets)
    fields: dict[str, Any] = {"name": "my-codec"}
    fields |= {field: getattr(args, name) for name, field in _OF_CODECS.items() if hasattr(args, name)}
    config = TrainConfig(
        **fields,
        steps=args.steps,
        minutes=args.minutes,
        decoder_width=args.decoder_width,
        decoder_blocks=args.decoder_blocks or 8,
        seed=args.seed,
        device=args.device,
        data_licence=args.data_licence,
    )
    result = train_codec(sets, args.output, config=config, resume=not args.restart, log=_log)
    return Outcome(result.to_dict(), str(result))


def _train_decoder(args: Args, sets: "list[PictureSet]") -> Outcome:
    from walloc_data.codec import DecoderTrainConfig, load_codec, train_decoder

    begun = getattr(args, "from_decoder", None)
    codec, _ = load_codec(args.encoder, decoder=begun or True)
    config = DecoderTrainConfig(
        start="decoder" if begun else "linear",
        version=getattr(args, "decoder_version", "2"),
        steps=args.steps,
        minutes=args.minutes,
        width=args.decoder_width,
        blocks=args.decoder_blocks or 13,
        seed=args.seed,
        device=args.device,
        data_licence=args.data_licence,
    )
    result = train_decoder(sets, args.output, codec=codec, config=config, resume=not args.restart, log=_log)
    return Outcome(result.to_dict(), str(result))


def _weighted(source: str) -> tuple[str, float]:
    """Parse FOLDER or FOLDER=WEIGHT."""
    path, separator, weight = source.rpartition("=")
    try:
        return (path, float(weight)) if separator else (source, 1.0)
    except ValueError:
        return source, 1.0  # an equals sign in the path itself


def _fit_operators_arguments(parser: Parser) -> None:
    parser.add_argument("codec", metavar="FOLDER", help="folder of a codec, or of a data set that contains one")
    parser.add_argument("pictures", metavar="SOURCE", help="pictures to fit on; a source as for encode")
    parser.add_argument(
        "--num-pictures", type=int, default=400, metavar="N", help="number of pictures to fit on (default: 400)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of pictures (default: 0)")


def _fit_operators(args: Args) -> Outcome:
    from walloc_data.fitting import fit_codec_operators

    operators = fit_codec_operators(args.codec, pictures=args.pictures, num_pictures=args.num_pictures, seed=args.seed)
    errors = dict(operators.held_out_error)
    shown = {name: e for name, e in errors.items() if not name.startswith("rescale")}
    shown |= {f"rescale {f}": e for f in operators.factors if (e := errors.get(f"rescale {f} x {f}")) is not None}
    text = "held-out error, relative to the variance: " + ", ".join(f"{name} {e:.3f}" for name, e in shown.items())
    return Outcome({"held_out_error": errors}, text)


def _predict_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="folder written by adapt, save_latent_model or examples/train_timm.py"
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files or folders")
    parser.add_argument(
        "--codec", metavar="CODEC", help="codec or data set to encode with, if the model's folder has no codec"
    )
    parser.add_argument(
        "--top", type=int, default=1, metavar="K", help="number of classes to list per picture (default: 1)"
    )
    add_reading(parser)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")


def _predict(args: Args) -> Outcome:
    from dataclasses import asdict

    from walloc_data.format import EncodeSettings
    from walloc_data.serving import predict

    settings = EncodeSettings(**{name: getattr(args, name) for name in READING if hasattr(args, name)})
    problems: list[str] = []

    def note(line: str) -> None:
        problems.append(line)
        _log(f"walloc-data: {line}")

    found = predict(
        args.model,
        args.pictures,
        codec=args.codec,
        top=args.top,
        device=args.device,
        settings=settings,
        on_error=note,
    )
    lines = [str(item) if args.top == 1 else item.listing() for item in found]
    data = {"predictions": [asdict(item) for item in found], "problems": problems}
    return Outcome(data, "\n".join(lines), exit_code=1 if problems else 0)


def _adapt_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="timm model trained on pixels, or hf_hub:OWNER/REPOSITORY")
    add("dataset", metavar="DATASET", help="folder or URL of an encoded data set")
    add(
        "--pictures",
        required=True,
        metavar="SOURCE",
        help="source that the split was encoded from, or a folder of splits",
    )
    add("-o", "--output", required=True, metavar="FOLDER", help="folder of the model; an interrupted run resumes there")
    add("--weights", metavar="FILE", help="state dict, .safetensors or .pth (default: timm's pretrained weights)")
    add(
        "--num-classes",
        type=int,
        metavar="N",
        help="number of classes, if different from the model's: the classifier keeps the weights of the data set's "
        "classes if they are ImageNet's, and is otherwise new, to be trained with labels before it predicts",
    )
    add("--split", default="train", help="split of the data set (default: train)")
    geometries = ("pixel_grid", "skip_early", "all_stages")
    add("--geometry", choices=geometries, help="default: pixel_grid; skip_early leaves out the first stages")
    add(
        "--input-cells",
        type=int,
        metavar="N",
        help="side of the input latents in cells (default: the model's input size if 0.8 to 1 of the stored size, "
        "else the stored size)",
    )
    add("--train-cells", type=int, metavar="N", help="side of the latents during training (default: --input-cells)")
    add(
        "--stem-blocks",
        type=int,
        metavar="N",
        help="residual blocks of the stem (default: 0 if it can be folded, else 2)",
    )
    add("--stem-channels", type=int, metavar="N", help="channels of the stem (default: 96, or 48 without blocks)")
    add(
        "--stem-kernel-cells",
        type=int,
        metavar="N",
        help="kernel size of the stem in cells (default: depends on the model)",
    )
    add(
        "--stem-epochs",
        type=float,
        metavar="X",
        help="epochs that train only the new layers (default: 0 if the stem is folded, else 1)",
    )
    add(
        "--epochs",
        type=float,
        metavar="X",
        help="epochs that train the full model (default: 0 if the stem is folded, else 4)",
    )
    add("--batch-size", type=int, metavar="N", help="pictures per step (default: 32)")
    add("--lr", type=float, metavar="X", help="peak learning rate of the pretrained layers (default: 5e-5)")
    add("--stem-lr", type=float, metavar="X", help="peak learning rate of the new layers (default: 2e-3)")
    add("--held-out", type=int, metavar="N", help="pictures held out for the report (default: 500, at most an eighth)")
    add("--seed", type=int, metavar="N", help="random seed (default: 0)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--restart", action="store_true", help="start again instead of resuming")


def _adapt(args: Args) -> Outcome:
    from dataclasses import fields

    from walloc_data.adapting import AdaptConfig, adapt_model

    given = {field.name: getattr(args, field.name, None) for field in fields(AdaptConfig)}
    _, report = adapt_model(
        args.model,
        dataset=args.dataset,
        pictures=args.pictures,
        pretrained=args.weights or True,
        num_classes=args.num_classes,
        output=args.output,
        config=AdaptConfig(**{name: value for name, value in given.items() if value is not None}),
        device=args.device,
        resume=not args.restart,
        log=_log,
    )
    hint = "" if report.is_untrained else f"\nwalloc-data predict {args.output} PICTURES..."
    return Outcome(report.to_dict(), f"{report}{hint}")


COMMANDS = {
    "demo": Command(
        "encode bundled photographs, train on the latents, draw a picture",
        _demo_arguments,
        _demo,
        ("walloc-data demo",),
    ),
    "train-codec": Command(
        "train a codec on pictures",
        _train_codec_arguments,
        _train_codec,
        (
            "walloc-data train-codec photos/ -o my-codec --minutes 60 --target-bpp 0.6",
            "walloc-data train-codec photos.tar -o my-klt --closed-form",
            "walloc-data train-codec photos/ -o my-decoder --encoder rgb-16x-v1 --minutes 60 --device cuda",
        ),
    ),
    "fit-operators": Command(
        "fit the flip, colour and rescaling operators of a codec",
        _fit_operators_arguments,
        _fit_operators,
        ("walloc-data fit-operators my-latents photos/",),
    ),
    "adapt": Command(
        "turn a timm model trained on pixels into a classifier of latents",
        _adapt_arguments,
        _adapt,
        (
            "walloc-data adapt resnet50.a1_in1k my-latents --pictures photos/ -o my-classifier",
            "walloc-data adapt tf_efficientnet_lite0 my-latents --pictures photos/ -o my-classifier "
            "--weights lite0.safetensors --geometry skip_early --epochs 20 --device cuda",
        ),
    ),
    "predict": Command(
        "classify picture files with a model of latents",
        _predict_arguments,
        _predict,
        ("walloc-data predict runs/latent/model cat.jpg dog.jpg", "walloc-data predict my-classifier photos/ --top 5"),
    ),
}
