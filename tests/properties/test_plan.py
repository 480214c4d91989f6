"""Laws 1 and 2 as arithmetic: every sample once an epoch, and the same global batches whatever the world."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.plan import Plan

WORLDS = st.integers(1, 9)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any))
    return Plan(
        sizes=tuple(sizes),
        batch=draw(st.integers(1, 40)),
        window=draw(st.integers(1, 14)),
        seed=draw(st.integers(0, 2**64)),
        shuffle=draw(st.booleans()),
    )


def rows(array: np.ndarray) -> list[tuple[int, int]]:
    assert array.dtype == np.int64 and array.ndim == 2 and array.shape[1] == 2
    return [(shard, row) for shard, row in array.tolist()]


@settings(deadline=None)
@given(plan=plans(), world=WORLDS, epoch=st.integers(0, 5))
def test_every_epoch_yields_every_sample_exactly_once(plan: Plan, world: int, epoch: int) -> None:
    seen = Counter[tuple[int, int]]()
    for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
        for rank in range(world):
            seen.update(rows(plan.share(step, rank, world)))
    assert seen == Counter((shard, row) for shard, size in enumerate(plan.sizes) for row in range(size))


@settings(deadline=None)
@given(plan=plans(), world=WORLDS, step=st.integers(0, 200))
def test_the_union_of_all_shares_does_not_depend_on_the_world(plan: Plan, world: int, step: int) -> None:
    shares = [rows(plan.share(step, rank, world)) for rank in range(world)]
    assert [reference for share in shares for reference in share] == rows(plan.global_batch(step))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= plan.largest_share(world)


@settings(deadline=None)
@given(plan=plans(), world=WORLDS)
def test_the_largest_share_is_reached_in_a_full_step(plan: Plan, world: int) -> None:
    assert max(len(plan.share(0, rank, world)) for rank in range(world)) == plan.largest_share(world)


@settings(deadline=None)
@given(plan=plans(), steps=st.lists(st.integers(0, 60), min_size=1, max_size=10))
def test_resuming_is_asking_for_another_step(plan: Plan, steps: list[int]) -> None:
    """Steps asked for in any order, of an equal plan made later, are those of a run from the start."""
    run = [rows(plan.global_batch(step)) for step in range(max(steps) + 1)]
    later = Plan(sizes=plan.sizes, batch=plan.batch, window=plan.window, seed=plan.seed, shuffle=plan.shuffle)
    assert [rows(later.global_batch(step)) for step in steps] == [run[step] for step in steps]


@settings(deadline=None)
@given(plan=plans(), step=st.integers(0, 60))
def test_samples_before_a_step_are_counted_right(plan: Plan, step: int) -> None:
    assert plan.samples_before(step) == sum(len(plan.global_batch(number)) for number in range(step))


@settings(deadline=None)
@given(plan=plans(), epoch=st.integers(0, 3))
def test_only_the_last_step_of_an_epoch_is_short(plan: Plan, epoch: int) -> None:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    sizes = [len(plan.global_batch(step)) for step in steps]
    assert set(sizes[:-1]) <= {plan.batch}
    assert 0 < sizes[-1] <= plan.batch and {plan.epoch(step) for step in steps} == {epoch}
