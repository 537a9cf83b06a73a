"""Pictures classified per second, reading included: JPEG files by a pixel network, stored latents by the adapted one.

    python -m benchmarks.adapt_speed PICTURES --work SCRATCH --name imagewoof [--seen-px 224] [--rounds 5]

The pictures, networks and sizes of `adapt_imagenet`, on one thread, in batches of 32. Pixels: PIL reads a JPEG file,
then come timm's evaluation transform and the network. Latents: `LatentDataset` reads shards; the middle is cropped and
classified by the adapted network, or everything is decoded by the codec and its middle classified by the pixel network.
Rounds alternate between the three, so that a busy machine slows them alike. Files are in the page cache after the
first, unmeasured round.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator

import timm
import torch
from PIL import Image
from torch import Tensor

from benchmarks.adapt_arms import CELL_PX, Setup, Training, View, common_parser
from benchmarks.adapt_plot import MODEL
from benchmarks.results import shown, spread, write_results
from walloc_data import LatentDataset
from walloc_data.transforms import CenterCrop

_BATCH = 32


def main(argv: list[str] | None = None) -> None:
    parser = common_parser(__doc__)
    parser.add_argument("--seen-px", type=int, default=224, help="side of the pictures that are classified")
    parser.add_argument("--count", type=int, default=256, help="pictures of a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads or 1)
    view = View.of(args.seen_px)
    setup = Setup(args.pictures, args.work, args.name, MODEL, view, torch.device("cpu"))
    pixel, adapted = setup.pixel(), setup.adapted("folded, matched, rank 24", Training())
    decoded = setup.frozen("decoded")
    crop_pct = view.seen_px / view.stored_px
    transform = timm.data.create_transform(
        (3, view.seen_px, view.seen_px), crop_pct=crop_pct, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    files = sorted((args.pictures / "val").glob("*/*"))[:: max(1, 3929 // args.count)][: args.count]
    latents = LatentDataset(setup.latents, split="val")
    middle = CenterCrop(view.seen_px // CELL_PX)

    def pixel_batches() -> Iterator[Tensor]:
        for start in range(0, len(files), _BATCH):
            pictures = []
            for path in files[start : start + _BATCH]:
                with Image.open(path) as picture:
                    pictures.append(transform(picture.convert("RGB")))
            yield torch.stack(pictures).contiguous(memory_format=torch.channels_last)

    def latent_batches() -> Iterator[Tensor]:
        loader = latents.loader(batch_size=_BATCH)
        return (batch for batch, _ in itertools.islice(loader, len(files) // _BATCH))

    runs: dict[str, tuple[Callable[[], Iterator[Tensor]], Callable[[Tensor], Tensor]]] = {
        "pixels": (pixel_batches, pixel),
        "latents, adapted": (latent_batches, lambda z: adapted.model(middle(z))),
        "latents, decoded": (latent_batches, lambda z: decoded(z, z, z)),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    with torch.inference_mode():
        for number in range(args.rounds + 1):
            for name, (batches, network) in runs.items():
                begun = time.perf_counter()
                read = list(batches())
                between = time.perf_counter()
                for batch in read:
                    network(batch)
                if number:  # the first round fills caches
                    seconds[name].append((between - begun, time.perf_counter() - between))
                print(name, f"{len(files) / (time.perf_counter() - begun):.1f}/s", flush=True)
    rows = {
        name: {
            "pictures_a_second": spread([len(files) / (read + network) for read, network in measured]),
            "reading_ms": spread([1e3 * read / len(files) for read, _ in measured]),
            "network_ms": spread([1e3 * network / len(files) for _, network in measured]),
        }
        for name, measured in seconds.items()
    }
    results = {"seen_px": view.seen_px, "model": MODEL, "threads": torch.get_num_threads(), "rows": rows}
    given = sys.argv[1:] if argv is None else argv
    print(f"written to {write_results('adapt_speed', results, arguments=shown(given))}")


if __name__ == "__main__":
    main()
