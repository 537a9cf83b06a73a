"""`batch_sampler` gives a plain DataLoader the exact, resumable order of our own loader."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from walloc_data import LatentDataset
from walloc_data.dataset import LatentBatchSampler
from walloc_data.errors import LoaderError, StateError
from walloc_data.transforms import RandomCrop

Ids = Callable[[torch.Tensor], list[int]]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def open_dataset(root: Path, **arguments: object) -> LatentDataset:
    return LatentDataset(root, shuffle=True, seed=5, transform=RandomCrop(3), **arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "persistent"), [(0, False), (2, True)])
@pytest.mark.parametrize("kind", ["plain", "class_balanced", "mirror"])
def test_a_plain_dataloader_gives_what_the_loader_gives(
    hundred: Path, mirrored: Path, num_workers: int, persistent: bool, kind: str
) -> None:
    dataset = open_dataset(mirrored, mirror=True) if kind == "mirror" else open_dataset(hundred)
    options = {"batch_size": 16, "class_balanced": kind == "class_balanced"}
    loader = DataLoader(
        dataset,
        batch_sampler=dataset.batch_sampler(**options),
        num_workers=num_workers,
        persistent_workers=persistent,
    )
    own = dataset.loader(**options)
    assert len(loader) == len(own)
    for _ in range(2):
        for (a, x), (b, y) in zip(loader, own, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(x, y)


def test_batches_of_one_shape_come_by_bucket(mixed_shapes: Path) -> None:
    dataset = LatentDataset(mixed_shapes, shuffle=True)
    loader = DataLoader(dataset, batch_sampler=dataset.batch_sampler(batch_size=8, bucket_by_shape=True))
    assert len({tuple(latents.shape[1:]) for latents, _ in loader}) == 3


def test_ranks_share_every_batch(hundred: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(hundred, shuffle=True)
    whole = [ids_of(latents) for latents, _ in dataset.loader(batch_size=8, drop_last=True)]
    parts = []
    for rank in range(2):
        sampler = dataset.batch_sampler(global_batch_size=8, drop_last=True, rank=rank, world_size=2)
        parts.append([ids_of(latents) for latents, _ in DataLoader(dataset, batch_sampler=sampler)])
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    with pytest.raises(LoaderError, match=r"100 samples do not fill batches of 8.*drop_last=True"):
        dataset.batch_sampler(batch_size=4, rank=0, world_size=2)
    with pytest.raises(LoaderError, match=r"global_batch_size 9 does not divide evenly among 2 ranks"):
        dataset.batch_sampler(global_batch_size=9, drop_last=True, rank=0, world_size=2)


def test_what_splits_batches_again_is_told_not_to(hundred: Path) -> None:
    dataset = LatentDataset(hundred)
    assert dataset.batch_sampler(batch_size=8).batch_size == 8
    sampler = dataset.batch_sampler(batch_size=4, drop_last=True, rank=1, world_size=2)
    assert sampler.global_batch_size == 8
    with pytest.raises(LoaderError, match=r"each of 2 ranks its slice .* pass rank=0, world_size=1"):
        _ = sampler.batch_size


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightning_is_told_not_to_make_the_sampler_anew(hundred: Path) -> None:
    """It does so to predict, and with whole batches on several devices."""
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.demos.boring_classes import BoringModel

    dataset = LatentDataset(hundred)
    loader = DataLoader(dataset, batch_sampler=dataset.batch_sampler(batch_size=8, rank=0, world_size=1))
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    with pytest.raises(LoaderError, match=r"use dataset\.loader.* Trainer\(use_distributed_sampler=False\)"):
        trainer.predict(BoringModel(), loader)


def take(loader: DataLoader, sampler: LatentBatchSampler, steps: int, ids_of: Ids) -> tuple[list[list[int]], dict]:
    """Some steps over ends of epochs, and the state after them."""

    def endless() -> Iterator[tuple[int, torch.Tensor]]:
        while True:
            for step, (latents, _) in enumerate(loader, start=sampler.position):
                yield step + 1, latents

    got, state = [], sampler.state_dict()
    for done, latents in endless():
        got.append(ids_of(latents))
        state = json.loads(json.dumps(sampler.state_dict(position=done)))
        if len(got) == steps:
            return got, state
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_several_resumes_within_one_epoch_and_over_its_end(hundred: Path, ids_of: Ids, num_workers: int) -> None:
    """13 batches an epoch; workers draw far ahead of the step that is saved."""

    def make() -> tuple[DataLoader, LatentBatchSampler]:
        dataset = LatentDataset(hundred, shuffle=True)
        sampler = dataset.batch_sampler(batch_size=8)
        prefetch = {"prefetch_factor": 3} if num_workers else {}
        return DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, **prefetch), sampler

    expected, _ = take(*make(), 26, ids_of)
    got, state = [], make()[1].state_dict()
    for steps in (2, 3, 1, 7, 4, 9):
        loader, sampler = make()
        sampler.load_state_dict(state)
        more, state = take(loader, sampler, steps, ids_of)
        got += more
    assert got == expected
    assert (state["epoch"], state["position"]) == (2, 0)
    own = LatentDataset(hundred, shuffle=True).loader(batch_size=8)
    own.load_state_dict(state | {"epoch": 1, "position": 12})  # states of either fit the other
    assert [ids_of(latents) for latents, _ in own] == expected[-1:]


def test_a_state_without_what_was_trained_on_is_refused(hundred: Path) -> None:
    dataset = LatentDataset(hundred)
    sampler = dataset.batch_sampler(batch_size=10)
    assert sampler.state_dict()["position"] == 0
    batches = iter(DataLoader(dataset, batch_sampler=sampler, num_workers=1, prefetch_factor=4))
    next(batches)
    with pytest.raises(LoaderError, match=r"draws ahead .* state_dict\(position=...\)"):
        sampler.state_dict()
    assert sampler.state_dict(position=1)["position"] == 1
    with pytest.raises(LoaderError, match=r"position 9 is not in \[0, \d\]"):
        sampler.state_dict(position=9)
    with pytest.raises(
        StateError,
        match=r"global batches of 5, but the loader has 10: pass global_batch_size=5 \(or batch_size=5\)$",
    ):
        sampler.load_state_dict(dataset.batch_sampler(batch_size=5).state_dict())


def test_epochs_follow_each_other_and_can_be_named(hundred: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(hundred, shuffle=True)
    sampler = dataset.batch_sampler(batch_size=10)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=1)
    first, second = ([ids_of(latents) for latents, _ in loader] for _ in range(2))
    assert first != second
    sampler.set_epoch(0)
    assert [ids_of(latents) for latents, _ in loader] == first
    sampler.load_state_dict(sampler.state_dict(position=10) | {"epoch": 1, "position": 4})
    sampler.set_epoch(1)  # what a training loop does at the top of each epoch: it keeps the position
    assert [ids_of(latents) for latents, _ in loader] == second[4:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_torchdata_saves_and_resumes_the_exact_order(hundred: Path, ids_of: Ids, num_workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader() -> DataLoader:
        dataset = LatentDataset(hundred, shuffle=True)
        sampler = dataset.batch_sampler(batch_size=10)
        return stateful.StatefulDataLoader(dataset, batch_sampler=sampler, num_workers=num_workers)

    whole = loader()
    expected = [ids_of(latents) for _ in range(2) for latents, _ in whole]
    first = loader()
    iterator = iter(first)
    got = [ids_of(next(iterator)[0]) for _ in range(3)]
    second = loader()
    second.load_state_dict(first.state_dict())
    iterator = iter(second)
    got += [ids_of(next(iterator)[0]) for _ in range(4)]
    third = loader()
    third.load_state_dict(second.state_dict())
    got += [ids_of(latents) for latents, _ in third]
    got += [ids_of(latents) for latents, _ in third]
    assert got == expected
