"""Columns of a source, through encoding, storage and loading: values come back as they went in."""

import datetime
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from walloc_data import LatentDataset, create_latent_model, encode_dataset
from walloc_data.convert import dataset_info, verify_dataset
from walloc_data.dataset import LatentMixture, TrainerCollator, boxes_to_cells, boxes_to_pixels, collate_samples
from walloc_data.errors import LoaderError, ModelError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

NUM = 24
SIDE = 64  # pixels
WANTED = ("caption", "brightness", "attributes", "boxes", "tags", "when", "source.height", "crop", "key")


@pytest.fixture(scope="module")
def photographs(imagenette_folder: Path) -> datasets.Dataset:
    """24 photographs with a caption, a number to regress, several labels, boxes, words, dates; some values missing."""
    paths = sorted(imagenette_folder.rglob("*.*"))[:NUM]
    classes = sorted({path.parent.name for path in paths})
    rows: dict[str, list[Any]] = {}
    for i, path in enumerate(paths):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
        height, width = pixels.shape[:2]
        boxes = [[float(k), k + 0.5, width / (k + 2), height / (k + 3)] for k in range(i % 4)]
        row = {
            "image": {"bytes": path.read_bytes(), "path": path.name},
            "label": classes.index(path.parent.name),
            "caption": f"photograph {i} von {path.parent.name}, {width} × {height}",
            "brightness": float(pixels.mean()),
            "attributes": [width > height, pixels.mean() > 120, i % 2 == 0],
            "boxes": boxes,
            "tags": None if i == 5 else [path.parent.name, "wide"][: i % 3],
            "weight": None if i % 7 == 0 else i,
            "when": datetime.datetime(2020, 1, 1 + i, 12, 30, 0, 250),
            "labels": sorted({i % 2, i % 3}),
            "height": height,  # a name that the index uses itself
            "objects": {"area": [box[2] * box[3] for box in boxes], "names": [str(i)] * len(boxes)},
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=classes),
        caption=datasets.Value("string"),
        brightness=datasets.Value("float32"),
        attributes=datasets.Sequence(datasets.Value("bool")),
        boxes=datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4)),
        tags=datasets.Sequence(datasets.Value("string")),
        weight=datasets.Value("int32"),
        when=datasets.Value("timestamp[us]"),
        labels=datasets.Sequence(datasets.ClassLabel(names=["none", "one", "two"])),
        height=datasets.Value("int16"),
        objects={
            "area": datasets.Sequence(datasets.Value("float64")),
            "names": datasets.Sequence(datasets.Value("string")),
        },
    )
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def encoded(photographs: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("columns") / "latents"
    encode_dataset(photographs, root, size_px=SIDE, samples_per_shard=7, mirror=True, progress=False)
    return root


@pytest.fixture(scope="module")
def expected(photographs: datasets.Dataset) -> list[dict[str, Any]]:
    """The rows that went in, as `datasets` has them, without the pictures."""
    return photographs.remove_columns("image").to_list()


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def check(sample: dict[str, Any], expected: list[dict[str, Any]]) -> int:
    """Compare one sample's values with the row that it came from, and give that row's number."""
    index = int(sample["key"])
    row = expected[index]
    for name in ("caption", "brightness", "attributes", "boxes", "tags", "when"):
        assert plain(sample[name]) == row[name], name
    assert plain(sample["source.height"]) == row["height"]
    left, top, right, bottom, width, height = plain(sample["crop"])
    assert (width, height) == (SIDE, SIDE)
    assert bottom - top == right - left == min(row["height"], right + left)  # the centre square
    return index


def samples_of(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for i in range(len(batch["latent"])):
        yield {name: values[i] for name, values in batch.items()}


def test_types_are_those_of_the_features_and_of_lists_that_have_one_length(encoded: Path) -> None:
    data = LatentDataset(encoded)
    assert data.record.columns == {
        "attributes": {"list": "bool", "length": 3},
        "boxes": {"list": {"list": "float32", "length": 4}},
        "brightness": "float32",
        "caption": "string",
        "source.height": "int16",
        "objects": {"struct": {"area": {"list": "float64"}, "names": {"list": "string"}}},
        "tags": {"list": "string"},
        "weight": "int32",
        "when": "timestamp",
        "labels": {"list": "int64"},
    }
    assert data.column_classes == {"labels": ("none", "one", "two")}
    assert data.column_types["boxes"] == "list<list<float32>[4]>"
    assert verify_dataset(encoded, progress=False).problems == ()
    info = str(dataset_info(encoded))
    assert "columns: attributes list<bool>[3], boxes list<list<float32>[4]>, brightness float32, caption string" in info


def loader(data: LatentDataset) -> Iterator[Any]:
    return iter(data.loader(batch_size=5, num_workers=2))


def plain_loader(data: LatentDataset) -> Iterator[Any]:
    return iter(DataLoader(data, batch_size=5, shuffle=True, collate_fn=collate_samples, num_workers=1))


@pytest.mark.parametrize("cache", ["shards", "array"])
@pytest.mark.parametrize("batches", [loader, plain_loader])
def test_batches_hold_what_went_in(
    encoded: Path, expected: list[dict[str, Any]], batches: Callable[[LatentDataset], Iterator[Any]], cache: Any
) -> None:
    data = LatentDataset(encoded, columns=WANTED, as_dict=True, shuffle=True, cache=cache)
    seen = []
    for batch in batches(data):
        assert (batch["latent"].dtype, batch["brightness"].dtype) == (torch.int8, torch.float32)
        assert (batch["attributes"].dtype, batch["source.height"].dtype) == (torch.bool, torch.int16)
        assert batch["attributes"].shape == (len(batch["latent"]), 3)
        for sample in samples_of(batch):
            index = check(sample, expected)
            assert plain(sample["label"]) == expected[index]["label"]
            seen.append(index)
    assert sorted(seen) == list(range(NUM))


def test_samples_by_position_by_key_and_by_iteration_are_the_same(
    encoded: Path, expected: list[dict[str, Any]]
) -> None:
    data = LatentDataset(encoded, columns=WANTED, as_dict=True)
    iterated = list(data)
    assert [check(sample, expected) for sample in iterated] == [int(key) for key in data.keys]
    for i, sample in enumerate(iterated):
        assert check(data[i], expected) == check(data.by_key(data.keys[i]), expected) == int(sample["key"])
        assert torch.equal(data[i]["latent"], sample["latent"])
    with pytest.raises(KeyError, match="no sample '000000099' among these 24"):
        data.by_key("000000099")


def test_a_target_takes_the_labels_place_and_none_leaves_it_out(encoded: Path, expected: list[dict[str, Any]]) -> None:
    rows = [expected[int(key)] for key in LatentDataset(encoded).keys]
    latents, brightness, captions = next(
        iter(LatentDataset(encoded, target="brightness", columns=["caption"]).loader(batch_size=NUM))
    )
    assert brightness.tolist() == [row["brightness"] for row in rows]
    assert captions == [row["caption"] for row in rows]
    (alone,) = LatentDataset(encoded, target=None).loader(batch_size=NUM)
    assert torch.equal(alone, latents)
    padded, valid = list(LatentDataset(encoded, target=None).loader(batch_size=16, pad=True))[1]
    assert padded.shape[0] == 16
    assert valid.tolist() == [True] * 8 + [False] * 8
    latent, label = LatentDataset(encoded)[3]  # as ever
    assert torch.equal(latent, latents[3])
    assert type(label) is int
    assert label == rows[3]["label"]
    hot = LatentDataset(encoded, target="attributes")
    assert next(iter(hot.loader(batch_size=4)))[1].tolist() == [row["attributes"] for row in rows[:4]]


def test_a_number_that_is_missing_is_nan_and_a_text_that_is_missing_is_none(
    encoded: Path, expected: list[dict[str, Any]]
) -> None:
    data = LatentDataset(encoded, target="weight", columns=["tags", "objects", "labels", "key"])
    _, weights, tags, objects, labels, keys = next(iter(data.loader(batch_size=NUM)))
    rows = [expected[int(key)] for key in keys]
    assert weights.dtype == torch.float64
    assert [None if np.isnan(weight) else int(weight) for weight in weights.tolist()] == [r["weight"] for r in rows]
    assert tags == [row["tags"] for row in rows]
    assert labels == [row["labels"] for row in rows]
    assert objects == [row["objects"] for row in rows]


def test_nan_and_infinity_are_numbers_and_no_missing_values(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (16, 16)).save(png, "PNG")
    numbers = [float("nan"), float("inf"), float("-inf"), 0.5]
    features = datasets.Features(
        image=datasets.Image(),
        score=datasets.Value("float32"),
        pair=datasets.Sequence(datasets.Value("float64")),
    )
    rows = {
        "image": [{"bytes": png.getvalue(), "path": None}] * 4,
        "score": numbers,
        "pair": [[number, 1.0] for number in numbers],
    }
    encode_dataset(
        datasets.Dataset.from_dict(rows, features=features),
        tmp_path / "out",
        shuffle_seed=None,
        sample_json=True,
        progress=False,
    )
    data = LatentDataset(tmp_path / "out", target="score", columns=["pair"])
    _, scores, pairs = next(iter(data.loader(batch_size=4)))
    assert (scores.dtype, pairs.dtype) == (torch.float32, torch.float64)
    assert torch.equal(scores.nan_to_num(7, 8, 9), torch.tensor([7.0, 8.0, 9.0, 0.5]))
    assert torch.equal(pairs[:, 0].nan_to_num(7, 8, 9), torch.tensor([7.0, 8.0, 9.0, 0.5], dtype=torch.float64))
    assert len(data.subset(where=[("score", ">", 0)])) == 2
    assert verify_dataset(tmp_path / "out", progress=False).problems == ()


def test_torchs_own_collation_takes_numbers_arrays_and_text(encoded: Path, expected: list[dict[str, Any]]) -> None:
    data = LatentDataset(encoded, target="brightness", columns=["attributes", "caption", "key"])
    for ours, theirs in zip(data.loader(batch_size=5), DataLoader(data, batch_size=5), strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == list(other)
            assert not isinstance(mine, torch.Tensor) or mine.dtype == other.dtype
        assert ours[3] == [expected[int(key)]["caption"] for key in ours[4]]


def test_the_index_is_an_arrow_table_and_a_data_frame(encoded: Path, expected: list[dict[str, Any]]) -> None:
    part = LatentDataset(encoded).subset(where=[("brightness", ">", 100)])
    table = part.to_arrow()
    assert table["key"].to_pylist() == part.keys
    assert table["caption"].to_pylist() == [expected[int(key)]["caption"] for key in part.keys]
    frame = part.to_pandas()
    assert frame["source.height"].tolist() == [expected[int(key)]["height"] for key in part.keys]


@pytest.mark.parametrize(
    ("where", "meets"),
    [
        (("brightness", ">", 110), lambda row: row["brightness"] > 110),
        (("weight", "<=", 10), lambda row: row["weight"] is not None and row["weight"] <= 10),
        (("weight", "!=", 10), lambda row: row["weight"] is not None and row["weight"] != 10),
        (("weight", "==", None), lambda row: row["weight"] is None),
        (("weight", "==", float("nan")), lambda row: row["weight"] is None),
        (("weight", "!=", None), lambda row: row["weight"] is not None),
        (("weight", "!=", np.float32("nan")), lambda row: row["weight"] is not None),
        (("tags", "==", None), lambda row: row["tags"] is None),
        (("caption", "==", None), lambda row: False),
        (("caption", "!=", float("nan")), lambda row: True),
        (("attributes", "!=", None), lambda row: True),
        (("label", "==", None), lambda row: False),
        (("source_width", "!=", None), lambda row: True),
        (("weight", "not in", [1, 2, 3]), lambda row: row["weight"] not in (None, 1, 2, 3)),
        (("caption", "==", "nobody's"), lambda row: False),
        (("caption", ">=", "photograph 2"), lambda row: row["caption"] >= "photograph 2"),
        (("when", "<", datetime.datetime(2020, 1, 9)), lambda row: row["when"] < datetime.datetime(2020, 1, 9)),
        (("source.height", "in", {160, 213}), lambda row: row["height"] in (160, 213)),
        (("label", "in", {0, 2}), lambda row: row["label"] in (0, 2)),
        (("tags", "has", "wide"), lambda row: "wide" in (row["tags"] or [])),
        (("labels", "has", 2), lambda row: 2 in row["labels"]),
        (("labels", "has", "two"), lambda row: 2 in row["labels"]),
        (("attributes", "has", False), lambda row: False in row["attributes"]),
        (("source_width", ">", 0), lambda row: True),
    ],
)
def test_conditions_choose_by_any_column(
    encoded: Path, expected: list[dict[str, Any]], where: tuple[Any, ...], meets: Callable[[dict[str, Any]], bool]
) -> None:
    data = LatentDataset(encoded)
    chosen = {int(key) for key in data.subset(where=[where]).keys}
    assert chosen == {i for i, row in enumerate(expected) if meets(row)}
    half = data.subset(where=[("source_index", "<", 12)])  # conditions on a part of a part
    assert {int(key) for key in half.subset(where=[where]).keys} == {i for i in chosen if i < 12}


def test_conditions_name_classes(encoded: Path) -> None:
    data = LatentDataset(encoded)
    assert data.class_names is not None
    first, third = data.class_names[0], data.class_names[2]
    assert data.subset(where=[("label", "==", first)]).keys == data.subset(classes=[0]).keys
    assert data.subset(where=[("label", "in", [first, 2])]).keys == data.subset(classes=[first, third]).keys
    assert data.subset(where=[("label", "!=", third)]).keys == data.subset(where=[("label", "!=", 2)]).keys
    with pytest.raises(LoaderError, match="no class 'dog': the data set has"):
        data.subset(where=[("label", "==", "dog")])


def test_large_integers_and_single_precision_are_compared_exactly(tmp_path: Path) -> None:
    pictures = [np.full((16, 16, 3), 40 * i, np.uint8) for i in range(4)]
    columns = {
        "missing": [2**53, 2**53 + 1, None, 5],
        "unsigned": np.array([2**63, 2**63 + 1, 5, 6], np.uint64),
        "score": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
    }
    source = datasets.Dataset.from_dict({"image": list(map(Image.fromarray, pictures)), **columns})
    encode_dataset(source, tmp_path / "out", progress=False)
    data = LatentDataset(tmp_path / "out", cache_folder=tmp_path / "cache")

    def chosen(*where: Any) -> list[int]:
        return data.subset(where=[where]).index["source_index"].tolist()

    assert chosen("unsigned", "in", [2**63 + 1, -1]) == chosen("unsigned", "==", 2**63 + 1) == [1]
    assert chosen("unsigned", "not in", [2**63 + 1, 2**64]) == [0, 2, 3]
    assert chosen("score", "in", [0.1, 0.4]) == [0, 3]
    assert chosen("missing", "in", [5]) == [3]
    for where in (("missing", "==", 2**53 + 1), ("missing", "in", [5, 2**53 + 1])):  # float64 with NaN for the missing
        with pytest.raises(
            LoaderError, match=r"'missing' holds float64 .* 9007199254740993 is not one of them exactly"
        ):
            chosen(*where)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"label": 3}, r"where is a list of conditions, such as \[\(\"age\", \">\", 30\).*not \{'label': 3\}"),
        ([("label", 3)], r"a condition is \(column, comparison, value\)"),
        (("label", "==", 3), r"a condition is \(column, comparison, value\).*not 'label'"),
        ([("colour", "==", 3)], r"no column 'colour' in its index; it has \['attributes', 'boxes'"),
        ([("label", "=", 3)], "no comparison '='; there are"),
        ([("label", "in", 3)], "'in' takes several values"),
        ([("caption", ">", 3)], "column 'caption' holds string, which cannot be compared with 3"),
        ([("brightness", ">", "3")], "column 'brightness' holds numbers, which cannot be compared with '3'"),
        ([("boxes", "==", 1)], "numbers, text and dates are compared, and lists of them with 'has'"),
        ([("boxes", "has", 1)], "numbers, text and dates are compared, and lists of them with 'has'"),
        ([("weight", "<", None)], r"column 'weight' is compared by '<' with None: '==' and '!=' find missing values"),
        ([("caption", "in", ["a", None])], r"by 'in' with \['a', None\]: '==' and '!=' find missing values"),
        ([("attributes", "==", 1)], "'attributes' has 3 numbers a sample"),
        ([("brightness", "has", 1)], "'brightness' has 1 numbers a sample"),
        ([("tags", "has", 1)], "column 'tags' holds list<string>, which cannot be compared with 1"),
    ],
)
def test_a_wrong_condition_is_one_clear_error(encoded: Path, where: Any, message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        LatentDataset(encoded).subset(where=where)


def test_a_column_that_is_not_there_is_named_with_those_that_are(encoded: Path) -> None:
    with pytest.raises(LoaderError, match=r"no column 'captions' in its index; it has \['attributes', .*'width'\]"):
        LatentDataset(encoded, columns=["captions"])
    with pytest.raises(LoaderError, match="columns is a list of names"):
        LatentDataset(encoded, columns="caption")
    with pytest.raises(LoaderError, match="columns names 'caption' twice"):
        LatentDataset(encoded, columns=["caption", "label", "caption"])


def test_a_mixture_gives_the_columns_of_its_parts(encoded: Path, expected: list[dict[str, Any]]) -> None:
    data = LatentDataset(encoded, columns=WANTED, as_dict=True)
    parts = [data.subset(where=[("source_index", "<", 10)]), data.subset(where=[("source_index", ">=", 10)])]
    mixture = LatentMixture(parts, weights=[1, 1])
    seen = [check(s, expected) for batch in mixture.loader(batch_size=6, num_workers=1) for s in samples_of(batch)]
    assert len(seen) == NUM
    assert sum(index < 10 for index in seen) == 12
    with pytest.raises(LoaderError, match="cannot be mixed: open them with the same columns"):
        LatentMixture([data, LatentDataset(encoded)])


def test_the_trainers_collator_names_inputs_and_labels(encoded: Path, expected: list[dict[str, Any]]) -> None:
    rows = [expected[int(key)] for key in LatentDataset(encoded).keys[:3]]
    data = LatentDataset(encoded, target="brightness")
    batch = TrainerCollator()(data[:3])
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["labels"].tolist() == [row["brightness"] for row in rows]
    dicts = LatentDataset(encoded, target="brightness", columns=["caption"], as_dict=True)
    named = TrainerCollator(inputs="x", target="brightness")(dicts[:3])
    assert named["caption"] == [row["caption"] for row in rows]
    assert torch.equal(named["x"], batch["pixel_values"])
    assert torch.equal(named["labels"], batch["labels"])


BOX = (40, 24, 104, 96)  # left, top, right, bottom of a grey rectangle in a picture of 176 x 128


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["crop:96", "shorter:96", "square:96", None])
@pytest.mark.parametrize("mirror", [False, True])
def test_boxes_fall_on_the_cells_of_what_they_enclose(tmp_path: Path, resize: str | None, *, mirror: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 176, 3), dtype=np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 128
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    features = datasets.Features(
        image=datasets.Image(), box=datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4))
    )
    xywh = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
    rows = {"image": [{"bytes": png.getvalue(), "path": None}] * 2, "box": [[xywh]] * 2}
    options: dict[str, Any] = {} if resize is None else {"resize": resize}
    encode_dataset(
        datasets.Dataset.from_dict(rows, features=features), tmp_path / "out", mirror=mirror, progress=False, **options
    )
    columns = ("box", "crop", "mirrored")
    data = LatentDataset(tmp_path / "out", columns=columns, target=None, as_dict=True, mirror=mirror)
    flags = set()
    for epoch in range(4):
        data.set_epoch(epoch)
        for sample in data:
            mirrored = bool(sample["mirrored"])
            flags.add(mirrored)
            [box] = boxes_to_cells(sample["box"], sample["crop"], form="xywh", mirrored=mirrored)
            left, top = (int(edge) for edge in torch.ceil(box[:2] + 1e-3))
            right, bottom = (int(edge) for edge in torch.floor(box[2:] - 1e-3))
            inside = sample["latent"][:, top + 1 : bottom - 1, left + 1 : right - 1].float()
            spread = sample["latent"].float().std(dim=(1, 2))
            assert inside.numel() > 0
            ranges = inside.flatten(1).amax(1) - inside.flatten(1).amin(1)
            assert ranges.max() <= 2  # one grey, but for what the wavelet sees of the noise beyond
            # A cell further out on each side is noise again.
            for edge in (
                sample["latent"][:, max(0, top - 2), left:right],
                sample["latent"][:, top:bottom, max(0, left - 2)],
            ):
                assert edge.float().std() > 0.3 * spread.mean()
    assert flags == ({False, True} if mirror else {False})


def test_boxes_are_cut_off_at_the_border_and_may_be_none() -> None:
    crop = (20, 0, 120, 100, 50, 50)
    assert boxes_to_pixels([0, 0, 70, 200], crop).tolist() == [0, 0, 25, 50]
    assert boxes_to_pixels([0, 0, 70, 200], crop, clip=False).tolist() == [-10, 0, 25, 100]
    assert boxes_to_pixels([[70, 50, 20, 10]], crop, form="cxcywh").tolist() == [[20, 22.5, 30, 27.5]]
    assert boxes_to_pixels([[40, 0, 60, 30]], crop, mirrored=True).tolist() == [[30, 0, 40, 15]]
    assert boxes_to_cells([], crop).shape == boxes_to_cells(None, crop).shape == (0, 4)
    # 50 px are padded by 3 on each side to 56: seven cells
    assert boxes_to_cells([20, 0, 120, 100], crop).tolist() == [3 / 8, 3 / 8, 53 / 8, 53 / 8]
    with pytest.raises(LoaderError, match="a box is four numbers"):
        boxes_to_cells([[1, 2, 3]], crop)


@pytest.mark.parametrize(
    ("target", "num_classes", "names"),
    [("brightness", 1, None), ("attributes", 3, None), ("labels", 3, ("none", "one", "two")), ("weight", 1, None)],
)
def test_a_model_has_as_many_outputs_as_its_target_asks_for(
    encoded: Path, target: str, num_classes: int, names: tuple[str, ...] | None
) -> None:
    data = LatentDataset(encoded, target=target)
    model = create_latent_model("test_convnext", dataset=data)
    assert (model.num_classes, model.latent_config.class_names) == (num_classes, names)
    assert model.latent_config.task == ("labels" if num_classes == 3 else "numbers")
    latents = next(iter(data.loader(batch_size=2)))[0]
    assert model.eval()(latents).shape == (2, num_classes)


def test_a_model_is_made_for_a_mixture_and_for_relabelled_classes(encoded: Path) -> None:
    data = LatentDataset(encoded)
    names = data.class_names
    assert names is not None
    halves = data.split(0.5)
    mixture = LatentMixture(halves)
    assert mixture.statistics == data.statistics  # of one split, which is counted once
    model = create_latent_model("test_convnext", dataset=mixture)
    assert (model.num_classes, model.latent_config.class_names) == (len(names), names)
    assert model.latent_config.input_shape == (12, 8, 8)
    regressed = [LatentDataset(encoded, target="brightness"), LatentDataset(encoded, target="brightness")]
    assert create_latent_model("test_convnext", dataset=LatentMixture(regressed)).num_classes == 1
    few = data.subset(classes=names[:2], relabel=True)
    assert create_latent_model("test_convnext", dataset=few).latent_config.class_names == names[:2]


def test_a_target_that_does_not_say_how_many_outputs_is_one_clear_error(encoded: Path) -> None:
    for target, what in (("source.height", "int16 without names"), ("caption", "a list or text")):
        with pytest.raises(ModelError, match=f"the target '{target}' is {what}: pass num_classes="):
            create_latent_model("test_convnext", dataset=LatentDataset(encoded, target=target))
    heights = LatentDataset(encoded, target="source.height")
    assert create_latent_model("test_convnext", dataset=heights, num_classes=1).num_classes == 1


@pytest.mark.object_store
def test_through_s3_two_ranks_with_workers_and_a_resume_give_every_row_once(
    photographs: datasets.Dataset, expected: list[dict[str, Any]], make_bucket: Callable[[str], dict[str, Any]]
) -> None:
    options = make_bucket("columns")
    url = "s3://columns/latents"
    encode_dataset(photographs, url, size_px=SIDE, samples_per_shard=5, storage_options=options, progress=False)

    def open_rank(rank: int) -> Any:
        columns = [name for name in WANTED if name != "brightness"]
        data = LatentDataset(
            url, columns=columns, target="brightness", as_dict=True, shuffle=True, seed=3, storage_options=options
        )
        return data.loader(batch_size=4, num_workers=2, rank=rank, world_size=2)

    seen: list[int] = []
    for rank in range(2):
        loader = open_rank(rank)
        for batch in itertools.islice(loader, 1):
            seen += [check(sample, expected) for sample in samples_of(batch)]
        state = loader.state_dict()
        resumed = open_rank(rank)
        resumed.load_state_dict(state)
        for batch in resumed:
            seen += [check(sample, expected) for sample in samples_of(batch)]
    assert sorted(seen) == list(range(NUM))


def test_the_target_may_be_one_of_the_columns(encoded: Path, expected: list[dict[str, Any]]) -> None:
    data = LatentDataset(encoded, columns=("caption", "brightness"), target="brightness")
    row = expected[int(data.keys[3])]
    _, target, caption, brightness = data[3]
    assert (target.item(), caption, brightness.item()) == (row["brightness"], row["caption"], row["brightness"])
    _, targets, _, column = next(iter(data.loader(batch_size=4)))
    assert targets.tolist() == column.tolist()
    named = LatentDataset(encoded, columns=("caption", "label"), as_dict=True)
    assert list(named[3]) == ["latent", "label", "caption"]
    assert named[3]["label"] == row["label"]
