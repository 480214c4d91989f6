"""Laws 1 and 2 on disk: the stream yields what was written, each key once an epoch, from whatever step it starts."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contracts import Batch
from pipeline.data.stream import Stream
from tests.shards import LABEL, features, keys_of, label, pieces, sample, small_stream, write_shards

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=4)
BATCH, WINDOW = st.integers(1, 12), st.integers(1, 5)
MICRO = st.one_of(st.none(), st.integers(1, 5))


@contextmanager
def streams(sizes: list[int], world: int, **given: object) -> Iterator[list[Stream]]:
    """One stream a rank."""
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), [[sample(key) for key in keys] for keys in keys_of(sizes)])
        yield [small_stream(shards, rank=rank, world=world, **given) for rank in range(world)]


def keys_in(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def assert_as_written(batch: Batch) -> None:
    for key, sound, ids in zip(batch.keys, pieces(batch.inputs["sound"]), pieces(batch.targets["label"]), strict=True):
        assert np.array_equal(sound, features(key))
        assert [LABEL.vocabulary[place] for place in ids] == [label(key)]
    assert batch.num_targets == len(batch.keys)


def assert_placeholder(batch: Batch) -> None:
    assert batch.num_targets == 0
    assert batch.inputs["sound"].values.tolist() == [[0.0, 0.0, 0.0]]
    assert batch.targets["label"].values.tolist() == [-1]
    for field in (*batch.inputs.values(), *batch.targets.values()):
        assert field.lengths_B.tolist() == [1]


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, batch=BATCH, window=WINDOW, world=st.integers(1, 4), micro=MICRO, shuffle=st.booleans())
def test_every_key_comes_once_an_epoch_with_what_was_written(
    sizes: list[int], batch: int, window: int, world: int, micro: int | None, shuffle: bool
) -> None:
    with streams(sizes, world, batch=batch, window=window, micro_batch=micro, shuffle=shuffle) as ranks:
        steps = ranks[0].plan.steps_per_epoch
        seen = [Counter[str](), Counter[str]()]
        for stream in ranks:
            for step, batches in enumerate(stream.steps(0, 2 * steps)):
                seen[step // steps].update(keys_in(batches))
                for each in batches:
                    (assert_as_written if each.keys else assert_placeholder)(each)
    expected = Counter(key for keys in keys_of(sizes) for key in keys)
    assert seen == [expected, expected]


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, batch=BATCH, window=WINDOW, world=st.integers(1, 3), micro=MICRO)
def test_a_stream_that_starts_at_any_step_goes_on_as_the_undisturbed_one(
    sizes: list[int], batch: int, window: int, world: int, micro: int | None
) -> None:
    with streams(sizes, world, batch=batch, window=window, micro_batch=micro) as ranks:
        stop = 2 * ranks[0].plan.steps_per_epoch
        for stream in ranks:
            run = [[batch.keys for batch in batches] for batches in stream.steps(0, stop)]
            for start in range(stop + 1):
                resumed = [[batch.keys for batch in batches] for batches in stream.steps(start, stop)]
                assert resumed == run[start:]


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, batch=BATCH, world=st.integers(1, 5), micro=MICRO)
def test_ranks_agree_on_the_number_of_micro_steps_and_on_the_global_batch(
    sizes: list[int], batch: int, world: int, micro: int | None
) -> None:
    with streams(sizes, world, batch=batch, micro_batch=micro) as ranks, streams(sizes, 1, batch=batch) as alone:
        for step in range(2 * ranks[0].plan.steps_per_epoch):
            shares = [stream.step(step) for stream in ranks]
            assert {len(batches) for batches in shares} == {ranks[0].micro_steps}
            assert all(len(each.keys) <= (micro or batch) for batches in shares for each in batches)
            assert [key for batches in shares for key in keys_in(batches)] == keys_in(alone[0].step(step))
