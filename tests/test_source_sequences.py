"""Sequences in Python as sources: torch and torchvision data sets, lists; exact pixels, class names, clear refusals."""

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import FakeData, ImageFolder

from walloc_data.errors import SourceError
from walloc_data.format import EncodeSettings
from walloc_data.pictures import decode_picture
from walloc_data.sources import open_source

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode_picture(data, settings=EncodeSettings()))


def file_of(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


GREY = np.repeat(PIXELS[:, :, :1], 3, axis=2)
SAME_PIXELS: dict[str, tuple[Any, np.ndarray]] = {
    "array": (PIXELS, PIXELS),
    "array in another order of axes": (np.asfortranarray(PIXELS), PIXELS),
    "grey array": (PIXELS[:, :, 0], GREY),
    "grey array with an axis": (PIXELS[:, :, :1], GREY),
    "bool array": (PIXELS[:, :, 0] > 99, np.where(GREY > 99, 255, 0)),
    "16-bit array": (PIXELS[:, :, 0].astype(np.uint16) * 257, GREY),
    "opaque RGBA": (np.dstack([PIXELS, np.full((9, 7), 255, np.uint8)]), PIXELS),
    "clear RGBA": (np.dstack([PIXELS, np.zeros((9, 7), np.uint8)]), np.full_like(PIXELS, 255)),
    "tensor": (torch.from_numpy(PIXELS).permute(2, 0, 1), PIXELS),
    "tensor of ToTensor": (transforms.ToTensor()(Image.fromarray(PIXELS)), PIXELS),
    "grey tensor": (torch.from_numpy(PIXELS[:, :, 0]), GREY),
    "PIL": (Image.fromarray(PIXELS), PIXELS),
    "PIL, palette": (Image.fromarray(PIXELS).quantize(256).convert("P"), None),
    "PIL, 1 bit": (Image.fromarray(PIXELS[:, :, 0] > 99), np.where(GREY > 99, 255, 0)),
    "PIL, mode I": (Image.fromarray(PIXELS[:, :, 0].astype(np.int32) * 257), GREY),
    "PIL, HSV": (Image.fromarray(PIXELS).convert("HSV"), None),
    "PIL, CMYK": (Image.fromarray(PIXELS).convert("CMYK"), None),
}


@pytest.mark.parametrize("kind", SAME_PIXELS)
def test_pictures_in_memory_keep_their_exact_pixels(kind: str) -> None:
    picture, expected = SAME_PIXELS[kind]
    if expected is None:
        expected = np.asarray(picture.convert("RGB"))
    source = open_source([(picture, 3)])
    sample = source.read(0)
    assert (sample.label, sample.problem, source.kind) == (3, None, "sequence")
    np.testing.assert_array_equal(decoded(sample.data), expected)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (
            torch.randn(3, 8, 8),
            r"floats from -\d.* that are not all multiples of 1/255 in \[0, 1\]: pass pictures without",
        ),
        (PIXELS.transpose(2, 0, 1), r"an array of shape \(3, 9, 7\): pictures are \(H, W\)"),
        (PIXELS.astype(np.int64), "an array of int64"),
        (np.zeros((0, 4, 3), np.uint8), "without pixels"),
        ({"a": 1}, r"no picture among the items' \['a'\]: name it with image_column"),
        (object(), "a object is no picture: bytes, a path, a PIL picture and arrays are"),
        (Image.fromarray(np.full((4, 4), 2**20, np.int32)), "at most 16 bits are read"),
    ],
)
def test_what_is_no_picture_is_refused_when_the_source_is_opened(picture: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source([picture])


def test_pil_pictures_that_were_not_read_yet_keep_their_file(tmp_path: Path) -> None:
    data = file_of(PIXELS, "JPEG", quality=70)
    (tmp_path / "a.jpg").write_bytes(data)
    in_memory, on_disk = Image.open(io.BytesIO(data)), Image.open(tmp_path / "a.jpg")
    read = Image.open(io.BytesIO(data))
    read.load()
    smaller = Image.open(io.BytesIO(file_of(np.zeros((64, 64, 3), np.uint8), "JPEG")))
    smaller.draft("RGB", (16, 16))
    source = open_source([in_memory, on_disk, data, tmp_path / "a.jpg", str(tmp_path / "a.jpg"), read, smaller])
    assert [source.read(index).data == data for index in range(7)] == [True] * 5 + [False] * 2
    np.testing.assert_array_equal(decoded(source.read(5).data), decoded(data))
    assert decoded(source.read(6).data).shape == (16, 16, 3)
    assert np.asarray(on_disk).shape == PIXELS.shape  # reading its file left it usable
    on_disk.close()


def test_pictures_are_upright_whether_pil_has_read_them_or_not() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = file_of(PIXELS, "PNG", exif=exif.tobytes())
    opened, read = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    read.load()
    source = open_source([opened, read])
    for index in range(2):
        np.testing.assert_array_equal(decoded(source.read(index).data), np.rot90(PIXELS, 3))


class Cats(Dataset[Any]):
    """A data set as torchvision writes them: pictures made anew, classes, targets."""

    classes = ("tabby", ("siamese", "siamese cat"))

    def __init__(self, number: int = 20) -> None:
        self.targets = [index % 2 for index in range(number)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index == 5:
            raise ValueError("this one is broken")
        return Image.fromarray(np.full((6, 6, 3), index, np.uint8)), self.targets[index]


def test_class_names_are_those_of_the_data_set_also_where_it_is_wrapped() -> None:
    names = ("tabby", "siamese, siamese cat")
    for wrapped in (Cats(), Subset(Cats(), [1, 3, 2]), ConcatDataset([Cats(), Cats(3)])):
        source = open_source(wrapped)
        assert (source.labelled, source.class_names, source.num_items) == (True, names, len(wrapped))
    source = open_source(Subset(Cats(), [1, 3, 2]))
    assert [source.read(index).label for index in range(3)] == [1, 1, 0]
    assert source.location == "python:torch.utils.data.dataset.Subset"


def test_an_item_that_raises_is_a_failure_and_labels_must_name_classes() -> None:
    source = open_source(Cats())
    assert source.read(5).problem == "cannot be read: ValueError: this one is broken"
    assert source.read(6).problem is None
    wrong = Cats()
    wrong.targets[2] = 2
    assert open_source(wrong).read(2).problem == "label 2 is not in [0, 2), the numbers of the classes"
    shorter = Cats()
    source = open_source(shorter)
    del shorter.targets[-1]
    shorter.__class__ = type("Short", (Cats,), {"__getitem__": lambda self, index: [][index]})
    with pytest.raises(SourceError, match="its length is 20, but it has no item 19"):
        source.read(19)


def test_a_file_that_is_away_stops_and_one_that_was_never_there_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(file_of(PIXELS, "PNG"))
    source = open_source([(tmp_path / "a.png", 0), (tmp_path / "b.png", 1), (tmp_path / "gone" / "c.png", 1)])
    assert source.read(0).version is not None
    assert source.read(1).problem == "there is no such file"
    with pytest.raises(SourceError, match=r"No such file or directory.*an error of the machine or the store"):
        source.read(2)


@pytest.mark.parametrize(
    ("items", "labels", "names", "columns"),
    [
        ([(PIXELS, np.int64(4))], [4], None, {}),
        ([(PIXELS, torch.tensor(4))], [4], None, {}),
        ([(PIXELS, "b"), (PIXELS, "a")], [1, 0], ("a", "b"), {}),
        ([PIXELS], [None], None, {}),
        ([(PIXELS, None)], [None], None, {}),
        ([(PIXELS, 1.5)], [None], None, {"target": 1.5}),
        ([(PIXELS, {"boxes": [[1, 2], [3, 4]]})], [None], None, {"target": {"boxes": [[1, 2], [3, 4]]}}),
        ([(PIXELS, 4, "text", PIXELS)], [4], None, {"item_2": "text"}),
        ([{"image": PIXELS, "label": 2, "caption": "x"}], [2], None, {"caption": "x"}),
        ([{"img": PIXELS, "age": 30}], [None], None, {"age": 30}),
    ],
)
def test_targets_are_labels_or_columns(
    items: list[Any], labels: list[int | None], names: tuple[str, ...] | None, columns: dict[str, Any]
) -> None:
    source = open_source(items)
    samples = list(source.stream())
    assert [sample.label for sample in samples] == labels
    assert (source.labelled, source.class_names) == (labels[0] is not None, names)
    assert dict(samples[0].columns) == columns
    assert source.columns == tuple(columns)


def test_labels_can_be_left_out_and_columns_named() -> None:
    source = open_source([(PIXELS, 3)], label_column="none")
    assert (source.labelled, source.read(0).label, dict(source.read(0).columns)) == (False, None, {"target": 3})
    item = {"left": PIXELS, "right": GREY, "kind": 7}
    source = open_source([item], image_column="right", label_column="kind")
    assert source.read(0).label == 7
    np.testing.assert_array_equal(decoded(source.read(0).data), GREY)
    assert source.notes == ("left out: parts of items that are not numbers or text: left",)
    with pytest.raises(SourceError, match=r"no 'x' among the items' \['left', 'right', 'kind'\]"):
        open_source([item], image_column="x")
    with pytest.raises(SourceError, match="its items are tuples and have no columns"):
        open_source([(PIXELS, 3)], label_column="kind")


def test_random_transforms_are_refused() -> None:
    fake = FakeData(4, (3, 16, 16), transform=transforms.RandomCrop(8))
    with pytest.raises(SourceError, match="differs each time it is read: remove random transforms"):
        open_source(fake)
    assert open_source(FakeData(4, (3, 16, 16), transform=transforms.CenterCrop(8))).num_items == 4
    assert open_source(TensorDataset(torch.zeros(4, 3, 8, 8), torch.arange(4))).read(3).label == 3


def test_pictures_of_torchvisions_image_folder_are_its_files(tmp_path: Path) -> None:
    for number, name in enumerate(("ant", "bee", "bee")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{number}.jpg").write_bytes(file_of(PIXELS + number, "JPEG"))
    folder = ImageFolder(str(tmp_path))
    source = open_source(folder)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert source.class_names == ("ant", "bee")
    assert [source.read(index).data for index in range(3)] == [file.read_bytes() for file in files]
    assert open_source(Subset(folder, [2])).read(0).data == files[2].read_bytes()
    cropped = open_source(ImageFolder(str(tmp_path), transform=transforms.CenterCrop(4)))
    np.testing.assert_array_equal(decoded(cropped.read(0).data), decoded(files[0].read_bytes())[2:6, 2:6])


def test_an_empty_sequence_and_one_without_a_length_are_refused() -> None:
    with pytest.raises(SourceError, match="python:list: no items"):
        open_source([])
    with pytest.raises(SourceError, match="or a sequence of pictures, not generator"):
        open_source(PIXELS for _ in range(2))
    with pytest.raises(SourceError, match="without a split 'train'; it has \\['a', 'b'\\]"):
        open_source({"a": [PIXELS], "b": [PIXELS]})


def test_identity_follows_pictures_labels_and_number() -> None:
    items = [(PIXELS + number, number) for number in range(3)]
    identity = open_source(items).identity
    assert open_source(list(items)).identity == identity
    others = [items[:2], [*items[:2], (PIXELS, 2)], [*items[:2], (PIXELS + 2, 0)]]
    assert all(open_source(other).identity != identity for other in others)


def test_sources_travel_to_workers_or_say_why_not() -> None:
    source = pickle.loads(pickle.dumps(open_source(Cats())))
    assert source.read(4).label == 0
    with pytest.raises(SourceError, match=r"cannot be sent to worker processes \(.*\): convert it with workers=1"):
        pickle.dumps(open_source(FakeData(2, (3, 8, 8), target_transform=lambda target: target)))
    script = (
        "import pickle\nfrom walloc_data.sources import open_source\nclass Own(list): pass\n"
        "pickle.dumps(open_source(Own([(bytes(3), 1)])))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "uses classes or functions of the main script" in found.stderr
