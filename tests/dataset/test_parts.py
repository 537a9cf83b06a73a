"""Parts: splits, folds, chosen rows and keys, complements, weights; what they hold, and that states know them."""

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from walloc_data import LatentDataset
from walloc_data.dataset import LatentMixture
from walloc_data.errors import LoaderError, StateError
from walloc_data.format import Manifest, sample_key

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

Make = Callable[..., Manifest]
Ids = Callable[[torch.Tensor], list[int]]


def sources(data: LatentDataset) -> list[int]:
    ids: list[int] = data.index["source_index"].tolist()
    return ids


@pytest.mark.parametrize("stratify", [False, True])
def test_a_split_divides_every_sample_once(hundred: Path, ids_of: Ids, *, stratify: bool) -> None:
    train, val = LatentDataset(hundred, shuffle=True).split(0.8, stratify=stratify, seed=0)
    assert (len(train), len(val)) == (80, 20)
    assert sorted(sources(train) + sources(val)) == list(range(100))
    assert sources(train) == sorted(sources(train))
    if stratify:
        assert (Counter(train.labels.tolist()), Counter(val.labels.tolist())) == (
            dict.fromkeys(range(5), 16),
            dict.fromkeys(range(5), 4),
        )
    read = [i for latents, _ in train.loader(batch_size=16, num_workers=1) for i in ids_of(latents)]
    assert sorted(read) == sources(train)
    assert read != sources(train)


PINNED_TENTH = [2, 16, 32, 53, 58, 68, 72, 80, 95, 96]
PINNED_STRATIFIED = [7, 38, 40, 44, 48, 71, 80, 82, 86, 94]


def test_a_split_is_a_function_of_its_seed(hundred: Path) -> None:
    first, again, other = (LatentDataset(hundred).split(0.5, seed=seed)[0] for seed in (1, 1, 2))
    assert sources(first) == sources(again)
    assert first.identity == again.identity
    assert sources(first) != sources(other)
    assert first.identity != other.identity
    # pinned: a run that goes on with a later version must have the same parts
    assert sources(LatentDataset(hundred).split(0.1, seed=0)[0]) == PINNED_TENTH
    assert sources(LatentDataset(hundred).split(0.1, stratify=True, seed=0)[0]) == PINNED_STRATIFIED


def test_small_classes_are_rounded_by_largest_remainders(make_dataset: Make, tmp_path: Path) -> None:
    make_dataset(tmp_path, num_samples=100)
    uneven = LatentDataset(tmp_path).subset(
        where=[("source_index", "not in", [i for i in range(100) if i % 5 == 4 and i > 13])]
    )
    assert Counter(uneven.labels.tolist()) == {0: 20, 1: 20, 2: 20, 3: 20, 4: 2}
    train, val = uneven.split(0.75, stratify=True)
    assert len(train) == 62  # of 82: 61.5
    counts = Counter(train.labels.tolist())
    assert [counts[i] for i in range(4)] == [15] * 4
    assert counts[4] == 2  # 1.5, and 62 - 60 are left
    assert Counter(val.labels.tolist()) == dict.fromkeys(range(4), 5)


@pytest.mark.parametrize("stratify", [False, True])
def test_folds_are_disjoint_even_and_complete(hundred: Path, *, stratify: bool) -> None:
    data = LatentDataset(hundred).subset(where=[("source_index", "<", 93)])
    folds = data.folds(4, stratify=stratify, seed=3)
    assert sorted(len(val) for _, val in folds) == [23, 23, 23, 24]
    assert sorted(i for _, val in folds for i in sources(val)) == list(range(93))
    for train, val in folds:
        assert sorted(sources(train) + sources(val)) == list(range(93))
        assert train.complement().identity == val.identity
        if stratify:
            assert set(Counter(val.labels.tolist()).values()) <= {4, 5}
    assert [v.identity for _, v in folds] == [v.identity for _, v in data.folds(4, stratify=stratify, seed=3)]
    assert len({v.identity for _, v in folds} | {t.identity for t, _ in folds}) == 8


def test_rows_and_keys_choose_samples(hundred: Path, ids_of: Ids) -> None:
    data = LatentDataset(hundred)
    part = data.subset(rows=[40, -1, 7])
    assert sources(part) == [7, 40, 99]  # as stored
    assert ids_of(torch.stack([latent for latent, _ in part])) == [7, 40, 99]
    assert sources(part.subset(rows=np.array([False, True, True]))) == [40, 99]
    assert sources(data.subset(rows=[])) == []
    assert sources(data.subset(keys=[sample_key(i) for i in (31, 5)])) == [5, 31]
    assert sources(part.subset(keys=[sample_key(99)], rows=[1, 2])) == [99]
    assert sources(data.subset(rows=range(50), classes=[2], where=[("source_index", ">", 30)])) == [32, 37, 42, 47]
    assert part.identity == data.subset(keys=part.keys).identity


def test_what_was_left_out_is_the_complement(hundred: Path) -> None:
    data = LatentDataset(hundred)
    low = data.subset(where=[("source_index", "<", 60)])
    part = low.subset(classes=[0, 1])
    assert sources(part.complement()) == [i for i in range(60) if i % 5 > 1]
    assert sources(low.complement()) == list(range(60, 100))
    assert part.complement().complement().identity == part.identity
    train, val = data.split(0.9)
    assert train.complement().identity == val.identity
    with pytest.raises(LoaderError, match="is not a part"):
        data.complement()


def test_relabelled_classes_count_from_nought_everywhere(hundred: Path) -> None:
    data = LatentDataset(hundred, columns=["label"], target=None)
    part = LatentDataset(hundred).subset(classes=["class4", 1], relabel=True)
    assert part.class_names == ("class1", "class4")
    assert part.num_classes == 2
    assert part.labels.tolist() == [0, 1] * 20
    assert [label for _, label in part] == [0, 1] * 20
    loaded = torch.cat([labels for _, labels in part.loader(batch_size=8, num_workers=1)])
    assert loaded.tolist() == torch.cat([b[1] for b in DataLoader(part, batch_size=8)]).tolist() == [0, 1] * 20
    assert part.index["label"].tolist() == part.to_arrow()["label"].to_pylist() == [0, 1] * 20
    assert pickle.loads(pickle.dumps(part)).labels.tolist() == [0, 1] * 20
    again = part.subset(classes=["class4"], relabel=True)
    assert again.class_names == ("class4",)
    assert set(sources(again)) == set(range(4, 100, 5))
    assert again.labels.tolist() == [0] * 20
    assert again.complement().labels.tolist() == [0] * 20  # class1, as it is numbered in `part`
    assert part.complement().class_names == tuple(f"class{i}" for i in range(5))
    assert part.complement().labels.tolist() == [0, 2, 3] * 20
    assert part.identity != LatentDataset(hundred).subset(classes=["class4", 1]).identity
    left = data.subset(where=[("label", "in", [0, 3])], relabel=True)
    assert [label for _, label in left][:4] == [0, 1, 0, 1]
    mixed = LatentMixture([part, part])
    assert mixed.labels.tolist() == [0, 1] * 40
    none_of_1 = LatentDataset(hundred).subset(classes=[0, 1], where=[("source_index", "in", [5, 10])], relabel=True)
    assert none_of_1.class_names == ("class0", "class1")  # asked for, though it has no sample


def test_draws_follow_the_weights(hundred: Path, ids_of: Ids) -> None:
    data = LatentDataset(hundred, seed=4)
    weights = np.zeros(100)
    weights[[0, 10, 50, 99]] = [1, 2, 4.5, 0.5]  # of 8: 12.5, 25, 56.25, 6.25 of 100 draws
    loader = data.loader(batch_size=10, weights=weights)
    totals: Counter[int] = Counter()
    orders = []
    for _ in range(40):
        drawn = [i for latents, _ in loader for i in ids_of(latents)]
        counts = Counter(drawn)
        assert counts[10] == 25
        assert set(counts) == {0, 10, 50, 99}
        assert (counts[0], counts[50], counts[99]) in {(12, 56, 7), (12, 57, 6), (13, 56, 6), (13, 57, 5), (12, 56, 6)}
        totals += counts
        orders.append(drawn)
    assert orders[0] != orders[1]
    assert abs(totals[0] / 40 - 12.5) < 0.3
    assert abs(totals[99] / 40 - 6.25) < 0.3


def test_weighted_draws_resume_and_their_weights_are_part_of_the_state(hundred: Path, ids_of: Ids) -> None:
    data = LatentDataset(hundred, seed=4)
    weights = np.arange(100)
    whole = [ids_of(latents) for latents, _ in data.loader(batch_size=10, weights=weights)]
    assert 0 not in {i for batch in whole for i in batch}
    first = data.loader(batch_size=10, weights=weights)
    batches = iter(first)
    for _ in range(4):
        next(batches)
    state = first.state_dict()
    second = data.loader(batch_size=10, weights=torch.from_numpy(weights), num_workers=1)
    second.load_state_dict(state)
    assert [ids_of(latents) for latents, _ in second] == whole[4:]
    sampler = data.batch_sampler(batch_size=10, weights=weights.tolist())
    assert [[int(i) for i in batch] for batch in sampler] == whole
    two = [data.loader(batch_size=5, weights=weights, rank=rank, world_size=2) for rank in range(2)]
    halves = [[ids_of(latents) for latents, _ in loader] for loader in two]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    with pytest.raises(StateError, match="the state has order 'weights-"):
        data.loader(batch_size=10, weights=weights + 1).load_state_dict(state)


def test_a_state_knows_its_part(hundred: Path) -> None:
    data = LatentDataset(hundred, shuffle=True)
    train, val = data.split(0.5, seed=0)
    state = train.loader(batch_size=5).state_dict()
    data.split(0.5, seed=0)[0].loader(batch_size=5).load_state_dict(state)
    others: list[Any] = [val, data.split(0.5, seed=1)[0], train.subset(relabel=True), data.folds(2)[0][0]]
    for other in others:
        assert len(other) == 50
        with pytest.raises(StateError, match="identity"):
            other.loader(batch_size=5).load_state_dict(state)


def test_a_part_shuffles_in_windows_of_shards(hundred: Path, ids_of: Ids) -> None:
    train, _ = LatentDataset(hundred, shuffle=True, window_shards=2).split(0.7, stratify=True)
    ids = [i for latents, _ in train.loader(batch_size=7) for i in ids_of(latents)]
    assert sorted(ids) == sources(train)
    assert len(set(train.shards(np.array([train.position(sample_key(i)) for i in ids[:7]])).tolist())) <= 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: data.split(1), "100 samples cannot be divided by the fraction 1"),
        (lambda data: data.split(0.001), "no part may be empty"),
        (lambda data: data.folds(1), "100 samples cannot be divided into 1 folds"),
        (lambda data: data.folds(101), "cannot be divided into 101 folds"),
        (lambda data: data.split(0.5, stratify="colour"), "no column 'colour'"),
        (lambda data: data.subset(rows=[1, 1]), "rows contains a row twice"),
        (lambda data: data.subset(rows=[100]), "no row 100 among these 100"),
        (lambda data: data.subset(rows=[0.5]), "rows must be positions or a mask of 100 booleans, not float64"),
        (lambda data: data.subset(rows=[True, False]), "a mask of 100 booleans, not bool of shape"),
        (lambda data: data.subset(keys="000000001"), "keys is a list of names"),
        (lambda data: data.subset(keys=["000000001", "x"]), "no sample 'x' among these 100"),
        (lambda data: data.loader(batch_size=2, weights=[1.0]), r"weights must be 100 finite numbers.*got \(1,\)"),
        (lambda data: data.loader(batch_size=2, weights=[0] * 100), "at least 0, one per sample, not all 0"),
        (lambda data: data.loader(batch_size=2, weights=[-1.0] * 100), "from -1.0 to -1.0"),
        (lambda data: data.loader(batch_size=2, weights=["a"] * 100), "weights must be 100 numbers, one per sample"),
        (
            lambda data: data.loader(batch_size=2, weights=[1] * 100, class_balanced=True),
            "class_balanced and weights cannot be combined",
        ),
    ],
)
def test_parts_that_make_no_sense_are_refused(hundred: Path, make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        make(LatentDataset(hundred))


def test_unlabelled_samples_are_not_stratified_by_label(make_dataset: Make, tmp_path: Path) -> None:
    make_dataset(tmp_path, num_samples=20, num_classes=None)
    data = LatentDataset(tmp_path)
    with pytest.raises(LoaderError, match="stratify=True needs labels"):
        data.split(0.5, stratify=True)
    train, _ = data.split(0.5, stratify="height")
    assert len(train) == 10


def test_what_is_no_class_no_fraction_and_no_number_of_folds_is_refused(
    hundred: Path, make_dataset: Make, tmp_path: Path
) -> None:
    data = LatentDataset(hundred)
    for classes, message in (
        ([7], "no class 7: the data set has 5 classes"),
        ([-2], "no class -2"),
        ("class1", r"classes is a list of labels or names, such as \['class1'\]"),
        (1, r"classes is a list .* such as \[1\]"),
    ):
        with pytest.raises(LoaderError, match=message):
            data.subset(classes=classes)
    assert len(data.subset(classes=[-1])) == 0  # those without a label
    make_dataset(tmp_path, num_samples=10, num_classes=None)
    with pytest.raises(LoaderError, match=r"split 'train': has no labels to choose classes by: use where="):
        LatentDataset(tmp_path).subset(classes=[0])
    for fraction in ("0.5", [0.8, 0.1, 0.1]):
        with pytest.raises(LoaderError, match=r"fraction is one number in \(0, 1\), .* split what is left again"):
            data.split(fraction)
    for seeded in (lambda: data.split(0.5, seed="a"), lambda: LatentDataset(hundred, seed="a")):
        with pytest.raises(LoaderError, match="seed must be an integer, not 'a'"):
            seeded()
    with pytest.raises(LoaderError, match=r"cannot be divided into 2\.5 folds"):
        data.folds(2.5)
    with pytest.raises(LoaderError, match="of LatentDatasets, not LatentMixture: give the data sets of a mixture one"):
        LatentMixture([LatentMixture([data]), data])


def test_one_of_several_classes_of_a_name_is_not_chosen_by_it(make_dataset: Make, tmp_path: Path) -> None:
    """ImageNet has two classes named crane."""
    make_dataset(tmp_path, num_samples=10, num_classes=5)
    manifest = json.loads((tmp_path / "walloc.json").read_text())
    (tmp_path / "walloc.json").write_text(json.dumps(manifest | {"class_names": ["a", "crane", "b", "crane", "c"]}))
    data = LatentDataset(tmp_path)
    for choice in ({"classes": ["a", "crane"]}, {"where": [("label", "==", "crane")]}):
        with pytest.raises(LoaderError, match=r"2 classes are named 'crane': give their labels, \[1, 3\], instead"):
            data.subset(**choice)
    assert data.subset(classes=["a", 1, 3]).labels.tolist() == [0, 1, 3, 0, 1, 3]


def test_an_epoch_without_a_batch_is_refused(hundred: Path) -> None:
    few = LatentDataset(hundred).subset(rows=range(10))
    match = (
        "10 samples do not fill one batch of .*16.* an epoch would have no batch: make batches smaller, or leave out"
    )
    for make in (few.loader, few.batch_sampler):
        with pytest.raises(LoaderError, match=match):
            make(batch_size=16, drop_last=True)
        with pytest.raises(LoaderError, match="10 samples do not fill one batch"):
            make(batch_size=8, drop_last=True, rank=0, world_size=2)
        assert len(make(batch_size=16)) == 1
        assert len(few.subset(rows=[]).loader(batch_size=16, drop_last=True)) == 0  # as empty as it is
