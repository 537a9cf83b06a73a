"""Draw the pictures of README.md: photographs of scikit-image on their way through a codec.

    python examples/figures.py [--codec CODEC] [--out FOLDER] [--demo FOLDER]

With --demo and the folder that `walloc-data demo FOLDER` left: also its contact sheet, and the charts of its report,
seen by Chromium through playwright.

The photographs are free: `astronaut` is NASA's (public domain), `chelsea` is CC0 by its photographer
(Stefan van der Walt), as scikit-image says of them. So are the figures.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from walloc_data.codec import load_codec
from walloc_data.report import latent_strip, report, save_picture

PHOTOGRAPHS = ("astronaut", "chelsea")


def report_charts(latents: Path, *, width_px: int = 1100) -> Image.Image:
    """Return a screenshot of a data set's report, from the first chart of sizes to the last of channels."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page_file = report(latents, Path(folder) / "report.html")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width_px, "height": 1000})
        page.goto(page_file.as_uri())
        top, bottom = (
            page.locator(f"h3:text-is('{text}')").first.bounding_box() for text in ("Sizes and bits", "Failures")
        )
        clip = {"x": 0, "y": top["y"] - 16, "width": width_px, "height": bottom["y"] - top["y"]}
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")
        browser.close()
    return picture


def main() -> None:
    """Write one strip for each photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", help="a bundled name, a folder, or a .pth (default: the bundled default)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "figures")
    parser.add_argument("--demo", type=Path, help="folder of `walloc-data demo`: draw its contact sheet and report")
    args = parser.parse_args()
    codec, info = load_codec(args.codec)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        picture = Image.fromarray(getattr(skimage.data, name)())
        picture.thumbnail((512, 400), Image.Resampling.LANCZOS)
        strip = latent_strip(np.asarray(picture), codec=codec, info=info)
        print(save_picture(strip, args.out / f"{name}.webp"))
    if args.demo is not None:
        with Image.open(args.demo / "demo.png") as sheet:
            print(save_picture(sheet.convert("RGB"), args.out / "preview.webp"))
        print(save_picture(report_charts(args.demo / "latents"), args.out / "report.webp"))


if __name__ == "__main__":
    main()
