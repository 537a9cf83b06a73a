"""The example's first result: encode a folder of pictures, train on the latents, keep what came out.

    python -m benchmarks.train_example PICTURES --work SCRATCH --name imagenette160 --size-px 160 -- \\
        --model vit_tiny_patch16_224 --model-kwargs '{"depth": 6, "patch_size": 4}' --epochs 14 --flip fitted

PICTURES holds train/ and val/, one folder a class. What follows `--` goes to examples/train_timm.py. Interrupted, the
same command goes on where it was.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import shown, write_results
from walloc_data import encode_dataset
from walloc_data.fitting import fit_codec_operators
from walloc_data.format import Manifest
from walloc_data.transforms import OPERATORS_NAME

EXAMPLES = Path(__file__).parents[1] / "examples"


def parse(given: list[str], *, description: str, result: str) -> tuple[argparse.Namespace, list[str]]:
    """A benchmark's own arguments, and those after `--`, which are the example's."""
    split_at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True, help=f"of the result: benchmarks/results/{result}.json")
    parser.add_argument("--size-px", type=int, required=True)
    parser.add_argument("--codec", help="codec, as for load_codec (default: the bundled one)")
    return parser.parse_args(given[:split_at]), given[split_at + 1 :]


def load_example(name: str) -> Any:
    """The module examples/NAME.py, which may import its neighbours."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    spec: Any = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encode_splits(pictures: Path, latents: Path, *, size_px: int, codec: str | None) -> None:
    """Encode train/ and val/ where that is not done yet."""
    for split in ("train", "val"):
        chosen = codec if split == "train" else None
        encode_dataset(pictures / split, latents, split=split, size_px=size_px, codec=chosen)


def main(argv: list[str] | None = None) -> None:
    given = sys.argv[1:] if argv is None else argv
    args, passed_on = parse(given, description=__doc__, result="train_NAME")
    latents = args.work / "latents"
    encode_splits(args.pictures, latents, size_px=args.size_px, codec=args.codec)
    if not (latents / "codec" / OPERATORS_NAME).exists():
        fit_codec_operators(latents, pictures=args.pictures / "train")
    result = load_example("train_timm").main([str(latents), "--output", str(args.work / "run"), *passed_on])
    result["arguments"].pop("output")
    manifest = Manifest.from_json((latents / "walloc.json").read_bytes(), context="walloc.json")
    record = manifest.splits["train"]
    result["shard_bits_per_pixel"] = 8 * record.num_bytes / record.num_samples / args.size_px**2
    result["top1"] = result["history"][-1]["top1"]
    result["ema_top1"] = result["history"][-1]["ema_top1"]
    print(f"written to {write_results(f'train_{args.name}', result, arguments=shown(given))}")


if __name__ == "__main__":
    main()
