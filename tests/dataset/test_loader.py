"""The global sequence of batches is a function of (seed, epoch, batch size), whoever loads it."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.dataset import LatentLoader
from walloc_data.errors import LoaderError, StateError

Ids = Callable[[torch.Tensor], list[int]]


# torch warns where there are more workers than cores; they must give the same sequence all the same.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def epochs(loader: LatentLoader, ids_of: Ids, count: int = 2) -> list[list[list[int]]]:
    return [[ids_of(batch[0]) for batch in loader] for _ in range(count)]


def test_latents_and_labels_are_the_stored_integers(hundred: Path, expected_latent: Callable[..., np.ndarray]) -> None:
    dataset = LatentDataset(hundred)
    assert len(dataset) == 100
    assert dataset.latent_shape == (12, 4, 4)
    assert dataset.class_names == ("class0", "class1", "class2", "class3", "class4")
    assert dataset.num_classes == 5
    for i in (0, 17, 99, -1):
        latent, label = dataset[i]
        assert latent.dtype == torch.int8
        assert torch.equal(latent, torch.from_numpy(expected_latent(i % 100, (4, 4))))
        assert label == i % 100 % 5
    latents, labels = next(iter(dataset.loader(batch_size=32)))
    assert (latents.dtype, labels.dtype) == (torch.int8, torch.int64)
    assert torch.equal(latents, torch.from_numpy(np.stack([expected_latent(i, (4, 4)) for i in range(32)])))
    assert labels.tolist() == [i % 5 for i in range(32)]
    with pytest.raises(IndexError, match=r"sample .* of 100"):
        dataset[100]


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["shards", "array"])
@pytest.mark.parametrize("window_shards", [None, 2])
def test_the_sequence_does_not_depend_on_workers_or_ranks(
    hundred: Path, ids_of: Ids, cache: str, window_shards: int | None
) -> None:
    def dataset() -> LatentDataset:
        return LatentDataset(hundred, shuffle=True, seed=5, cache=cache, window_shards=window_shards)

    expected = epochs(dataset().loader(batch_size=8), ids_of)
    assert expected[0] != expected[1]
    for epoch in expected:
        assert sorted(flat(epoch)) == list(range(100))
    assert epochs(dataset().loader(batch_size=8, num_workers=2), ids_of) == expected
    for world_size in (2, 4):
        parts = [
            epochs(dataset().loader(global_batch_size=8, rank=rank, world_size=world_size, pad=True), ids_of)
            for rank in range(world_size)
        ]
        joined = [[flat(slices) for slices in zip(*ranks, strict=True)] for ranks in zip(*parts, strict=True)]
        # The last batch of 4 is padded to 8 with the first samples of the epoch.
        for got, wanted in zip(joined, expected, strict=True):
            assert got[:-1] == wanted[:-1]
            assert got[-1] == wanted[-1] + wanted[0][:4]


def test_eight_workers_give_the_same_sequence(hundred: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(hundred, shuffle=True)
    assert epochs(dataset.loader(batch_size=8, num_workers=8), ids_of, 1) == epochs(
        dataset.loader(batch_size=8), ids_of, 1
    )


@pytest.mark.slow
def test_workers_that_are_spawned_read_the_same(hundred: Path, ids_of: Ids, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = LatentDataset(hundred, shuffle=True, cache="array")
    expected = epochs(dataset.loader(batch_size=8), ids_of, 1)
    loader = dataset.loader(batch_size=8, num_workers=1)
    loader._batches.multiprocessing_context = "spawn"
    assert epochs(loader, ids_of, 1) == expected


def test_iterating_the_data_set_follows_the_same_order(hundred: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(hundred, shuffle=True)
    for epoch in epochs(dataset.loader(batch_size=10), ids_of):
        assert [ids_of(latent[None])[0] for latent, _ in dataset] == flat(epoch)


def test_decoding_threads_change_nothing(hundred: Path) -> None:
    one, many = (LatentDataset(hundred, shuffle=True, num_threads=n) for n in (1, 3))
    for (a, _), (b, _) in zip(one.loader(batch_size=16), many.loader(batch_size=16), strict=True):
        assert torch.equal(a, b)


def test_workers_may_be_forked_after_threads_have_decoded(hundred: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(hundred, num_threads=2)
    first = [ids_of(latents) for latents, _ in dataset.loader(batch_size=16)]
    assert [ids_of(latents) for latents, _ in dataset.loader(batch_size=16, num_workers=1)] == first


def test_drop_last_leaves_out_what_does_not_fill_a_batch(hundred: Path, ids_of: Ids) -> None:
    loader = LatentDataset(hundred, shuffle=True).loader(batch_size=32, drop_last=True)
    assert (len(loader), loader.num_samples) == (3, 96)
    first, second = epochs(loader, ids_of)
    assert [len(batch) for batch in first] == [32, 32, 32]
    assert set(flat(first)) != set(flat(second))  # others are left out next time


def test_a_mask_makes_padded_evaluation_exact(hundred: Path, ids_of: Ids) -> None:
    dataset = LatentDataset(hundred)
    exact = sum(float(latents.float().sum()) for latents, _ in dataset.loader(batch_size=7))
    total, count = 0.0, 0
    for rank in range(4):
        for latents, labels, valid in dataset.loader(batch_size=6, pad=True, rank=rank, world_size=4):
            assert len(latents) == len(labels) == len(valid) == 6
            total += float(latents[valid].float().sum())
            count += int(valid.sum())
    assert (total, count) == (exact, 100)


def test_padding_goes_round_a_data_set_smaller_than_a_batch(hundred: Path, ids_of: Ids) -> None:
    tiny = LatentDataset(hundred).subset(where=[("source_index", "<", 3)])
    [(latents, _, valid)] = list(tiny.loader(batch_size=8, pad=True))
    assert ids_of(latents) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert valid.tolist() == [True] * 3 + [False] * 5


def test_unequal_batches_between_ranks_are_refused(hundred: Path) -> None:
    dataset = LatentDataset(hundred)
    with pytest.raises(
        LoaderError, match=r"100 samples do not fill batches of 8.*drop_last=True to train, pad=True to"
    ):
        dataset.loader(batch_size=4, rank=0, world_size=2)
    assert len(dataset.loader(batch_size=5, rank=0, world_size=2)) == 10
    with pytest.raises(LoaderError, match=r"global_batch_size 9 does not divide evenly among 2 ranks"):
        dataset.loader(global_batch_size=9, rank=0, world_size=2)
    with pytest.raises(LoaderError, match="cannot be combined"):
        dataset.loader(batch_size=8, drop_last=True, pad=True)
    with pytest.raises(LoaderError, match=r"rank 2 is not in \[0, 2\)"):
        dataset.loader(batch_size=8, rank=2, world_size=2)


# Resume.


def collect(loader: LatentLoader, ids_of: Ids, batches: int) -> list[list[int]]:
    """The next batches, over ends of epochs."""

    def endless() -> Iterator[list[int]]:
        while True:
            for batch in loader:
                yield ids_of(batch[0])

    stream = endless()
    return [next(stream) for _ in range(batches)]


@pytest.mark.slow
@pytest.mark.parametrize("done", [0, 1, 6, 12, 13, 14, 20, 26], ids=lambda done: f"after_{done}")
def test_resuming_gives_exactly_what_was_left(hundred: Path, ids_of: Ids, done: int) -> None:
    """13 batches an epoch: start, middle, before and after the last batch, second epoch, its end."""

    def loader(num_workers: int) -> LatentLoader:
        return LatentDataset(hundred, shuffle=True, seed=9).loader(batch_size=8, num_workers=num_workers)

    expected = collect(loader(0), ids_of, 30)
    before = loader(0)
    first = collect(before, ids_of, done)
    state = json.loads(json.dumps(before.state_dict()))
    assert (state["epoch"], state["position"]) == divmod(done, 13)
    after = loader(2 if done == 6 else 0)
    after.load_state_dict(state)
    assert after.state_dict() == state
    assert first + collect(after, ids_of, 30 - done) == expected


def test_a_second_resume_goes_on_from_the_first(hundred: Path, ids_of: Ids) -> None:
    def loader(**ranks: int) -> LatentLoader:
        return LatentDataset(hundred, shuffle=True).loader(batch_size=8, drop_last=True, **ranks)

    expected = collect(loader(), ids_of, 24)
    state, got = loader().state_dict(), []
    for steps in (5, 4, 3, 12):
        resumed = loader()
        resumed.load_state_dict(state)
        got += collect(resumed, ids_of, steps)
        state = resumed.state_dict()
    assert got == expected


def test_a_state_loads_under_another_number_of_ranks_and_workers(hundred: Path, ids_of: Ids) -> None:
    def loader(rank: int, world_size: int, num_workers: int = 0) -> LatentLoader:
        dataset = LatentDataset(hundred, shuffle=True)
        return dataset.loader(
            global_batch_size=8, drop_last=True, rank=rank, world_size=world_size, num_workers=num_workers
        )

    def gather(state: dict | None, world_size: int, batches: int, num_workers: int = 0) -> tuple[list[list[int]], dict]:
        parts, states = [], []
        for rank in range(world_size):
            part = loader(rank, world_size, num_workers)
            if state is not None:
                part.load_state_dict(state)
            parts.append(collect(part, ids_of, batches))
            states.append(part.state_dict())
        assert all(other == states[0] for other in states)
        return [flat(slices) for slices in zip(*parts, strict=True)], states[0]

    expected = collect(loader(0, 1), ids_of, 20)
    first, state = gather(None, 4, 7)
    second, state = gather(state, 1, 3, num_workers=1)
    third, _ = gather(state, 2, 10)
    assert first + second + third == expected


def test_prefetched_batches_do_not_count_as_done(hundred: Path, ids_of: Ids) -> None:
    loader = LatentDataset(hundred, shuffle=True).loader(batch_size=8, num_workers=2, prefetch_batches=4)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    assert loader.state_dict()["position"] == 3


def test_naming_the_resumed_epoch_keeps_its_position(hundred: Path, ids_of: Ids) -> None:
    loader = LatentDataset(hundred, shuffle=True).loader(batch_size=8)
    state = loader.state_dict() | {"epoch": 4, "position": 10}
    loader.load_state_dict(state)
    loader.set_epoch(4)  # what a training loop does at the top of each epoch
    assert len(list(loader)) == 3
    loader.set_epoch(5)
    assert len(list(loader)) == 13
    loader.set_epoch(4)
    assert len(list(loader)) == 13


@pytest.mark.parametrize("how", ["state", "epoch"])
def test_a_pass_does_not_go_on_after_a_state_or_an_epoch_was_set(hundred: Path, ids_of: Ids, how: str) -> None:
    loader = LatentDataset(hundred, shuffle=True).loader(batch_size=8)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict() | {"position": 1}
    if how == "state":
        loader.load_state_dict(state)
    else:
        loader.set_epoch(7)
    with pytest.raises(LoaderError, match="the epoch or the state of this loader was set during this iteration"):
        next(iterator)
    assert (loader.epoch, loader.position) == ((0, 1) if how == "state" else (7, 0))
    assert len(list(loader)) == (12 if how == "state" else 13)


def test_a_pass_left_early_counts_as_begun(hundred: Path, ids_of: Ids) -> None:
    loader = LatentDataset(hundred, shuffle=True).loader(batch_size=8)
    first = ids_of(next(iter(loader))[0])
    assert loader.state_dict()["position"] == 1
    second = ids_of(next(iter(loader))[0])
    assert first != second
    assert loader.state_dict()["epoch"] == 1


def test_states_of_something_else_are_refused_by_name(hundred: Path, mirrored: Path) -> None:
    dataset = LatentDataset(hundred, shuffle=True)
    loader = dataset.loader(batch_size=8)
    state = loader.state_dict()
    others = {
        "identity": LatentDataset(mirrored, shuffle=True).loader(batch_size=8),
        "order": LatentDataset(hundred).loader(batch_size=8),
        "seed": LatentDataset(hundred, shuffle=True, seed=1).loader(batch_size=8),
        "num_batches": dataset.loader(batch_size=8, drop_last=True),
    }
    for name, other in others.items():
        with pytest.raises(StateError, match=f"the state has {name} "):
            other.load_state_dict(state)
    with pytest.raises(StateError, match=r"identity .*another data set or subset"):
        dataset.subset(classes=[1]).loader(batch_size=8).load_state_dict(state)
    with pytest.raises(StateError, match="not a loader state: no 'global_batch_size'"):
        loader.load_state_dict({"epoch": 1})
    with pytest.raises(StateError, match="position 99 is beyond the last of 13 batches"):
        loader.load_state_dict(state | {"position": 99})
    with pytest.raises(StateError, match="epoch must be an integer of at least 0, not -1"):
        loader.load_state_dict(state | {"epoch": -1})


def test_a_plain_dataloader_takes_the_data_set(hundred: Path, ids_of: Ids) -> None:
    loader = torch.utils.data.DataLoader(LatentDataset(hundred), batch_size=30, num_workers=2)
    batches = list(loader)
    assert flat(ids_of(latents) for latents, _ in batches) == list(range(100))
    assert torch.cat([labels for _, labels in batches]).tolist() == [i % 5 for i in range(100)]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_torchdata_resumes_over_the_data_set(hundred: Path, ids_of: Ids) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader() -> torch.utils.data.DataLoader:
        generator = torch.Generator().manual_seed(0)
        dataset = LatentDataset(hundred)
        return stateful.StatefulDataLoader(dataset, batch_size=10, shuffle=True, num_workers=1, generator=generator)

    expected = [ids_of(latents) for latents, _ in loader()]
    first = loader()
    iterator = iter(first)
    got = [ids_of(next(iterator)[0]) for _ in range(4)]
    second = loader()
    second.load_state_dict(first.state_dict())
    got += [ids_of(latents) for latents, _ in second]
    assert got == expected
