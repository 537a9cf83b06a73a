"""Accuracy of a pixel classifier on latents: folded, fine-tuned, and compared with training from scratch.

    python -m benchmarks.train_folded PICTURES --work SCRATCH --name imagenette160 --size-px 160 -- \\
        --model vit_small_patch32_224 --model-kwargs '{"depth": 6, "embed_dim": 192, "num_heads": 3}' --epochs 3

PICTURES holds train/ and val/, one folder a class. What follows `--` goes to examples/finetune_folded.py, which trains
the pixel model itself.
"""

import sys

from benchmarks.results import shown, write_results
from benchmarks.train_example import encode_splits, load_example, parse


def main(argv: list[str] | None = None) -> None:
    given = sys.argv[1:] if argv is None else argv
    args, passed_on = parse(given, description=__doc__, result="folded_NAME")
    latents = args.work / "latents"
    encode_splits(args.pictures, latents, size_px=args.size_px, codec=args.codec)
    sources = ["--train-pictures", str(args.pictures / "train"), "--val-pictures", str(args.pictures / "val")]
    result = load_example("finetune_folded").main(
        [str(latents), *sources, "--output", str(args.work / "folded"), *passed_on]
    )
    print(f"written to {write_results(f'folded_{args.name}', result, arguments=shown(given))}")


if __name__ == "__main__":
    main()
