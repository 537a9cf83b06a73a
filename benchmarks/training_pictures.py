"""Gather clean, sharp photographs for training a codec into one folder of AVIF files: one command.

    for each repository in the sets: git clone --bare URL clones/OWNER+NAME
    python -m benchmarks.training_pictures OUT --clones clones --kodak KODAK
    python -m benchmarks.training_pictures OUT2 --second --clones clones --kodak KODAK --wallpapers DIR [--photos TAR]

The second corpus brings what the first lacks: people, flowers, animals, objects and saturated colours. The sets of both
and their licences are in training_picture_sets.py; DIR holds the unpacked packages that train_bundled.py names. Large
pictures are reduced, which takes away the softness of the camera and the faults of JPEG; those of about 250 pixels are
joined by four. Blurred pictures, drawings, repeated pictures and whatever resembles a Kodak test picture are left out;
KODAK is a folder of those. The folder receives SET-00001.avif and so on, 4:4:4, sources.csv (a line for each set) and
pictures.csv (a line for each picture). If the files exceed the budget, the pictures with the least fine detail go. Stop
it when you like: the same command continues.
"""

import argparse
import csv
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from benchmarks.training_picture_sets import FIRST, SECOND, Selection, Source
from walloc_data.files import atomic_file

Floats = npt.NDArray[np.float32]
Images = Iterator[tuple[str, Image.Image | str]]

LARGEST_BLOB = 4 << 20
"""Files of a repository larger than this, in bytes, are passed over."""

LONGEST_SIDE, SHORTEST_SIDE = 1600, 320
MAX_FLAT = 0.6
ALIKE, SPEED, LEAST_REDUCTION = 0.97, 9, 2.5
SHARED = Path(__file__).parents[2] / "shared" / "data"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clones", type=Path, required=True, help="folder of the clones, OWNER+NAME each")
    parser.add_argument("--kodak", type=Path, required=True, help="folder of Kodak test pictures, to keep them out")
    parser.add_argument("--second", action="store_true", help="collect the second corpus")
    parser.add_argument("--wallpapers", type=Path, help="folder of the unpacked Debian packages, for --second")
    parser.add_argument("--photos", type=Path, default=SHARED / "photos-halfres.tar", help="for --second")
    parser.add_argument(
        "--quality", type=int, help="AVIF quality, 0 to 100; 72 for the first corpus, 84 for the second"
    )
    parser.add_argument("--budget", type=float, default=47e6, help="bytes that the AVIF files may take in all")
    args = parser.parse_args()
    if args.second and args.wallpapers is None:
        parser.error("--second needs --wallpapers, the folder of the unpacked Debian packages")
    selection = SECOND if args.second else FIRST
    args.quality = selection.quality if args.quality is None else args.quality
    tests = [opened(path.read_bytes(), 1) for path in sorted(args.kodak.iterdir())]
    kodak = [view for image in tests if not isinstance(image, str) for view in views(image)]
    if not kodak:
        raise SystemExit(f"{args.kodak} holds no picture: give the folder of the Kodak test pictures")
    args.out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Picture] = {}
    for source in selection.sources:
        seen = [view for one in kept.values() for view in one.views]
        mine, dropped = gather(source, args, kodak + seen, selection.longest)
        if not mine:
            raise SystemExit(
                f"the set {source.name} has no picture: {source.place} holds none {source.commit}".rstrip()
            )
        print(f"{source.name}: {summary(mine)}; left out: {dict(dropped)}", flush=True)
        kept |= mine
        tabulate(args.out, kept, selection)
    within = fitting(kept, args.budget, selection.shares)
    for name in kept.keys() - within.keys():
        (args.out / name).unlink()
    print(f"in all: {summary(within)}")
    tabulate(args.out, within, selection)


def gather(
    source: Source, args: argparse.Namespace, seen: list[Floats], longest: int
) -> tuple[dict[str, Picture], Counter[str]]:
    """Write the pictures of a set that pass and resemble none of `seen`; return them by file name."""
    kept: dict[str, Picture] = {}
    dropped: Counter[str] = Counter()
    images: Images = ((origin, opened(data, source.factor, source)) for origin, data in found(source, args))
    if source.mosaics:
        images = mosaics(images, list(seen), dropped)
    for number, (origin, image) in enumerate(images, 1):
        file = args.out / f"{source.name}-{number:05d}.avif"
        result = image if isinstance(image, str) else prepare(source, origin, image, seen, longest)
        if isinstance(result, str):
            dropped[result] += 1
            file.unlink(missing_ok=True)
        else:
            if not file.exists() and not isinstance(image, str):
                with atomic_file(file) as part:
                    image.save(part, "AVIF", quality=args.quality, speed=SPEED, subsampling="4:4:4", max_threads=1)
            seen.extend(result.views)
            kept[file.name] = replace(result, bytes=file.stat().st_size)
    return kept, dropped


def found(source: Source, args: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each file of a set, in the order of their names."""
    if source.kind == "clone":
        yield from found_in_clone(source, args.clones)
    elif source.kind == "folder":
        for path in sorted({path for pattern in source.patterns for path in args.wallpapers.glob(pattern)}):
            name = str(path.relative_to(args.wallpapers))
            if not any(fnmatch(name, pattern) for pattern in source.without):
                yield name, path.read_bytes()
    else:
        with tarfile.open(args.photos, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if matches(source, member.name) else None
                if file is not None:
                    yield member.name, file.read()


def found_in_clone(source: Source, clones: Path) -> Iterator[tuple[str, bytes]]:
    clone = clones / source.place.replace("/", "+")
    if not clone.is_dir():
        raise SystemExit(f"{clone} is missing: clone the GitHub repository {source.place} there")
    git = ["git", "-C", str(clone)]
    listing = subprocess.run([*git, "ls-tree", "-r", "-z", source.commit], capture_output=True, check=True).stdout
    for line in listing.decode().split("\0")[:-1]:
        (_, _, blob), name = line.partition("\t")[0].split(), line.partition("\t")[2]
        if matches(source, name):
            got = subprocess.run([*git, "cat-file", "blob", blob], capture_output=True, check=False)
            if got.returncode == 0 and len(got.stdout) < LARGEST_BLOB:  # a partial clone may lack a file
                yield name, got.stdout


def matches(source: Source, name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in source.patterns)


def mosaics(images: Images, seen: list[Floats], dropped: Counter[str]) -> Images:
    """Yield the pictures by four, side by side, each cut to the smallest of them; count the pictures left out.

    Pictures of like shape come together, so that little is cut off.
    """
    single = []
    for origin, image in images:
        reason = image if isinstance(image, str) else "small" if min(image.size) * 2 < SHORTEST_SIDE else ""
        if not reason and not isinstance(image, str):
            mine = views(image)
            reason = "seen before" if resembles(mine, seen) else ""
            seen.extend(mine)
            if not reason:
                single.append((origin, image))
        if reason:
            dropped[reason] += 1
    upright = [one for one in single if one[1].height > one[1].width]
    wide = [one for one in single if one[1].height <= one[1].width]
    for ordered in (sorted(some, key=lambda one: (min(one[1].size), max(one[1].size))) for some in (upright, wide)):
        for start in range(0, len(ordered) - 3, 4):
            four = ordered[start : start + 4]
            width, height = min(one[1].width for one in four), min(one[1].height for one in four)
            mosaic = Image.new("RGB", (2 * width, 2 * height))
            for place, (_, image) in enumerate(four):
                mosaic.paste(image.crop((0, 0, width, height)), (place % 2 * width, place // 2 * height))
            yield " ".join(origin for origin, _ in four), mosaic


def opened(data: bytes, factor: float = 0, source: Source | None = None) -> Image.Image | str:
    """Return the picture upright in RGB and reduced by the factor (0: by its size), or why it is of no use."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        width, height = image.size
        if source is not None and source.longest:
            factor = max(LEAST_REDUCTION, max(width, height) / source.longest)
        factor = factor or reduction(max(width, height))
        if not factor:
            return "small"
        factor = factor if source is None else factor / source.scale
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
        size = (int(width / factor), int(height / factor))
        image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    return ImageOps.exif_transpose(image).convert("RGB")


def prepare(source: Source, origin: str, image: Image.Image, seen: list[Floats], longest: int) -> Picture | str:
    """Return the picture, its bytes still 0, or in a few words why it is left out."""
    if max(image.size) > longest or min(image.size) < SHORTEST_SIDE:
        return "sides"
    detail, sharpness, flat = measures(np.asarray(image))
    if detail < source.min_detail:
        return "little detail"
    if sharpness < source.min_sharpness:
        return "blurred"
    if flat > MAX_FLAT:
        return "drawing or clipped"
    mine = views(image)
    if resembles(mine, seen):
        return "seen before"
    return Picture(source, origin, image.size, detail, sharpness, mine, 0)


def resembles(mine: list[Floats], seen: list[Floats]) -> bool:
    return bool(seen) and float((np.stack(seen) @ mine[0]).max()) > ALIKE


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


def fitting(pictures: dict[str, Picture], budget: float, shares: dict[str, float]) -> dict[str, Picture]:
    """Return pictures whose files fit the budget, in the order given: what goes has the least detail of its group.

    The group that exceeds its share of the budget most loses the next picture. Without shares all are one group.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(pictures, key=lambda name: -pictures[name].detail):
        groups.setdefault(name.partition("-")[0] if shares else "", []).append(name)
    sizes = {group: sum(pictures[name].bytes for name in names) for group, names in groups.items()}
    dropped = set()
    while sum(sizes.values()) > budget:
        group = max((one for one in groups if groups[one]), key=lambda one: sizes[one] - shares.get(one, 0.0) * budget)
        name = groups[group].pop()
        sizes[group] -= pictures[name].bytes
        dropped.add(name)
    return {name: picture for name, picture in pictures.items() if name not in dropped}


def megapixels(pictures: dict[str, Picture]) -> float:
    return sum(picture.size[0] * picture.size[1] for picture in pictures.values()) / 1e6


def summary(pictures: dict[str, Picture]) -> str:
    size = sum(picture.bytes for picture in pictures.values()) / 1e6
    return f"{len(pictures)} pictures, {megapixels(pictures):.1f} MP, {size:.2f} MB"


def tabulate(out: Path, pictures: dict[str, Picture], selection: Selection) -> None:
    with (out / "sources.csv").open("w", newline="") as file:
        by_set = csv.writer(file)
        by_set.writerow(["set", "source", "pictures", "megapixels", "licence"])
        for source in selection.sources:
            mine = {name: picture for name, picture in pictures.items() if picture.source.name == source.name}
            by_set.writerow([source.name, source.place, len(mine), f"{megapixels(mine):.2f}", source.licence])
    with (out / "pictures.csv").open("w", newline="") as file:
        by_picture = csv.writer(file)
        by_picture.writerow(["file", "origin", "width", "height", "detail", "sharpness"])
        for name, picture in pictures.items():
            measured = (f"{picture.detail:.2f}", f"{picture.sharpness:.2f}")
            by_picture.writerow([name, picture.origin, *picture.size, *measured])


if __name__ == "__main__":
    main()
