"""Train decoder 2 of rgb-16x-v1: trials of settings side by side, and one run with the best.

    python -m benchmarks.train_decoder OUT --corpus DIR --trial-minutes 1.1 --minutes 5.95 --device cuda

DIR is what `benchmarks.training_pictures` makes: picture files named SET-NUMBER.suffix. Trials run at the same time for
the same minutes, so that they share the device evenly; OUT/trials.json keeps their results, and the best on held-out
pictures names the settings of the run. Kodak is not among the pictures. Stop it when you like: the same command
continues.

A decoder can be trained on with other pictures, DIR2 (`training_pictures --second`), reduced copies of them, and half
of the crops changed in colour. This was tried on a CPU for 140 steps only, and is not part of what is bundled:

    python -m benchmarks.train_decoder OUT2 --corpus DIR2 --from-decoder OUT/decoder.safetensors --reduced
        --colour 0.5 --rate 0.001 --minutes 3 --device cuda
"""

import argparse
import json
import multiprocessing
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from walloc_data.codec import DecoderTrainConfig, PictureSet, load_codec, read_pictures, train_decoder
from walloc_data.codec.training.picture_sets import Corpus

Pixels = npt.NDArray[np.uint8]
ENCODER = "rgb-16x-v1"
TRIALS: dict[str, dict[str, Any]] = {
    "muon, rate 0.001": {"learning_rate": 1e-3},
    "muon, rate 0.002": {"learning_rate": 2e-3},
    "muon, rate 0.004": {"learning_rate": 4e-3},
    "adam, rate 0.001": {"optimizer": "adam", "learning_rate": 1e-3},
    "adam, rate 0.002": {"optimizer": "adam", "learning_rate": 2e-3},
    "muon, rate 0.002, nearly no branch": {"blocks": 19, "half_blocks": 1, "quarter_blocks": 1},
}
LICENCE = "by source, in sources.csv of benchmarks.training_pictures; photographs of ImageNet have no common licence"


MIN_SIDE_PX = 320  # of a picture that holds a crop: 32 cells, and 4 around them
REDUCED = (0.75, 0.55)  # copies: less of the file's compression in every pixel, and other sizes of the same things


def with_reduced(pictures: Iterator[Pixels]) -> Iterator[Pixels]:
    for picture in pictures:
        yield picture
        height, width = picture.shape[:2]
        for factor in REDUCED:
            size = round(width * factor), round(height * factor)
            if min(size) >= MIN_SIDE_PX:
                yield np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def sets(corpus: Path, *, reduced: bool) -> list[PictureSet]:
    """The pictures of DIR by the set in their names, drawn from in proportion to the megabytes of their files."""
    paths: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(corpus.iterdir()):
        if path.suffix.lower() in (".avif", ".jpg", ".png", ".webp"):
            paths[path.stem.rpartition("-")[0]].append(path)
    if not paths:
        raise SystemExit(f"{corpus} holds no pictures")

    def read(files: list[Path]) -> Iterator[Pixels]:
        for file in files:
            yield from read_pictures(file, reduce=False)

    return [
        PictureSet(
            name,
            with_reduced(read(files)) if reduced else read(files),
            weight=sum(file.stat().st_size for file in files) / 1e6,
        )
        for name, files in paths.items()
    ]


def trial(out: Path, name: str, settings: dict[str, Any], results: "multiprocessing.Queue[Any]") -> None:
    torch.set_num_threads(2)
    codec, _ = load_codec(ENCODER)
    result = train_decoder([], out, codec=codec, config=DecoderTrainConfig(**settings))
    results.put({"settings": name, "steps": result.steps, "held_out_psnr_db": result.psnr_db})


def run_trials(out: Path, *, minutes: float, device: str) -> list[dict[str, Any]]:
    """All trials at once, each in its own process and folder; best first."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[Any] = context.Queue()
    processes = []
    for number, (name, settings) in enumerate(TRIALS.items()):
        folder = out / f"trial-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / ".training").mkdir(parents=True)
        for file in ("pictures.u8", "pictures.json"):
            (folder / ".training" / file).symlink_to((out / ".training" / file).resolve())
        full = {**settings, "minutes": minutes, "device": device, "checkpoint_seconds": 3600.0}
        processes.append(context.Process(target=trial, args=(folder, name, full, results)))
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [results.get() for _ in range(results.qsize())]
    for number in range(len(TRIALS)):
        shutil.rmtree(out / f"trial-{number}", ignore_errors=True)
    if not found:
        raise SystemExit("every trial failed")
    return sorted(found, key=lambda item: -item["held_out_psnr_db"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    parser.add_argument("--reduced", action="store_true", help="add reduced copies of the pictures")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of the run")
    length.add_argument("--steps", type=int, help="of the run")
    parser.add_argument("--from-decoder", type=Path, metavar="FILE", help="decoder file to start from")
    parser.add_argument("--batch-size", type=int, default=32, help="crops per step (default: 32)")
    parser.add_argument("--rate", type=float, help="learning rate, instead of that of the settings")
    parser.add_argument("--colour", type=float, default=0.0, help="fraction of crops with changed colours (default: 0)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--trial-minutes", type=float, default=0.0, help="lengths of the trials before it (default: none)"
    )
    parser.add_argument("--settings", choices=TRIALS, help="settings of the run if there are no trials")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prepare", action="store_true", help="decode the pictures, and stop")
    args = parser.parse_args()
    work = args.out / ".training"
    if not Corpus.exists(work):
        Corpus.build(sets(args.corpus, reduced=args.reduced), work)
    if args.prepare:
        return
    trials = args.out / "trials.json"
    if args.trial_minutes and not trials.exists():
        found = run_trials(args.out, minutes=args.trial_minutes, device=args.device)
        trials.write_text(json.dumps({"minutes": args.trial_minutes, "trials": found}, indent=1) + "\n")
        print(trials.read_text(), flush=True)
    best = json.loads(trials.read_text())["trials"][0]["settings"] if trials.exists() else "muon, rate 0.002"
    settings = dict(TRIALS[args.settings or best])
    if args.rate is not None:
        settings["learning_rate"] = args.rate
    torch.set_num_threads(args.threads)
    codec, _ = load_codec(ENCODER, decoder=args.from_decoder or True)
    config = DecoderTrainConfig(
        **settings, minutes=args.minutes, steps=args.steps, batch_size=args.batch_size, colour=args.colour,
        device=args.device, start="decoder" if args.from_decoder else "linear", checkpoint_seconds=60,
        validate_seconds=60,
        data_licence=LICENCE,
    )  # fmt: skip
    print(train_decoder([], args.out, codec=codec, config=config, log=lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
