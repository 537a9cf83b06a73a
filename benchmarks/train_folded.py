"""What a pixel classifier is worth on latents: folded, fine-tuned, and against the same network from scratch.

    python -m benchmarks.train_folded PICTURES --work SCRATCH --name imagenette160 --size-px 160 -- \\
        --model vit_small_patch32_224 --model-kwargs '{"depth": 6, "embed_dim": 192, "num_heads": 3}' --epochs 3

PICTURES holds train/ and val/, one folder a class. What follows `--` goes to examples/finetune_folded.py, which trains
the pixel model itself.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.results import write_results
from benchmarks.train_example import encode_splits, load_example, shown


def main(argv: list[str] | None = None) -> None:
    given = sys.argv[1:] if argv is None else argv
    split_at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the result: benchmarks/results/folded_NAME.json")
    parser.add_argument("--size-px", type=int, required=True)
    parser.add_argument("--codec", help="what load_codec takes; default the bundled one")
    args = parser.parse_args(given[:split_at])
    latents = args.work / "latents"
    encode_splits(args.pictures, latents, size_px=args.size_px, codec=args.codec)
    sources = ["--train-pictures", str(args.pictures / "train"), "--val-pictures", str(args.pictures / "val")]
    result = load_example("finetune_folded").main(
        [str(latents), *sources, "--output", str(args.work / "folded"), *given[split_at + 1 :]]
    )
    print(f"written to {write_results(f'folded_{args.name}', result, arguments=shown(given))}")


if __name__ == "__main__":
    main()
