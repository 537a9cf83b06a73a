"""`batch_size` is of one rank, `global_batch_size` of all: exactly one of them says how large batches are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from walloc_data import LatentDataset
from walloc_data.errors import LoaderError, StateError

Ids = Callable[[torch.Tensor], list[int]]
KINDS = ["loader", "batch_sampler"]


@pytest.fixture
def dataset(hundred: Path) -> LatentDataset:
    return LatentDataset(hundred, shuffle=True, seed=5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_batch_size_is_what_one_rank_gets(dataset: LatentDataset, kind: str, world_size: int) -> None:
    for rank in range(world_size):
        made = getattr(dataset, kind)(batch_size=8, drop_last=True, rank=rank, world_size=world_size)
        assert made.global_batch_size == 8 * world_size
        assert len(made) == 100 // (8 * world_size)
        assert all(len(batch if kind == "batch_sampler" else batch[0]) == 8 for batch in made)


def test_a_loader_s_batch_size_is_of_its_rank(dataset: LatentDataset) -> None:
    loader = dataset.loader(global_batch_size=20, rank=1, world_size=4)
    assert (loader.batch_size, loader.global_batch_size, len(loader)) == (5, 20, 5)
    assert repr(loader).startswith("LatentLoader(100 samples in 5 batches of 20 (4 ranks x 5), order ")


def test_both_names_of_the_same_batch_give_the_same_samples(dataset: LatentDataset, ids_of: Ids) -> None:
    for rank in range(2):
        place = {"rank": rank, "world_size": 2}
        one = [ids_of(latents) for latents, _ in dataset.loader(batch_size=5, **place)]
        assert one == [ids_of(latents) for latents, _ in dataset.loader(global_batch_size=10, **place)]


def test_ranks_that_become_known_later_make_the_global_batch(
    dataset: LatentDataset, ids_of: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = dataset.loader(batch_size=5)
    assert (len(loader), loader.global_batch_size) == (20, 5)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (len(loader), loader.batch_size, loader.global_batch_size) == (10, 5, 10)
    whole = [ids_of(latents) for latents, _ in dataset.loader(batch_size=10, rank=0, world_size=1)]
    assert [ids_of(latents) for latents, _ in loader] == [batch[5:] for batch in whole]


def test_an_unknown_rank_is_no_error_before_the_first_batch(
    dataset: LatentDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = dataset.loader(batch_size=5)
    assert repr(loader).startswith("LatentLoader(batches of 5 a rank, order ")
    with pytest.raises(LoaderError, match="WORLD_SIZE is 2 but RANK is not set"):
        next(iter(loader))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, r", not batch_size=None and global_batch_size=None"),
        ({"batch_size": 8, "global_batch_size": 8}, r", not batch_size=8 and global_batch_size=8"),
        ({"batch_size": 0}, r"^batch_size must be an integer of at least 1, not 0$"),
        ({"batch_size": True}, r"^batch_size must be an integer of at least 1, not True$"),
        ({"global_batch_size": -4}, r"^global_batch_size must be an integer of at least 1, not -4$"),
        ({"global_batch_size": 8.0}, r"^global_batch_size must be an integer of at least 1, not 8\.0$"),
        ({"global_batch_size": 9}, r"global_batch_size 9 does not divide evenly among 2 ranks: pass a multiple of 2"),
    ],
)
def test_a_batch_size_that_cannot_be_is_one_clear_error(
    dataset: LatentDataset, kind: str, sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoaderError, match=message):
        getattr(dataset, kind)(**sizes, drop_last=True, rank=0, world_size=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_global_batch_names_both_and_the_remedy(dataset: LatentDataset, kind: str) -> None:
    make = getattr(dataset, kind)
    state = make(batch_size=4, drop_last=True, rank=0, world_size=2).state_dict()
    other = make(batch_size=4, drop_last=True, rank=0, world_size=4)
    with pytest.raises(
        StateError,
        match=r"^the state has global batches of 8 \(2 ranks x 4\), but the loader has 16 \(4 ranks x 4\): "
        r"pass global_batch_size=8 \(or batch_size=2\)$",
    ):
        other.load_state_dict(state)
    with pytest.raises(StateError, match=r"has 12 \(3 ranks x 4\): .*=8, on a number of ranks that divides it$"):
        make(batch_size=4, drop_last=True, rank=0, world_size=3).load_state_dict(state)
    with pytest.raises(StateError, match=r"has 4: .*load the state after torch.distributed.init_process_group$"):
        make(batch_size=4, drop_last=True).load_state_dict(state)
    make(global_batch_size=8, drop_last=True, rank=0, world_size=4).load_state_dict(state)  # the remedy
    make(batch_size=8, drop_last=True).load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_become_known_after_a_state_was_loaded_are_refused(
    dataset: LatentDataset, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = getattr(dataset, kind)(batch_size=5)
    made.load_state_dict(made.state_dict() | {"position": 3})
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StateError, match=r"loaded for batches of 5 .* are 2 ranks now, with batches of 10 \(2 ranks x"):
        next(iter(made))


def test_states_of_version_1_resume(dataset: LatentDataset, ids_of: Ids) -> None:
    """They called the global batch size `batch_size`, and knew nothing of ranks."""
    loader = dataset.loader(batch_size=8)
    state = loader.state_dict() | {"version": 1, "batch_size": 8, "position": 11}
    del state["global_batch_size"], state["world_size"]
    expected = [ids_of(latents) for latents, _ in dataset.loader(batch_size=8)]
    loader.load_state_dict(state)
    assert [ids_of(latents) for latents, _ in loader] == expected[11:]
    with pytest.raises(
        StateError, match=r"global batches of 8, but the loader has 4: pass global_batch_size=8 \(or batch_size=8\)"
    ):
        dataset.loader(batch_size=4).load_state_dict(state)
