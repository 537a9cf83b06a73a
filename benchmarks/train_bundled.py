"""Train the bundled codec rgb-16x-v1 anew: the recipe, one command.

    apt-get download mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers
    for package in *.deb; do dpkg -x $package wallpapers; done
    python -m benchmarks.train_bundled OUT --wallpapers wallpapers [--shared ../shared/data] [--steps N]

Three sets of pictures: photos-halfres.tar, the photographs (and a few paintings) among the wallpapers of four Debian
packages, and the training part of Imagenette at 160 pixels. Kodak is never among them. Stop it when you like: the same
command continues.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from walloc_data.codec import PictureSet, TrainConfig, read_pictures, train_codec

WALLPAPERS = (
    "usr/share/backgrounds/*_by_*.jpg",  # lomiri-wallpapers-16.04 and -20.04
    "usr/share/backgrounds/mate/nature/*.jpg",
    "usr/share/backgrounds/mate/abstract/Elephants_5640x3172.jpg",
    *(
        f"usr/share/wallpapers/{name}/contents/images/2560x1600.jpg"
        for name in (
            "Autumn", "BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey",
            "Kite", "OneStandsOut", "Path", "summer_1am",
        )
    ),
)  # fmt: skip
LICENCE = (
    "photos-halfres and Imagenette: photographs of ImageNet, each its photographer's, no common licence known. "
    "Wallpapers: free licences, in the Debian packages' copyright files: CC BY 4.0, CC BY-SA 3.0 and 4.0, CC0, GPL-2+"
)


def wallpapers(root: Path) -> Iterator[npt.NDArray[np.uint8]]:
    paths = [path for pattern in WALLPAPERS for path in sorted(root.glob(pattern)) if "Infinite-Sea" not in path.name]
    if not paths:
        raise SystemExit(f"{root} holds none of the wallpapers: unpack the packages there with dpkg -x")
    for path in paths:
        yield from read_pictures(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--wallpapers", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--steps", type=int, default=55_148)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = TrainConfig(name="rgb-16x-v1", steps=args.steps, target_bpp=0.62, device=args.device, data_licence=LICENCE)
    sets = [
        PictureSet("photos-halfres.tar", read_pictures(args.shared / "photos-halfres.tar", log=print), 5.5),
        PictureSet("wallpapers of four Debian packages", wallpapers(args.wallpapers), 2.0),
        PictureSet("imagenette160-train.tar", read_pictures(args.shared / "imagenette160-train.tar", log=print), 2.5),
    ]
    print(train_codec(sets, args.out, config=config, log=print))


if __name__ == "__main__":
    main()
