"""Orders are permutations, uniform, pinned for ever, and cost no memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walloc_data.dataset.order import (
    FullShuffle,
    WeightedShuffle,
    WindowShuffle,
    coin_flips,
    shares,
)
from walloc_data.permutations import derive_key

GOLDEN_FULL = [3, 4, 0, 8, 1, 9, 2, 6, 7, 5]
GOLDEN_IMAGENET = [1088365, 123735, 969687, 218607]
GOLDEN_WINDOW = [6, 4, 3, 5, 7, 10, 8, 9, 11, 2, 0, 1]


@pytest.mark.slow
def test_every_sample_stands_everywhere_equally_often() -> None:
    epochs = np.stack([FullShuffle(50, seed=3).rows(epoch, 0, 50) for epoch in range(4000)])
    counts = np.stack([np.bincount(epochs[:, position], minlength=50) for position in range(50)])
    chi_squared = ((counts - 80) ** 2 / 80).sum()
    assert 2000 < chi_squared < 2900  # 49 x 49 degrees of freedom: 2401 +- 69


def test_the_shuffle_is_the_same_for_ever() -> None:
    """A saved state points into this order: changing it would give samples twice. Bump STATE_VERSION with it."""
    assert FullShuffle(10, seed=0).rows(0, 0, 10).tolist() == GOLDEN_FULL
    assert FullShuffle(1_281_167, seed=42).rows(89, 640_000, 640_004).tolist() == GOLDEN_IMAGENET
    assert WindowShuffle((3, 4, 5), seed=0, window_shards=2).rows(1, 0, 12).tolist() == GOLDEN_WINDOW


def test_epochs_and_seeds_give_different_orders() -> None:
    orders = {tuple(FullShuffle(100, seed=s).rows(e, 0, 100).tolist()) for s in range(10) for e in range(10)}
    assert len(orders) == 100
    assert derive_key(1, 0) != derive_key(0, 1)
    assert derive_key(1) != derive_key(1, 0)


def test_an_order_may_be_read_from_anywhere() -> None:
    for order in (
        FullShuffle(1000, seed=1),
        WindowShuffle((100, 0, 250, 50, 600), seed=1, window_shards=2),
        WeightedShuffle((10, 0, 90), (300, 0, 700), seed=1, name="test"),
    ):
        whole = order.rows(5, 0, 1000)
        pieces = [order.rows(5, start, min(1000, start + 77)) for start in range(0, 1000, 77)]
        assert np.array_equal(whole, np.concatenate(pieces))


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    window=st.integers(1, 5),
    epoch=st.integers(0, 9),
)
def test_a_windowed_epoch_holds_every_row_once(sizes: list[int], window: int, epoch: int) -> None:
    order = WindowShuffle(tuple(sizes), seed=0, window_shards=window)
    assert sorted(order.rows(epoch, 0, len(order)).tolist()) == list(range(sum(sizes)))


def test_windows_begin_with_one_shard_and_double() -> None:
    order = WindowShuffle((10,) * 40, seed=2, window_shards=8)
    shards = order.rows(0, 0, 400) // 10
    sizes = [1, 2, 4, 8, 8, 8, 8, 1]
    start = 0
    seen: list[int] = []
    for size in sizes:
        inside = np.unique(shards[start : start + 10 * size]).tolist()
        assert len(inside) == size
        seen += inside
        start += 10 * size
    assert sorted(seen) == list(range(40))
    assert seen != list(range(40))


def test_weighted_draws_hold_their_shares_and_use_all_rows_equally() -> None:
    order = WeightedShuffle((10, 1000), (50, 25), seed=0, name="test")
    epochs = [order.rows(epoch, 0, 75) for epoch in range(40)]
    for rows in epochs:
        assert (rows < 10).sum() == 50
    used = np.bincount(np.concatenate(epochs), minlength=1010)
    assert set(used[:10].tolist()) == {200}  # 40 epochs of 50 draws from 10 rows
    assert set(used[10:].tolist()) == {1}  # 40 epochs of 25 draws from 1000 rows: each exactly once


def test_shares_add_up() -> None:
    assert shares(100, [1, 1, 1]) == (34, 33, 33)
    assert shares(7, [0.5, 0.25, 0.25]) == (3, 2, 2)
    assert shares(10, [1, 0]) == (10, 0)


def test_coins_are_fair_and_depend_on_the_key() -> None:
    rows = np.arange(20_000)
    first, second = coin_flips(rows, key=1), coin_flips(rows, key=2)
    assert abs(first.mean() - 0.5) < 0.02
    assert abs((first == second).mean() - 0.5) < 0.02


def test_an_order_of_a_hundred_million_samples_keeps_no_list() -> None:
    order = FullShuffle(100_000_000, seed=0)
    rows = order.rows(3, 99_999_000, 100_000_000)
    assert len(np.unique(rows)) == 1000
    assert rows.max() > 90_000_000
