"""Gather clean, sharp photographs for training a codec into one folder of AVIF files: one command.

    for each repository in SETS: git clone --bare URL clones/OWNER+NAME
    python -m benchmarks.training_pictures OUT --clones clones --kodak KODAK

Each set is named below with the GitHub repository that holds it, and the licence stated there: jbhuang0604/SelfExSR
(Urban100 and Sun-Hays80, no licence stated), maxvoltar/photo-stream (MIT), BIDS/BSDS500 (no licence stated). Large
pictures are reduced by a whole factor, which takes away the softness of the camera and the faults of JPEG. Blurred
pictures, drawings, repeated pictures and whatever resembles a Kodak test picture are left out; KODAK is a folder of
those. OUT receives SET-00001.avif and so on, 4:4:4, sources.csv (a line for each set) and pictures.csv (a line for each
picture). If the files exceed the budget, the pictures with the least fine detail go. Stop it when you like: the same
command continues.
"""

import argparse
import csv
import io
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Floats = npt.NDArray[np.float32]

LARGEST_BLOB = 4 << 20
"""Files of a repository larger than this, in bytes, are passed over."""

LONGEST_SIDE, SHORTEST_SIDE = 1600, 320
MIN_DETAIL, MIN_SHARPNESS, MAX_FLAT = 1.5, 0.3, 0.6
ALIKE, SPEED = 0.97, 9


@dataclass(frozen=True)
class Source:
    """A set of pictures: where they lie, at which commit, and by what factor they are reduced (0: by their size)."""

    name: str
    place: str
    patterns: tuple[str, ...]
    licence: str
    commit: str
    factor: int = 0


@dataclass(frozen=True)
class Picture:
    """A picture that passed: its encoded file, its measures, its views and where it came from."""

    source: Source
    origin: str
    size: tuple[int, int]
    detail: float
    sharpness: float
    views: list[Floats]
    bytes: int


SETS = (
    Source(
        "urban100",
        "jbhuang0604/SelfExSR",
        ("data/Urban100/image_SRF_4/*_HR.png",),
        "not stated",
        factor=1,
        commit="8f6dd8c1d20c",
    ),
    Source(
        "sunhays80",
        "jbhuang0604/SelfExSR",
        ("data/Sun-Hays80/image_SRF_8/*_HR.png",),
        "not stated",
        factor=1,
        commit="8f6dd8c1d20c",
    ),
    Source(
        "photostream",
        "maxvoltar/photo-stream",
        ("photos/original/*",),
        "MIT (of the repository)",
        commit="6eaabff1a9a9",
    ),
    Source("bsds500", "BIDS/BSDS500", ("BSDS500/data/images/*.jpg",), "not stated", factor=1, commit="a04b7c6c3a9f"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clones", type=Path, required=True, help="folder of the clones, OWNER+NAME each")
    parser.add_argument("--kodak", type=Path, required=True, help="folder of Kodak test pictures, to keep them out")
    parser.add_argument("--quality", type=int, default=72, help="AVIF quality, 0 to 100")
    parser.add_argument("--budget", type=float, default=47e6, help="bytes that the AVIF files may take in all")
    args = parser.parse_args()
    tests = [opened(path.read_bytes(), 1) for path in sorted(args.kodak.iterdir())]
    kodak = [view for image in tests if not isinstance(image, str) for view in views(image)]
    if not kodak:
        raise SystemExit(f"{args.kodak} holds no picture: give the folder of the Kodak test pictures")
    args.out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Picture] = {}
    for source in SETS:
        mine, dropped = gather(source, args, kodak + [view for one in kept.values() for view in one.views])
        if not mine:
            raise SystemExit(f"the set {source.name} has no picture: {source.place} holds none at {source.commit}")
        print(f"{source.name}: {summary(mine)}; left out: {dict(dropped)}", flush=True)
        kept |= mine
        tabulate(args.out, kept)
    within = fitting(kept, args.budget)
    for name in kept.keys() - within.keys():
        (args.out / name).unlink()
    print(f"in all: {summary(within)}")
    tabulate(args.out, within)


def gather(source: Source, args: argparse.Namespace, seen: list[Floats]) -> tuple[dict[str, Picture], Counter[str]]:
    """Write the pictures of a set that pass and resemble none of `seen`; return them by file name."""
    kept: dict[str, Picture] = {}
    dropped: Counter[str] = Counter()
    for number, (origin, data) in enumerate(found(source, args.clones), 1):
        file = args.out / f"{source.name}-{number:05d}.avif"
        result = prepare(source, origin, data, seen, file, args.quality)
        if isinstance(result, str):
            dropped[result] += 1
            file.unlink(missing_ok=True)
        else:
            seen.extend(result.views)
            kept[file.name] = result
    return kept, dropped


def found(source: Source, clones: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each file of a set, in the order of their names."""
    clone = clones / source.place.replace("/", "+")
    if not clone.is_dir():
        raise SystemExit(f"{clone} is missing: clone the GitHub repository {source.place} there")
    git = ["git", "-C", str(clone)]
    listing = subprocess.run([*git, "ls-tree", "-r", "-z", source.commit], capture_output=True, check=True).stdout
    for line in listing.decode().split("\0")[:-1]:
        (_, _, blob), name = line.partition("\t")[0].split(), line.partition("\t")[2]
        if any(fnmatch(name, pattern) for pattern in source.patterns):
            got = subprocess.run([*git, "cat-file", "blob", blob], capture_output=True, check=False)
            if got.returncode == 0 and len(got.stdout) < LARGEST_BLOB:  # a partial clone may lack a file
                yield name, got.stdout


def opened(data: bytes, factor: int = 0) -> Image.Image | str:
    """Return the picture upright in RGB and reduced by the factor (0: by its size), or why it is of no use."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        width, height = image.size
        factor = factor or reduction(max(width, height))
        if not factor:
            return "small"
        if factor > 2:
            image.draft("RGB", (width // 2, height // 2))  # JPEG alone: read at half size, which is much faster
        image.load()
    except (OSError, Image.DecompressionBombError):
        return "unreadable"
    if image.mode in ("RGBA", "P"):
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            return "not opaque"
    if image.mode not in ("RGB", "RGBA"):
        return "not in colour"
    if factor > 1:
        image = image.convert("RGB").resize((width // factor, height // factor), Image.Resampling.LANCZOS)
    return ImageOps.exif_transpose(image).convert("RGB")


def prepare(source: Source, origin: str, data: bytes, seen: list[Floats], file: Path, quality: int) -> Picture | str:
    """Write the picture, reduced, to a file that is not there yet; return it, or in a few words why it is left out."""
    image = opened(data, source.factor)
    if isinstance(image, str):
        return image
    if max(image.size) > LONGEST_SIDE or min(image.size) < SHORTEST_SIDE:
        return "sides"
    detail, sharpness, flat = measures(np.asarray(image))
    if detail < MIN_DETAIL:
        return "little detail"
    if sharpness < MIN_SHARPNESS:
        return "blurred"
    if flat > MAX_FLAT:
        return "drawing or clipped"
    mine = views(image)
    if float((np.stack(seen) @ mine[0]).max()) > ALIKE:
        return "seen before"
    if not file.exists():
        part = file.with_suffix(".part")
        image.save(part, "AVIF", quality=quality, speed=SPEED, subsampling="4:4:4", max_threads=1)
        part.replace(file)
    return Picture(source, origin, image.size, detail, sharpness, mine, file.stat().st_size)


def reduction(side: int) -> int:
    """Return the factor by which to reduce a camera's picture of that longer side; 0 where it is too small."""
    if side >= 3000:
        return max(3, -(-side // LONGEST_SIDE))
    return 2 if side >= 1400 else 0


def measures(pixels: npt.NDArray[np.uint8]) -> tuple[float, float, float]:
    """Return fine detail, sharpness and flatness of a picture of shape (height, width, 3).

    Detail is the mean size of the finest octave in grey levels. Sharpness divides it by that of the next octave.
    Flatness is the share of pixels that equal their right neighbour: high in drawings and in clipped skies.
    """
    height, width = (side // 4 * 4 for side in pixels.shape[:2])
    grey = pixels[:height, :width].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    half, quarter = halved(grey), halved(halved(grey))
    fine, coarse = (float(np.abs(a - b.repeat(2, 0).repeat(2, 1)).mean()) for a, b in ((grey, half), (half, quarter)))
    return fine, fine / max(coarse, 1e-6), float((pixels[:, 1:] == pixels[:, :-1]).all(-1).mean())


def halved(grey: Floats) -> Floats:
    blocks = grey.reshape(grey.shape[0] // 2, 2, grey.shape[1] // 2, 2)
    means: Floats = blocks.mean((1, 3), dtype=np.float32)
    return means


def views(image: Image.Image) -> list[Floats]:
    """Return the picture at 32x32 in grey, turned and mirrored in all eight ways, each of mean 0 and length 1."""
    small = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), np.float32)
    small = small - small.mean()
    small = small / max(float(np.linalg.norm(small)), 1e-6)
    turned = [np.rot90(small, turns) for turns in range(4)]
    return [view.ravel() for one in turned for view in (one, one[:, ::-1])]


def fitting(pictures: dict[str, Picture], budget: float) -> dict[str, Picture]:
    """Return the pictures with the most detail whose files fit the budget, in the order given."""
    total = sum(picture.bytes for picture in pictures.values())
    dropped = set()
    for name in sorted(pictures, key=lambda name: pictures[name].detail):
        if total <= budget:
            break
        total -= pictures[name].bytes
        dropped.add(name)
    return {name: picture for name, picture in pictures.items() if name not in dropped}


def megapixels(pictures: dict[str, Picture]) -> float:
    return sum(picture.size[0] * picture.size[1] for picture in pictures.values()) / 1e6


def summary(pictures: dict[str, Picture]) -> str:
    size = sum(picture.bytes for picture in pictures.values()) / 1e6
    return f"{len(pictures)} pictures, {megapixels(pictures):.1f} MP, {size:.2f} MB"


def tabulate(out: Path, pictures: dict[str, Picture]) -> None:
    with (out / "sources.csv").open("w", newline="") as file:
        by_set = csv.writer(file)
        by_set.writerow(["set", "source", "pictures", "megapixels", "licence"])
        for source in SETS:
            mine = {name: picture for name, picture in pictures.items() if picture.source == source}
            by_set.writerow([source.name, source.place, len(mine), f"{megapixels(mine):.2f}", source.licence])
    with (out / "pictures.csv").open("w", newline="") as file:
        by_picture = csv.writer(file)
        by_picture.writerow(["file", "origin", "width", "height", "detail", "sharpness"])
        for name, picture in pictures.items():
            measured = (f"{picture.detail:.2f}", f"{picture.sharpness:.2f}")
            by_picture.writerow([name, picture.origin, *picture.size, *measured])


if __name__ == "__main__":
    main()
