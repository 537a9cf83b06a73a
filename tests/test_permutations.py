"""Keyed permutations: of any size, about equally likely, the same for ever, without memory."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walloc_data.errors import FormatError
from walloc_data.permutations import derive_key, permute, permute_source


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation_of_any_size(size: int, key: int) -> None:
    landed = permute(np.arange(size), size=size, key=key)
    assert np.array_equal(np.sort(landed), np.arange(size))


def test_permute_takes_a_size_and_a_key_for_each_position() -> None:
    positions, sizes = np.array([0, 1, 2, 0, 1]), np.array([3, 3, 3, 2, 2])
    keys = np.array([7, 7, 7, 9, 9], np.uint64)
    one_by_one = [permute(np.arange(3), size=3, key=7), permute(np.arange(2), size=2, key=9)]
    assert permute(positions, size=sizes, key=keys).tolist() == np.concatenate(one_by_one).tolist()


@pytest.mark.slow
def test_every_permutation_of_four_is_about_as_likely() -> None:
    seen = Counter(tuple(permute(np.arange(4), size=4, key=derive_key(7, k)).tolist()) for k in range(6000))
    assert len(seen) == 24
    chi_squared = sum((count - 250) ** 2 / 250 for count in seen.values())
    assert chi_squared < 60  # 23 degrees of freedom


def test_orders_of_epochs_are_the_same_for_ever() -> None:
    assert permute(np.arange(10), size=10, key=derive_key(0, 0)).tolist() == [3, 4, 0, 8, 1, 9, 2, 6, 7, 5]
    assert derive_key(1, 2, 3) == 1192217508140830997


@settings(deadline=None)
@given(num_items=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1))
def test_the_shuffle_is_a_permutation(num_items: int, seed: int) -> None:
    order = permute_source(np.arange(num_items), num_items=num_items, seed=seed)
    assert np.array_equal(np.sort(order), np.arange(num_items))


@settings(deadline=None)
@given(st.data())
def test_a_position_is_sent_to_the_same_place_whatever_it_is_asked_with(data: st.DataObject) -> None:
    num_items = data.draw(st.integers(1, 10**12))
    seed = data.draw(st.integers(0, 100))
    positions = data.draw(st.lists(st.integers(0, num_items - 1), min_size=1, max_size=20))
    together = permute_source(positions, num_items=num_items, seed=seed)
    alone = [int(permute_source([position], num_items=num_items, seed=seed)[0]) for position in positions]
    assert together.tolist() == alone
    assert all(0 <= index < num_items for index in alone)


def test_the_shuffle_is_the_same_in_every_version() -> None:
    # Data sets in the wild resume with it: a change here is a change of format.
    assert permute_source(range(8), num_items=8, seed=0).tolist() == [2, 5, 6, 1, 0, 4, 3, 7]
    assert permute_source([0, 1, 10**9], num_items=10**9 + 7, seed=3).tolist() == [916917536, 997740597, 859013266]


def test_the_shuffle_mixes_classes() -> None:
    # 10 sorted classes of 1000: a shard of 500 has about 50 of each.
    order = permute_source(np.arange(10_000), num_items=10_000, seed=0)
    for start in range(0, 10_000, 500):
        counts = np.bincount(order[start : start + 500] // 1000, minlength=10)
        assert counts.min() >= 20, counts
        assert counts.max() <= 90, counts


def test_another_seed_is_another_order() -> None:
    first, second = (permute_source(np.arange(1000), num_items=1000, seed=seed) for seed in (0, 1))
    assert (first == second).mean() < 0.02


def test_a_position_outside_the_source_is_refused() -> None:
    for position in (-1, 8):
        with pytest.raises(FormatError, match=r"positions must be in \[0, 8\)"):
            permute_source([position], num_items=8, seed=0)
