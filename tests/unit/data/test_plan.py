from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pipeline.data import plan as module
from pipeline.data.plan import Plan, derive, plan_of

SIZES = (5, 0, 3, 8, 1)
GOLDEN = [[(2, 1), (2, 2), (0, 0), (2, 0)], [(0, 2), (2, 3), (0, 1), (1, 0)], [(1, 1)]]


def rows(array: np.ndarray) -> list[tuple[int, int]]:
    return [(shard, row) for shard, row in array.tolist()]


def test_a_seed_has_a_purpose() -> None:
    assert derive(1, "dropout", 3, 0) == derive(1, "dropout", 3, 0) == 11450728614410585715
    assert len({derive(1, "a"), derive(2, "a"), derive(1, "b"), derive("1", "a", 0)}) == 4
    assert 0 <= derive("anything") < 2**64


def test_without_shuffling_samples_come_as_they_are_stored() -> None:
    plan = plan_of(SIZES, batch=4, window=2, shuffle=False)
    order = [reference for step in range(plan.steps_per_epoch) for reference in rows(plan.global_batch(step))]
    assert order == [(shard, row) for shard, size in enumerate(SIZES) for row in range(size)]
    assert rows(plan.global_batch(plan.steps_per_epoch)) == order[:4]


def test_an_order_is_kept_for_ever() -> None:
    """A run that was begun with an older version must be able to go on: this order may not change."""
    plan = plan_of((3, 2, 4), batch=4, window=2, seed=7)
    assert [rows(plan.global_batch(step)) for step in range(3)] == GOLDEN


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(rows(Plan(sizes=(40, 40), batch=80, seed=seed).global_batch(step)))
        for seed in range(3)
        for step in range(3)
    }
    assert len(orders) == 9


def test_equal_plans_give_equal_orders() -> None:
    one, other = (plan_of(SIZES, batch=4, seed=5) for _ in range(2))
    assert all(np.array_equal(one.global_batch(step), other.global_batch(step)) for step in range(20))


def test_a_batch_opens_no_more_shards_than_its_window() -> None:
    plan = plan_of([10] * 30, batch=10, window=3)
    for step in range(plan.steps_per_epoch):
        first = step * 10 // 30
        window = {shard for number in range(first * 3, first * 3 + 3) for shard, _ in rows(plan.global_batch(number))}
        assert len(window) == 3
        assert {shard for shard, _ in rows(plan.global_batch(step))} <= window


def test_a_large_window_mixes_a_sorted_corpus_well() -> None:
    """100 classes, one a shard: a batch of 100 holds about 63 of them where all is mixed."""
    distinct = [
        len({shard for shard, _ in rows(plan_of([100] * 100, batch=100, window=window).global_batch(3))})
        for window in (1, 10, 100)
    ]
    assert distinct[0] <= 2 and distinct[1] <= 20 and 50 <= distinct[2] <= 76


def test_shares_differ_by_one_sample_at_most() -> None:
    plan = plan_of([100], batch=10)
    sizes = [len(plan.share(0, rank, 4)) for rank in range(4)]
    assert sorted(sizes) == [2, 2, 3, 3]
    assert max(sizes) == plan.largest_share(4) == 3
    assert [len(plan.share(0, rank, 16)) for rank in range(16)].count(1) == 10
    assert plan.largest_share(16) == 1


def test_a_batch_larger_than_the_corpus_is_the_corpus() -> None:
    plan = plan_of(SIZES, batch=1000)
    assert plan.steps_per_epoch == 1 and len(plan.global_batch(4)) == 17
    assert plan.largest_share(2) == 9
    assert [plan.samples_before(step) for step in range(3)] == [0, 17, 34]


def test_samples_before_a_step_are_those_of_the_steps_before() -> None:
    plan = plan_of(SIZES, batch=4)
    counted = 0
    for step in range(3 * plan.steps_per_epoch):
        assert plan.samples_before(step) == counted
        assert plan.epoch(step) == step // 5
        counted += len(plan.global_batch(step))


@pytest.mark.parametrize(
    "given", [{"sizes": ()}, {"sizes": (0, 0)}, {"sizes": (3, -1)}, {"batch": 0}, {"window": 0}, {"batch": -3}]
)
def test_a_plan_that_cannot_be_is_refused(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a plan needs a sample"):
        Plan(**{"sizes": (3, 4), "batch": 2, "window": 1, **given})


def test_a_million_shards_and_thousands_of_ranks() -> None:
    """What is kept is one epoch's order of shards and some windows; a step looks at its own windows alone."""
    world, batch, window = 4096, 8192, 64
    sizes = np.random.default_rng(0).integers(0, 6, 1_000_000)
    plan = plan_of(sizes.tolist(), batch=batch, window=window)
    assert plan.num_samples == sizes.sum()
    touched = Counter[str]()
    for cache in (module._window_starts, module._window_order):
        cache.cache_clear()
    last = plan.steps_per_epoch - 1
    for step in (0, 1, 7, last // 2, last, last + 1):
        shares = [plan.share(step, rank, world) for rank in (0, 1, world // 2, world - 1)]
        assert all(len(share) <= plan.largest_share(world) == 2 for share in shares)
        assert all(0 <= row < sizes[shard] for share in shares for shard, row in rows(share))
        touched["shares"] += len(shares)
    starts, orders = module._window_starts.cache_info(), module._window_order.cache_info()
    assert starts.misses == 2  # epochs
    assert orders.misses <= 2 * touched["shares"] and orders.currsize <= 4
    whole = plan.global_batch(last)
    assert len(whole) == plan.num_samples - last * batch
    assert np.array_equal(np.concatenate([plan.share(last, rank, 5) for rank in range(5)]), whole)


def test_looking_into_a_cache_does_not_look_at_all_sizes() -> None:
    class Watched(tuple[int, ...]):
        def __hash__(self) -> int:
            raise AssertionError("all sizes were hashed")

        def __eq__(self, other: object) -> bool:
            raise AssertionError("all sizes were compared")

    plan = Plan(sizes=Watched(SIZES), batch=3)
    for step in range(12):
        plan.share(step, 0, 2)
