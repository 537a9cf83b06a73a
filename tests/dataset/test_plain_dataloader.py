"""A plain `torch.utils.data.DataLoader` over a data set draws as torch's users expect; or exactly, where asked to."""

import copy
import operator
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from walloc_data import LatentDataset
from walloc_data.dataset import LatentMixture
from walloc_data.errors import LoaderError
from walloc_data.transforms import RandomCrop

Ids = Callable[[torch.Tensor], list[int]]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class PlaceOfCrop(torch.nn.Module):
    """A real `RandomCrop` of a latent whose values are their places, so that the result tells where it was cut."""

    def __init__(self) -> None:
        super().__init__()
        self.crop = RandomCrop(4)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        places = torch.arange(100, dtype=torch.int8).reshape(1, 10, 10)
        return self.crop(places)[0, 0, 0]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., object]) -> Path:
    """64 samples with their mirror images."""
    root = tmp_path_factory.mktemp("wide")
    make_dataset(root, num_samples=64, shapes=((4, 6),), mirror=True)
    return root


def draws(loader: DataLoader, epochs: int) -> list[list[int]]:
    return [torch.cat([latents for latents, _ in loader]).tolist() for _ in range(epochs)]


WORKERS = pytest.mark.parametrize(("num_workers", "persistent"), [(0, False), (2, False), (2, True)])


@pytest.mark.slow
@WORKERS
def test_crops_are_new_in_every_epoch_and_differ_between_workers(
    wide: Path, num_workers: int, persistent: bool
) -> None:
    torch.manual_seed(1)
    dataset = LatentDataset(wide, transform=PlaceOfCrop())
    loader = DataLoader(dataset, batch_size=16, num_workers=num_workers, persistent_workers=persistent)
    epochs = draws(loader, 3)
    for epoch in epochs:
        assert len(set(epoch)) > 20  # of 49 places, 64 draws
        assert epoch[:16] != epoch[16:32]  # the second batch is the other worker's
    assert len({tuple(epoch) for epoch in epochs}) == 3
    one_sample = [epoch[5] for epoch in epochs]
    assert len(set(one_sample)) > 1


def test_the_global_seed_decides_as_for_any_data_set(wide: Path) -> None:
    dataset = LatentDataset(wide, transform=PlaceOfCrop(), mirror=True)
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(draws(DataLoader(dataset, batch_size=16, num_workers=1), 2))
    assert found[0] == found[1]


@WORKERS
def test_mirror_images_come_half_of_the_time(wide: Path, num_workers: int, persistent: bool) -> None:
    torch.manual_seed(0)
    dataset = LatentDataset(wide, mirror=True)
    loader = DataLoader(dataset, batch_size=16, num_workers=num_workers, persistent_workers=persistent)
    flags = [torch.cat([latents[:, 0, 0, 4] for latents, _ in loader]).bool().tolist() for _ in range(3)]
    assert 64 < sum(map(sum, flags)) < 128
    assert flags[0] != flags[1] != flags[2]


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_set_epoch_makes_them_exact_also_in_workers_that_run_already(wide: Path, context: str) -> None:
    def dataset() -> LatentDataset:
        return LatentDataset(wide, transform=PlaceOfCrop(), mirror=True, seed=3)

    local = dataset()
    expected = []
    for epoch in range(3):
        local.set_epoch(epoch)
        expected.append([int(local[i][0]) for i in range(64)])
    assert len({tuple(epoch) for epoch in expected}) == 3
    other = dataset()
    options = {"num_workers": 2 if context == "fork" else 1, "persistent_workers": True}
    loader = DataLoader(other, batch_size=16, multiprocessing_context=context, **options)
    torch.manual_seed(9)
    assert draws(loader, 1)[0] not in expected
    for epoch in (2, 0, 1):
        other.set_epoch(epoch)
        assert draws(loader, 1) == [expected[epoch]]


def test_exact_draws_are_those_of_our_own_loader(wide: Path) -> None:
    dataset = LatentDataset(wide, transform=PlaceOfCrop())
    loader = dataset.loader(batch_size=8)
    loader.set_epoch(4)
    dataset.set_epoch(4)
    assert [int(dataset[i][0]) for i in range(64)] == torch.cat([latents for latents, _ in loader]).tolist()


def test_a_part_and_a_copy_have_epochs_of_their_own(wide: Path) -> None:
    dataset = LatentDataset(wide, transform=PlaceOfCrop())
    part, clone, again = dataset.subset(classes=[1]), copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))
    dataset.set_epoch(1)

    def read(samples: Any) -> list[int]:
        return [int(place) for place, _ in samples[:32]]

    expected = read(dataset)
    for other in (part, clone, again):
        assert read(other) != read(other)  # no epoch was named: drawn anew
        other.set_epoch(2)
        assert read(other) == read(other)
    assert read(dataset) == expected
    assert read(clone) == read(again) != expected


def test_many_parts_take_no_descriptors(wide: Path) -> None:
    dataset = LatentDataset(wide)
    before = len(list(Path("/proc/self/fd").iterdir()))
    parts = [dataset.subset(classes=[i % 5]) for i in range(20)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before  # those of earlier tests may be closed meanwhile
    assert len(parts) == 20


def test_a_mixture_draws_and_is_exact_in_the_same_way(wide: Path) -> None:
    dataset = LatentDataset(wide, transform=PlaceOfCrop())
    mixture = LatentMixture([dataset.subset(classes=[0]), dataset.subset(classes=[1, 2])])
    first, second = ([int(latent) for latent, _ in mixture[:]] for _ in range(2))
    assert first != second
    mixture.set_epoch(3)
    first, second = ([int(latent) for latent, _ in mixture[:]] for _ in range(2))
    assert first == second
    # Weights are the mixture's own: a sampler of the DataLoader knows nothing of them.
    with pytest.warns(UserWarning, match="in stored order"):
        next(iter(DataLoader(mixture, batch_size=8)))


def test_reading_leaves_every_generator_as_it_was(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("seeds every device's generator")

    dataset = LatentDataset(wide, transform=PlaceOfCrop(), mirror=True, shuffle=True)
    monkeypatch.setattr(torch, "manual_seed", refuse)
    before = torch.get_rng_state()
    list(dataset.loader(batch_size=8))
    list(dataset)
    dataset.set_epoch(1)
    dataset[3]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_transform_that_fails_leaves_the_generator_as_it_was(wide: Path) -> None:
    def fail(latent: torch.Tensor) -> torch.Tensor:
        torch.rand(1)
        raise ValueError("no")

    dataset = LatentDataset(wide, transform=fail)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="no"):
        next(iter(dataset.loader(batch_size=8)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_dropout_on_a_gpu_does_not_repeat_itself(wide: Path) -> None:
    dataset = LatentDataset(wide, transform=RandomCrop(4))
    noise = [torch.rand(8, device="cuda").tolist() for _ in dataset.loader(batch_size=8)]
    assert len({tuple(values) for values in noise}) == 8


def test_a_shuffle_that_a_dataloader_does_not_do_is_said(wide: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(wide, shuffle=True)
    with pytest.warns(UserWarning, match=r"this data set in stored order despite its shuffle=True.*batch_sampler"):
        assert ids_of(next(iter(DataLoader(dataset, batch_size=16)))[0]) == list(range(16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch_size in (1, 2, 16):
            shuffled = DataLoader(LatentDataset(wide, shuffle=True), batch_size=batch_size, shuffle=True)
            assert sorted(i for latents, _ in shuffled for i in ids_of(latents)) == list(range(64))
            list(DataLoader(LatentDataset(wide), batch_size=batch_size))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_is_said_of_small_batches_and_of_one_rank_s_share_too(wide: Path, batch_size: int) -> None:
    dataset = LatentDataset(wide, shuffle=True)
    batches = DataLoader(dataset, batch_size=batch_size, sampler=range(1, 64, 2))
    with pytest.warns(UserWarning, match=r"this data set in stored order despite its shuffle=True") as said:
        list(batches)
    assert len(said) == 1


# Positions.


def test_positions_are_those_of_a_list(wide: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(wide)
    numbers = list(range(64))

    def id_of(sample: tuple[torch.Tensor, int]) -> int:
        return ids_of(sample[0][None])[0]

    for index in (0, 63, -1, -64, np.int64(5), torch.tensor(7), True):
        assert id_of(dataset[index]) == numbers[operator.index(index)]
    for piece in (slice(3, 6), slice(None, None, 20), slice(-2, None), slice(5, 2), slice(60, 99), slice(4, 0, -2)):
        assert [id_of(sample) for sample in dataset[piece]] == numbers[piece]
    for index in (64, -65, 2**70):
        with pytest.raises(IndexError, match=rf"sample {index} of 64"):
            dataset[index]
    assert [id_of(sample) for sample in Subset(dataset, [9, -1])] == [9, 63]


@pytest.mark.parametrize("index", ["000000048", 2.7, None, [1, 2], np.array([1, 2]), 2.0, (1,)], ids=repr)
def test_what_is_no_position_is_refused(wide: Path, index: object) -> None:
    with pytest.raises(TypeError, match=r"a sample's position is an integer or a slice, not"):
        LatentDataset(wide)[index]  # type: ignore[call-overload]


def test_other_whole_numbers_are_not_rounded_either(wide: Path) -> None:
    dataset = LatentDataset(wide)
    with pytest.raises(LoaderError, match=r"a class is a label or a name, not 2\.7"):
        dataset.subset(classes=[2.7])  # type: ignore[list-item]
    with pytest.raises(LoaderError, match=r"batch_size must be an integer of at least 1, not 8\.0"):
        dataset.loader(batch_size=8.0)  # type: ignore[arg-type]
    for sized in (dataset, dataset.loader(batch_size=8), dataset.batch_sampler(batch_size=8)):
        with pytest.raises(LoaderError, match=r"epoch must be an integer, not 1\.5"):
            sized.set_epoch(1.5)  # type: ignore[arg-type]
