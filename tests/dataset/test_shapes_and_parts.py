"""Pictures of native resolution, parts of a data set, mirrored latents, transforms and mixtures."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.dataset import LatentMixture
from walloc_data.errors import LoaderError
from walloc_data.format import Manifest

Ids = Callable[[torch.Tensor], list[int]]
Make = Callable[..., Manifest]


def test_buckets_hold_one_shape_a_batch_and_every_sample_once(mixed_shapes: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(mixed_shapes, shuffle=True)
    loader = dataset.loader(batch_size=8, bucket_by_shape=True)
    orders = []
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 12  # three shapes of 30 samples
        orders.append([ids_of(latents) for latents, _ in batches])
        assert sorted(sum(orders[-1], [])) == list(range(90))  # noqa: RUF017
        for latents, labels in batches:
            ids = ids_of(latents)
            assert {((4, 4), (4, 6), (6, 4))[i % 3] for i in ids} == {tuple(latents.shape[2:])}
            assert labels.tolist() == [i % 5 for i in ids]
    assert orders[0] != orders[1]
    with_workers = dataset.loader(batch_size=8, bucket_by_shape=True, num_workers=1)
    assert [ids_of(latents) for latents, _ in with_workers] == orders[0]


def test_buckets_pad_drop_and_resume_like_any_plan(mixed_shapes: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(mixed_shapes, shuffle=True)
    padded = dataset.loader(batch_size=4, bucket_by_shape=True, pad=True, rank=1, world_size=2)
    assert {len(latents) for latents, _, _ in padded} == {4}
    real = [
        i
        for rank in range(2)
        for latents, _, valid in dataset.loader(batch_size=4, bucket_by_shape=True, pad=True, rank=rank, world_size=2)
        for i in ids_of(latents[valid])
    ]
    assert sorted(real) == list(range(90))
    assert dataset.loader(batch_size=8, bucket_by_shape=True, drop_last=True).num_samples == 72
    first = dataset.loader(batch_size=8, bucket_by_shape=True)
    expected = [ids_of(latents) for latents, _ in first]
    second = dataset.loader(batch_size=8, bucket_by_shape=True)
    second.load_state_dict(second.state_dict() | {"position": 5})
    assert [ids_of(latents) for latents, _ in second] == expected[5:]


def test_mixed_shapes_are_refused_before_any_batch(mixed_shapes: Path) -> None:
    dataset = LatentDataset(mixed_shapes)
    assert dataset.latent_shape is None
    with pytest.raises(LoaderError, match="several shapes: pass bucket_by_shape=True, or a transform to one size"):
        dataset.loader(batch_size=8)
    assert dataset[1][0].shape == (12, 4, 6)
    assert [latent.shape[1:] for latent, _ in dataset][:3] == [(4, 4), (4, 6), (6, 4)]


def test_a_transform_may_bring_samples_to_one_size(mixed_shapes: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(mixed_shapes, transform=lambda latent: latent[:, :4, :4])
    batches = list(dataset.loader(batch_size=9))
    assert {tuple(latents.shape) for latents, _ in batches} == {(9, 12, 4, 4)}
    assert sorted(i for latents, _ in batches for i in ids_of(latents)) == list(range(90))
    forgetful = LatentDataset(mixed_shapes, transform=lambda latent: latent)
    with pytest.raises(LoaderError, match=r"latents of several shapes, \(12, 4, 4\) and \(12, 4, 6\)"):
        next(iter(forgetful.loader(batch_size=9)))
    # Or keep the shapes apart: batches of one stored shape each.
    for latents, _ in forgetful.loader(batch_size=9, bucket_by_shape=True):
        assert len(latents) <= 9
        assert tuple(latents.shape[2:]) in {(4, 4), (4, 6), (6, 4)}


def test_our_random_crop_is_such_a_transform(mixed_shapes: Path) -> None:
    from walloc_data.transforms import RandomCrop

    def batches(num_workers: int) -> list[torch.Tensor]:
        dataset = LatentDataset(mixed_shapes, shuffle=True, transform=RandomCrop(3))
        return [latents for latents, _ in dataset.loader(batch_size=30, num_workers=num_workers)]

    here, there = batches(0), batches(1)
    assert {(tuple(latents.shape), latents.dtype) for latents in here} == {((30, 12, 3, 3), torch.int8)}
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def _noisy(latent: torch.Tensor) -> torch.Tensor:
    return latent + torch.randint(0, 3, latent.shape, dtype=torch.int8)


def test_random_transforms_repeat_for_any_workers_and_leave_the_generator_alone(hundred: Path) -> None:
    torch.manual_seed(0)
    expected_draw = torch.rand(1)
    torch.manual_seed(0)

    def batches(num_workers: int) -> list[list[torch.Tensor]]:
        dataset = LatentDataset(hundred, shuffle=True, transform=_noisy)
        loader = dataset.loader(batch_size=20, num_workers=num_workers)
        return [[latents for latents, _ in loader] for _ in range(2)]

    here, there = batches(0), batches(1)
    assert torch.equal(torch.rand(1), expected_draw)
    for epoch in range(2):
        assert all(torch.equal(a, b) for a, b in zip(here[epoch], there[epoch], strict=True))
    by_value = [{tuple(x.flatten().tolist()) for batch in epoch for x in batch} for epoch in here]
    assert not by_value[0] & by_value[1]  # a new draw each epoch


@pytest.mark.parametrize("cache", ["shards", "array"])
def test_mirrored_latents_come_half_of_the_time(
    mirrored: Path, expected_latent: Callable[..., np.ndarray], cache: str
) -> None:
    dataset = LatentDataset(mirrored, shuffle=True, mirror=True, cache=cache)
    loader = dataset.loader(batch_size=12)
    flags: dict[int, list[bool]] = {i: [] for i in range(60)}
    for _ in range(10):
        for latents, labels in loader:
            for latent, label in zip(latents, labels.tolist(), strict=True):
                index, flag = int(latent[0, 0, 0]), bool(latent[0, 1, 0])
                assert np.array_equal(latent, expected_latent(index, (4, 4), mirror=flag))
                assert label == index % 5
                flags[index].append(flag)
    assert all(len(drawn) == 10 for drawn in flags.values())
    assert 230 < sum(map(sum, flags.values())) < 370
    assert len({tuple(drawn) for drawn in flags.values()}) > 50
    again = [latents for latents, _ in LatentDataset(mirrored, shuffle=True, mirror=True).loader(batch_size=12)]
    loader.set_epoch(0)
    assert all(torch.equal(a, b) for a, (b, _) in zip(again, loader, strict=True))


def test_mirroring_needs_stored_mirror_images(hundred: Path) -> None:
    with pytest.raises(LoaderError, match="no mirrored latents are stored: encode with mirror=True"):
        LatentDataset(hundred, mirror=True)


# Parts.


def test_subsets_come_from_the_index_alone(hundred: Path, tmp_path: Path, ids_of: Ids) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "walloc.json").write_bytes((hundred / "walloc.json").read_bytes())
    (tmp_path / "index" / "train.parquet").write_bytes((hundred / "index" / "train.parquet").read_bytes())
    dataset = LatentDataset(tmp_path)  # no shard is there
    part = dataset.subset(classes=["class1", 3], where=[("source_index", ">=", 50), ("height", "==", 32)])
    assert len(part) == 20
    assert set(part.labels.tolist()) == {1, 3}
    assert part.index["source_index"].min() == 51
    assert len(part.subset(classes=[3]).subset(where=[("source_index", "in", {53, 58, 0})])) == 2


def test_a_subset_loads_its_samples_and_no_others(hundred: Path, ids_of: Ids) -> None:
    for window_shards in (None, 2):
        dataset = LatentDataset(hundred, shuffle=True, window_shards=window_shards)
        part = dataset.subset(classes=[2])
        loader = part.loader(batch_size=6, num_workers=1)
        for _ in range(2):
            ids = [i for latents, _ in loader for i in ids_of(latents)]
            assert sorted(ids) == list(range(2, 100, 5))
            assert ids != sorted(ids)
    assert ids_of(part[3][0][None]) == [17]
    assert len(dataset) == 100


def test_fractions_nest_and_repeat(hundred: Path) -> None:
    dataset = LatentDataset(hundred)
    tenth, half = (set(dataset.subset(fraction=f).index["source_index"].tolist()) for f in (0.1, 0.5))
    assert (len(tenth), len(half)) == (10, 50)
    assert tenth < half
    assert tenth != set(dataset.subset(fraction=0.1, seed=1).index["source_index"].tolist())
    assert tenth == set(dataset.subset(fraction=0.1).index["source_index"].tolist())


def test_subsets_have_identities_of_their_own(hundred: Path) -> None:
    dataset = LatentDataset(hundred)
    parts = [dataset.subset(fraction=0.5), dataset.subset(fraction=0.5, seed=1), dataset.subset(classes=[1])]
    assert len({part.identity for part in [dataset, *parts]}) == 4
    assert dataset.subset(classes=[1]).identity == dataset.subset(where=[("label", "==", 1)]).identity


def test_what_cannot_be_chosen_by_is_named(hundred: Path) -> None:
    dataset = LatentDataset(hundred)
    with pytest.raises(LoaderError, match="no class 'dog': the data set has 5 classes"):
        dataset.subset(classes=["dog"])
    with pytest.raises(LoaderError, match=r"no column 'colour' in its index: version 1"):
        dataset.subset(where=[("colour", ">", 0)])
    with pytest.raises(LoaderError, match="no comparison '~'"):
        dataset.subset(where=[("label", "~", 0)])  # type: ignore[list-item]
    with pytest.raises(LoaderError, match=r"fraction must be in \(0, 1\], not 0"):
        dataset.subset(fraction=0)


def test_class_balanced_draws_are_equal_for_unequal_classes(make_dataset: Make, tmp_path: Path, ids_of: Ids) -> None:
    make_dataset(tmp_path / "a", num_samples=100)
    dataset = LatentDataset(tmp_path / "a", shuffle=True)
    unequal = dataset.subset(where=[("source_index", "not in", set(range(0, 100, 5)) - {0, 5})])
    assert Counter(unequal.labels.tolist()) == {0: 2, 1: 20, 2: 20, 3: 20, 4: 20}
    loader = unequal.loader(batch_size=10, class_balanced=True, num_workers=1)
    drawn: Counter[int] = Counter()
    for _ in range(5):
        labels = [label for _, batch in loader for label in batch.tolist()]
        assert sorted(Counter(labels).values()) == [16, 16, 16, 17, 17]  # 82 draws an epoch
        drawn.update(i for latents, _ in unequal.loader(batch_size=10, class_balanced=True) for i in ids_of(latents))
    expected = [ids_of(latents) for latents, _ in unequal.loader(batch_size=10, class_balanced=True)]
    resumed = unequal.loader(batch_size=10, class_balanced=True)
    resumed.load_state_dict(resumed.state_dict() | {"position": 4})
    assert [ids_of(latents) for latents, _ in resumed] == expected[4:]


def test_unlabelled_splits_give_minus_one(make_dataset: Make, tmp_path: Path) -> None:
    make_dataset(tmp_path, num_samples=10, num_classes=None)
    dataset = LatentDataset(tmp_path)
    assert dataset[0][1] == -1
    assert dataset.num_classes is None
    assert next(iter(dataset.loader(batch_size=10)))[1].tolist() == [-1] * 10
    with pytest.raises(LoaderError, match="class_balanced needs labels"):
        dataset.loader(batch_size=2, class_balanced=True)


# Mixtures.


def test_a_mixture_holds_its_weights_exactly_and_resumes(make_dataset: Make, tmp_path: Path, hundred: Path) -> None:
    make_dataset(tmp_path / "b", num_samples=40, seed=1)
    a, b = LatentDataset(hundred), LatentDataset(tmp_path / "b")

    def loader(num_workers: int = 0) -> object:
        mixture = LatentMixture([a, b], weights=[1, 3], num_samples=80, seed=2)
        return mixture.loader(batch_size=8, num_workers=num_workers)

    stored = {
        tuple(latent.flatten().tolist()): (name, i)
        for name, d in (("a", a), ("b", b))
        for i, (latent, _) in enumerate(d)
    }
    epochs = []
    first = loader()
    for _ in range(10):
        epochs.append([[stored[tuple(x.flatten().tolist())] for x in latents] for latents, _ in first])
    for epoch in epochs:
        assert Counter(name for batch in epoch for name, _ in batch) == {"a": 20, "b": 60}
    used = Counter(sample for epoch in epochs for batch in epoch for sample in batch)
    assert {used["a", i] for i in range(100)} == {2}  # 200 draws of 100
    assert {used["b", i] for i in range(40)} == {15}  # 600 draws of 40
    second = loader(num_workers=1)
    second.load_state_dict(first.state_dict() | {"epoch": 3, "position": 6})
    rest = [[stored[tuple(x.flatten().tolist())] for x in latents] for latents, _ in second]
    assert rest == epochs[3][6:]


def test_a_mixture_by_position_is_its_data_sets_one_after_another(
    make_dataset: Make, tmp_path: Path, hundred: Path
) -> None:
    make_dataset(tmp_path / "b", num_samples=40, seed=1)
    a, b = LatentDataset(hundred), LatentDataset(tmp_path / "b")
    mixture = LatentMixture([a, b])
    assert len(mixture) == 140
    assert torch.equal(mixture[99][0], a[99][0])
    assert torch.equal(mixture[100][0], b[0][0])
    assert mixture.labels.tolist() == a.labels.tolist() + b.labels.tolist()


def test_mixtures_that_make_no_sense_are_refused(make_dataset: Make, tmp_path: Path, hundred: Path) -> None:
    a = LatentDataset(hundred)
    make_dataset(tmp_path / "c", num_samples=10, num_classes=3)
    with pytest.raises(LoaderError, match="cannot be mixed: their class names differ"):
        LatentMixture([a, LatentDataset(tmp_path / "c")])
    with pytest.raises(LoaderError, match="2 data sets need as many weights"):
        LatentMixture([a, a], weights=[1])
    with pytest.raises(LoaderError, match="at least one data set"):
        LatentMixture([])


def test_draws_that_would_override_a_mixtures_shares_are_refused(make_dataset: Make, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", num_samples=30)
    a = LatentDataset(tmp_path / "a")
    parts = [a.subset(classes=[0]), a.subset(classes=[1, 2])]  # 6 and 12 samples
    shared = LatentMixture(parts, weights=[2, 1])
    for name, value in (("class_balanced", True), ("weights", np.ones(18)), ("bucket_by_shape", True)):
        with pytest.raises(
            LoaderError, match=rf"{name} draws from all .* \(\(12, 6\) of \(6, 12\) samples\): leave out"
        ):
            shared.loader(batch_size=3, **{name: value})
        with pytest.raises(LoaderError, match=f"{name} draws from all"):
            shared.batch_sampler(batch_size=3, **{name: value})
    balanced = LatentMixture(parts).loader(batch_size=3, class_balanced=True)  # it has no shares of its own
    assert torch.cat([labels for _, labels in balanced]).bincount().tolist() == [6, 6, 6]
