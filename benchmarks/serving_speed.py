"""Pictures classified per second: from uint8 pixels through the codec, from stored latents, and by the pixel model.

    python -m benchmarks.serving_speed [--models resnet50 vit_tiny_patch16_224] [--size-px 224] [--rounds 5]

The same timm architecture three times, with random weights: speed does not depend on them. Decoding files is left out
of all three. Rounds alternate between the three, so that a busy machine slows them alike.
"""

import argparse
import time
from collections.abc import Callable

import timm
import torch

from benchmarks.results import spread, write_results
from walloc_data.adapters import create_latent_model, summarize
from walloc_data.codec import load_codec
from walloc_data.format import ChannelStatistics
from walloc_data.serving import PictureClassifier


def rate(run: Callable[[], object], *, count: int) -> float:
    begun = time.perf_counter()
    run()
    return count / (time.perf_counter() - begun)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_tiny_patch16_224", "convnext_tiny"])
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    codec, info = load_codec(None, decoder=False)
    low = torch.rand(args.batch_size, 3, args.size_px // 16, args.size_px // 16)
    smooth = torch.nn.functional.interpolate(low, size=(args.size_px, args.size_px), mode="bicubic").clamp(0, 1)
    pictures = (smooth * 255).to(torch.uint8)
    latents = codec.encode(pictures)
    counts = [torch.bincount(latents[:, c].flatten().long() + 128, minlength=256).tolist() for c in range(12)]
    statistics = ChannelStatistics(tuple(tuple(row) for row in counts))
    results = []
    for name in args.models:
        model = create_latent_model(
            name, codec=info.spec, statistics=statistics, input_shape=tuple(latents.shape[1:]), num_classes=1000
        ).eval()
        classifier = PictureClassifier(model, codec).eval()
        sized = {"img_size": args.size_px} if "vit" in name else {}
        pixel = timm.create_model(name, num_classes=1000, **sized).eval()
        runs: dict[str, Callable[[], object]] = {
            "pixel model": lambda pixel=pixel: pixel(pictures.float() / 255 - 0.5),
            "pictures through the codec": lambda classifier=classifier: classifier(pictures),
            "stored latents": lambda model=model: model(latents),
        }
        measured: dict[str, list[float]] = {key: [] for key in runs}
        with torch.inference_mode():
            for run in runs.values():
                run()
            for _ in range(args.rounds):
                for key, run in runs.items():
                    measured[key].append(rate(run, count=args.batch_size))
        row = {"model": name, "geometry": summarize(model).geometry, "num_macs": summarize(model).num_macs}
        row |= {key: spread(values) for key, values in measured.items()}
        results.append(row)
        print(name, {key: f"{spread(values)['median']:.1f}/s" for key, values in measured.items()})
    outcome = {"size_px": args.size_px, "threads": torch.get_num_threads(), "codec": info.name, "rows": results}
    print(f"written to {write_results('serving_speed', outcome)}")


if __name__ == "__main__":
    main()
