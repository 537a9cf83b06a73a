"""The gathering of training photographs: mosaics of small ones, and what goes when the budget is exceeded."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from benchmarks.training_picture_sets import FIRST, SECOND, Source
from benchmarks.training_pictures import Picture, fitting, mosaics, opened, views

SET = Source("a-set", "somebody/something", ("*",), "CC0")


def photograph(seed: int, *, width: int = 250, height: int = 187) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def picture(name: str, detail: float, size: int) -> Picture:
    return Picture(SET, name, (400, 400), detail, 0.5, [], size)


def test_four_photographs_make_a_mosaic_cut_to_the_smallest() -> None:
    images = [photograph(0), photograph(1, width=240), photograph(2, height=166), photograph(3)]
    (only,) = mosaics(iter([(str(n), one) for n, one in enumerate(images)]), [], Counter())
    origin, mosaic = only
    assert isinstance(mosaic, Image.Image)
    assert mosaic.size == (480, 332)
    order = [int(n) for n in origin.split()]
    assert sorted(order) == [0, 1, 2, 3]
    for place, number in enumerate(order):
        left, top = place % 2 * 240, place // 2 * 166
        cut = mosaic.crop((left, top, left + 240, top + 166))
        assert np.array_equal(np.asarray(cut), np.asarray(images[number].crop((0, 0, 240, 166))))


def test_a_mosaic_holds_no_test_picture_no_repeated_and_no_small_photograph() -> None:
    test_picture = photograph(9)
    images = [photograph(n) for n in (0, 1, 9, 1, 2, 3)] + [photograph(4, height=150)]
    dropped: Counter[str] = Counter()
    made = list(mosaics(iter([(str(n), one) for n, one in enumerate(images)]), views(test_picture), dropped))
    assert [origin for origin, _ in made] == ["0 1 4 5"]
    assert dropped == {"seen before": 2, "small": 1}


def test_the_group_furthest_over_its_share_loses_its_pictures_of_least_detail() -> None:
    pictures = {
        "a-x-1": picture("1", 3.0, 40),
        "a-y-1": picture("2", 1.0, 30),
        "a-y-2": picture("3", 2.0, 30),
        "b-1": picture("4", 0.5, 20),
    }
    assert list(fitting(pictures, 90, {"a": 0.7, "b": 0.3})) == ["a-x-1", "a-y-2", "b-1"]
    assert list(fitting(pictures, 105, {})) == ["a-x-1", "a-y-1", "a-y-2"]
    assert fitting(pictures, 120, {"a": 0.7, "b": 0.3}) == pictures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "size"),
    [
        (Source("a", "b/c", (), "", factor=1), (1500, 1000)),
        (Source("a", "b/c", (), ""), (750, 500)),
        (Source("a", "b/c", (), "", scale=0.6), (450, 300)),
        (Source("a", "b/c", (), "", longest=1250), (600, 400)),
        (Source("a", "b/c", (), "", longest=300), (300, 200)),
    ],
)
def test_a_picture_is_reduced_as_its_set_says(source: Source, size: tuple[int, int]) -> None:
    file = io.BytesIO()
    photograph(0, width=1500, height=1000).save(file, "PNG")
    image = opened(file.getvalue(), source.factor, source)
    assert isinstance(image, Image.Image)
    assert image.size == size


def test_the_names_of_sets_are_unique_and_each_group_of_the_second_corpus_has_a_share() -> None:
    for selection in (FIRST, SECOND):
        names = [source.name for source in selection.sources]
        assert len(set(names)) == len(names)
    assert {source.name.partition("-")[0] for source in SECOND.sources} == SECOND.shares.keys()
    assert sum(SECOND.shares.values()) == pytest.approx(1.0)
