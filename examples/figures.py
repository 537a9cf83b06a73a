"""Draw the pictures of README.md: photographs of scikit-image on their way through a codec.

    python examples/figures.py [--codec CODEC] [--out FOLDER]

The photographs are free: `astronaut` is NASA's (public domain), `chelsea` is CC0 by its photographer
(Stefan van der Walt), as scikit-image says of them. So are the figures.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from walloc_data.codec import load_codec
from walloc_data.report import latent_strip, save_picture

PHOTOGRAPHS = ("astronaut", "chelsea")


def main() -> None:
    """Write one strip for each photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", help="a bundled name, a folder, or a .pth (default: the bundled default)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args()
    codec, info = load_codec(args.codec)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        picture = Image.fromarray(getattr(skimage.data, name)())
        picture.thumbnail((512, 400), Image.Resampling.LANCZOS)
        strip = latent_strip(np.asarray(picture), codec=codec, info=info)
        print(save_picture(strip, args.out / f"{name}.webp"))


if __name__ == "__main__":
    main()
