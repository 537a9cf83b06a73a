"""Training pictures: read once from folders and tars, stored decoded in one memory-mapped file, cut into crops.

A crop is a function of (seed, step), so a resumed run uses the same crops.
"""

import json
import math
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from walloc_data.codec.encoding import MAX_ENCODE_LEVELS
from walloc_data.deprecated import renamed_arguments
from walloc_data.errors import CodecError
from walloc_data.files import atomic_file, open_regular, read_regular
from walloc_data.format import EncodeSettings
from walloc_data.pictures import MAX_FILE_BYTES, PICTURE_SUFFIXES, PictureError, decode_picture

__all__ = ["Corpus", "PictureSet", "read_pictures"]

Pixels = npt.NDArray[np.uint8]
# Pictures past this size come from cameras, and their detail ends below the pixel grid, where the JPEG blocks are.
# They are halved or more, to at most _LARGEST_SIDE.
_HALVE_ABOVE = 1250
_LARGEST_SIDE = 1400
# One picture in this many validates.
_HELD_OUT_EVERY, _MAX_HELD_OUT = 40, 16


@dataclass(frozen=True)
class PictureSet:
    """Set of training pictures, (H, W, 3) uint8 arrays, with a weight for the number of crops from them.

    Example:
        >>> from walloc_data.codec import PictureSet, read_pictures
        >>> mine = PictureSet("mine", list(read_pictures("pictures")), weight=2.0)  # crops twice as often as of 1.0
        >>> len(mine.pictures), mine.pictures[0].shape
        (8, (128, 128, 3))
    """

    name: str
    pictures: Iterable[Pixels]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise CodecError(f"{self.name}: the weight of a set must be a number from 0 on, not {self.weight}")


@renamed_arguments(say="log")
def read_pictures(
    path: str | Path,
    *,
    reduce: bool = True,
    settings: EncodeSettings | None = None,
    log: Callable[[str], None] | None = None,
) -> Iterator[Pixels]:
    """Read every picture in a folder (with its subfolders) or an uncompressed tar, or one picture file; RGB, in order.

    Files are read by the converter's rules: `walloc_data.pictures.decode_picture`.

    Args:
        path: the folder, tar or picture file.
        reduce: halve pictures of more than 1,250 pixels along a side, or more than halve them: such pictures come from
            cameras, whose detail ends below the pixel grid. False takes pictures as they are.
        settings: the converter's, of which `background`, `max_pixels` and `max_value` matter here.
        log: takes a line for every picture that cannot be read; it is left out.

    Example:
        >>> from walloc_data.codec import read_pictures
        >>> pictures = list(read_pictures("pictures"))
        >>> len(pictures), pictures[0].shape, pictures[0].dtype
        (8, (128, 128, 3), dtype('uint8'))
    """
    path, count, bad = Path(path), 0, 0
    if not path.exists():
        raise CodecError(f"{path}: no such folder or tar of pictures")
    if path.is_dir():
        files = _folder_files(path)
    elif path.suffix.lower() in PICTURE_SUFFIXES:
        files = iter([(path.name, lambda: _read_file(path))])
    else:
        files = _tar_members(path)
    for name, data in files:
        try:
            picture = _decode(data(), reduce=reduce, settings=settings or EncodeSettings())
        except (PictureError, OSError, tarfile.TarError) as error:
            bad += 1
            if log is not None:
                log(f"{path}: {name} skipped: {error}")
            continue
        count += 1
        yield picture
    if not count:
        names = ", ".join(sorted(PICTURE_SUFFIXES))
        raise CodecError(f"{path}: no picture could be read ({bad} failed); expected {names}")


def _folder_files(folder: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
            yield str(path.relative_to(folder)), lambda path=path: _read_file(path)  # type: ignore[misc]


def _tar_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile() and Path(member.name).suffix.lower() in PICTURE_SUFFIXES:
                    yield member.name, lambda member=member: _read_member(tar, member)  # type: ignore[misc]
    except tarfile.TarError as error:
        raise CodecError(f"{path}: not an uncompressed tar ({error})") from error
    except OSError as error:
        raise CodecError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_file(path: Path) -> bytes:
    return read_regular(path, max_bytes=MAX_FILE_BYTES)


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_FILE_BYTES:
        raise PictureError(f"{member.size} bytes; at most {MAX_FILE_BYTES} are read")
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _decode(data: bytes, *, reduce: bool, settings: EncodeSettings) -> Pixels:
    picture = decode_picture(data, settings=settings)
    if reduce and (longer := max(picture.size)) > _HALVE_ABOVE:
        factor = min(0.5, _LARGEST_SIDE / longer)
        size = round(picture.width * factor), round(picture.height * factor)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)


class Corpus:
    """Decoded pictures in one file, and what is held out of training.

    Attributes:
        names, weights: of the sets.
        shapes: (height, width) of every picture.
        held_out: pictures that are never trained on.
    """

    def __init__(self, folder: Path) -> None:
        try:
            index = json.loads((folder / "pictures.json").read_text())
            self.names: list[str] = index["names"]
            self.weights: list[float] = index["weights"]
            self.shapes = np.array(index["shapes"], dtype=np.int64).reshape(-1, 2)
            self._set_of = np.array(index["set_of"], dtype=np.int64)
            self._pixels = np.memmap(folder / "pictures.u8", dtype=np.uint8, mode="c")  # torch wants it writable
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CodecError(f"{folder}: the decoded training pictures cannot be read ({error})") from error
        ends = np.cumsum(self.shapes.prod(1) * 3)
        if not len(ends) or len(ends) != len(self._set_of) or int(ends[-1]) != len(self._pixels):
            raise CodecError(f"{folder}: pictures.u8 does not hold what pictures.json says: delete the folder")
        self._starts = ends - self.shapes.prod(1) * 3
        large = np.flatnonzero(self.shapes.min(1) >= 2**MAX_ENCODE_LEVELS)  # smaller ones may not fill a cell
        if len(large) < 2:
            raise CodecError(
                f"training takes two pictures or more of {2**MAX_ENCODE_LEVELS} pixels a side: one validates"
            )
        held = large[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]
        held = held[:: max(1, len(held) // _MAX_HELD_OUT)][:_MAX_HELD_OUT]
        self.held_out = [int(i) for i in (held if len(held) else large[:1])]
        self._training = np.ones(len(ends), dtype=bool)
        self._training[self.held_out] = False

    @classmethod
    def build(cls, sets: Sequence[PictureSet], folder: Path) -> "Corpus":
        """Decode every picture into `folder`, once. The index is written last and marks the file as whole."""
        folder.mkdir(parents=True, exist_ok=True)
        index: dict[str, Any] = {
            "names": [item.name for item in sets],
            "weights": [item.weight for item in sets],
            "shapes": [],
            "set_of": [],
        }
        with (folder / "pictures.u8").open("wb") as file:
            for number, item in enumerate(sets):
                for picture in item.pictures:
                    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
                        raise CodecError(
                            f"{item.name}: training takes (H, W, 3) uint8 pictures, not {picture.dtype} {picture.shape}"
                        )
                    file.write(np.ascontiguousarray(picture).data)
                    index["shapes"].append([int(side) for side in picture.shape[:2]])
                    index["set_of"].append(number)
        if not index["shapes"] or not sum(item.weight for item in sets):
            raise CodecError("there is no picture to train on, or every set has the weight 0")
        with atomic_file(folder / "pictures.json") as unfinished:
            unfinished.write_text(json.dumps(index))
        return cls(folder)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Return whether `build` finished there."""
        return (folder / "pictures.json").is_file()

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> Pixels:
        height, width = self.shapes[i]
        start = self._starts[i]
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)

    def members(self, number: int) -> list[int]:
        """Return the positions of a set's training pictures."""
        return [int(i) for i in np.flatnonzero(self._training & (self._set_of == number))]

    def first_pixel(self, i: int) -> int:
        """Return where picture `i` begins in the file of pixels."""
        return int(self._starts[i])

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """All pictures' values, one after the other, memory-mapped."""
        return self._pixels

    def training_pictures(self, *, limit: int, seed: int) -> list[int]:
        """Return the positions of at most `limit` pictures for training, in random order."""
        positions = np.flatnonzero(self._training)
        return [int(i) for i in np.random.default_rng(seed).permutation(positions)[:limit]]

    def sampler(self, *, height_px: int, width_px: int, enlarged: float) -> "CropSampler":
        """Return a sampler of crops of one size. `enlarged` is the share of them that is taken smaller and enlarged."""
        longer, shorter = max(height_px, width_px), min(height_px, width_px)
        fits = (self.shapes.max(1) >= longer) & (self.shapes.min(1) >= shorter) & self._training
        choices = []
        for number, weight in enumerate(self.weights):
            positions = np.flatnonzero(fits & (self._set_of == number))
            if weight > 0 and not len(positions):
                raise CodecError(
                    f"{self.names[number]}: no picture holds a crop of {height_px} x {width_px} pixels; "
                    "use larger pictures or a smaller crop"
                )
            # By the square root of the area: a large picture has more to show, but not in proportion.
            area = np.sqrt(self.shapes[positions].prod(1).astype(np.float64))
            choices.append((positions, area / area.sum() if len(positions) else area))
        total = sum(self.weights)
        return CropSampler(self, choices, [weight / total for weight in self.weights], height_px, width_px, enlarged)


@dataclass(frozen=True)
class CropSampler:
    """Sampler of random crops, mirrored, and rotated so that their longer side is along that of the picture."""

    corpus: Corpus
    choices: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]
    probabilities: Sequence[float]
    height_px: int
    width_px: int
    enlarged: float

    def batch(self, batch_size: int, *, seed: int, step: int) -> Pixels:
        """Return the crops of one step, (batch_size, height, width, 3) uint8."""
        rng = np.random.default_rng([seed, step])
        return np.stack([self._crop(rng) for _ in range(batch_size)])

    def _crop(self, rng: np.random.Generator) -> Pixels:
        positions, probabilities = self.choices[rng.choice(len(self.choices), p=self.probabilities)]
        picture = self.corpus[int(rng.choice(positions, p=probabilities))]
        height, width = picture.shape[:2]
        turned = (height > width) != (self.height_px > self.width_px) or (
            self.height_px == self.width_px and rng.random() < 0.5
        )
        tall, wide = (self.width_px, self.height_px) if turned else (self.height_px, self.width_px)
        if tall > height or wide > width:
            turned, tall, wide = not turned, wide, tall
        # Detail at other scales than the corpus has: cut a smaller piece and enlarge it.
        factor = rng.uniform(1.1, 1.5) if rng.random() < self.enlarged else 1.0
        rows, columns = int(np.ceil(tall / factor)), int(np.ceil(wide / factor))
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        crop: Pixels = picture[top : top + rows, left : left + columns]
        if factor > 1:
            crop = np.asarray(Image.fromarray(crop).resize((wide, tall), Image.Resampling.BICUBIC))
        if turned:
            crop = crop.transpose(1, 0, 2)
        flips = rng.integers(4)
        return crop[:: -1 if flips & 1 else 1, :: -1 if flips & 2 else 1]
