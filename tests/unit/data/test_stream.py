from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.contracts import DataError, FieldInfo, InputError, Ragged, TooManyHolesError
from pipeline.data.manifest import ShardSet
from pipeline.data.stream import Stream, StreamField
from pipeline.data.tar import write_index, write_tar
from pipeline.modalities.audio import Audio
from pipeline.modalities.events import Events
from tests.shards import (
    FEATURES,
    LABEL,
    SOUND,
    features,
    keys_of,
    label,
    npy,
    pieces,
    sample,
    small_shards,
    small_stream,
    write_shards,
)


@dataclass
class Noise:
    """A Feed that adds noise and takes the last step away."""

    def augment(self, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (array + rng.normal(size=array.shape).astype(np.float32))[: max(1, len(array) - 1)]


def sound(**given: Any) -> StreamField:
    return StreamField(**{"name": "sound", "modality": Audio(mels=FEATURES), "info": SOUND, **given})


def by_key(stream: Stream, field: str = "sound", steps: int | None = None) -> dict[str, np.ndarray]:
    """What a stream's first epoch gives for each key."""
    given: dict[str, np.ndarray] = {}
    for batches in stream.steps(0, steps or stream.plan.steps_per_epoch):
        for batch in batches:
            ragged = {**batch.inputs, **batch.targets}[field]
            given |= dict(zip(batch.keys, pieces(ragged), strict=True)) if batch.keys else {}
    return given


def test_sequences_come_one_after_the_other_with_their_lengths(tmp_path: Path) -> None:
    stream = small_stream(small_shards(tmp_path, [3]), batch=3, shuffle=False)
    ((batch,),) = stream.steps(0, 1)
    keys = ["s0_0", "s0_1", "s0_2"]
    assert batch.keys == keys
    expected = [features(key) for key in keys]
    assert batch.inputs["sound"].lengths_B.tolist() == [len(array) for array in expected]
    assert np.array_equal(batch.inputs["sound"].values.numpy(), np.concatenate(expected))
    assert batch.inputs["sound"].values.dtype == torch.float32
    assert batch.targets["label"].values.tolist() == [LABEL.vocabulary.index(label(key)) for key in keys]
    assert batch.num_targets == 3


def test_what_has_statistics_is_normalised(tmp_path: Path) -> None:
    info = replace(SOUND, mean=(1.0, 0.0, -2.0), std=(2.0, 1.0, 0.5))
    given = by_key(small_stream(small_shards(tmp_path, [4]), inputs=[sound(info=info)]))
    for key, array in given.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, (features(key) - [1, 0, -2]) / [2, 1, 0.5], rtol=1e-6)


def test_integers_with_statistics_become_numbers_in_placeholders_too(tmp_path: Path) -> None:
    pixels = FieldInfo(dtype="uint8", shape=(2, 2), mean=(100.0, 50.0), std=(10.0, 5.0))
    array = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    samples = [(f"k{row}", {"sound": ("npy", npy(array)), "label": ("txt", b"a")}) for row in range(3)]
    shards = write_shards(tmp_path, [samples], fields={"sound": pixels, "label": LABEL})
    stream = small_stream(shards, batch=3, rank=1, world=2, micro_batch=1, inputs=[sound(info=pixels)])
    full, _ = stream.step(0)
    placeholder = small_stream(shards, batch=1, rank=0, world=2, inputs=[sound(info=pixels)]).step(0)[0]
    np.testing.assert_allclose(full.inputs["sound"].values.numpy(), (array - [100.0, 50.0]) / [10, 5], rtol=1e-6)
    assert placeholder.keys == () and placeholder.inputs["sound"].values.shape == (1, 2, 2)
    assert placeholder.inputs["sound"].values.dtype == full.inputs["sound"].values.dtype == torch.float32


def test_placeholders_of_numeric_targets_have_their_shape(tmp_path: Path) -> None:
    stream = small_stream(small_shards(tmp_path, [1]), world=2, targets=[sound()], inputs=[])
    assert stream.step(0)[0].targets["sound"].values.tolist() == [[-1.0] * FEATURES]


def test_augmentation_depends_on_seed_epoch_and_key_alone(tmp_path: Path) -> None:
    shards = small_shards(tmp_path, [5, 4])
    whole = by_key(small_stream(shards, inputs=[sound(feed=Noise())]))
    shared: dict[str, np.ndarray] = {}
    for rank in range(3):
        shared |= by_key(small_stream(shards, inputs=[sound(feed=Noise())], rank=rank, world=3, micro_batch=1, batch=7))
    assert whole.keys() == shared.keys() == {key for keys in keys_of([5, 4]) for key in keys}
    for key, array in whole.items():
        assert np.array_equal(array, shared[key])
        assert len(array) == max(1, len(features(key)) - 1) and not np.array_equal(array, features(key)[: len(array)])
    stream = small_stream(shards, inputs=[sound(feed=Noise())], batch=9)
    first, second = stream.step(0)[0], stream.step(1)[0]
    assert sorted(first.keys) == sorted(second.keys)
    assert first.inputs["sound"].values.sum() != second.inputs["sound"].values.sum()


def test_sequences_without_steps_are_sequences(tmp_path: Path) -> None:
    samples = [
        (key, {"sound": ("npy", npy(features(key, steps))), "label": ("txt", b"a")})
        for key, steps in (("x", 0), ("y", 2), ("z", 0))
    ]
    ((batch,),) = small_stream(write_shards(tmp_path, [samples]), shuffle=False).steps(0, 1)
    assert batch.inputs["sound"].lengths_B.tolist() == [0, 2, 0]
    assert batch.inputs["sound"].padded().shape == (3, 2, FEATURES)


def test_a_target_outside_the_vocabulary_does_not_count(tmp_path: Path) -> None:
    samples = [("x", {**sample("x")[1], "label": ("txt", b"zebra")}), sample("y")]
    ((batch,),) = small_stream(write_shards(tmp_path, [samples])).steps(0, 1)
    assert len(batch.keys) == 2 and batch.num_targets == 1


def test_two_windows_of_shards_stay_open_and_no_more(tmp_path: Path) -> None:
    stream = small_stream(small_shards(tmp_path, [2] * 12), batch=2, window=2)
    gc.collect()
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in stream.steps(0, 2 * stream.plan.steps_per_epoch):
        assert len(stream._open) <= 4
    assert len([*Path("/proc/self/fd").iterdir()]) <= before + 4


def stream_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stream")]


def test_a_stream_that_is_left_early_leaves_no_thread(tmp_path: Path) -> None:
    stream = small_stream(small_shards(tmp_path, [20]), batch=1, prefetch_steps=3)
    steps = stream.steps(0, 20)
    next(steps)
    assert stream_threads()
    steps.close()
    assert stream_threads() == []


def test_a_stream_reads_ahead_only_so_far(tmp_path: Path) -> None:
    stream, asked = small_stream(small_shards(tmp_path, [20]), batch=1, prefetch_steps=3), []
    read, stream.step = stream.step, lambda step: asked.append(step) or read(step)  # type: ignore[method-assign, func-returns-value]
    steps = stream.steps(0, 20)
    for number in range(5):
        next(steps)
        assert max(asked, default=0) <= number + 3
    steps.close()
    assert len(asked) <= 8


def test_an_error_while_reading_ahead_is_raised_in_its_turn(tmp_path: Path) -> None:
    stream = small_stream(small_shards(tmp_path, [3, 3]), batch=1, window=1, shuffle=False)
    (tmp_path / "small@1" / "train-000001.tar").unlink()
    seen: list[str] = []
    with pytest.raises(DataError, match=r"train-000001\.tar cannot be read"):
        seen.extend(batches[0].keys[0] for batches in stream.steps(0, 6))
    assert seen == ["s0_0", "s0_1", "s0_2"]
    assert stream_threads() == []


def test_an_error_in_counting_targets_is_no_hole(tmp_path: Path) -> None:
    def count(targets: Mapping[str, Ragged]) -> int:
        raise DataError("two labels")

    stream = small_stream(small_shards(tmp_path, [3]), count=count)
    with pytest.raises(DataError, match="two labels"):
        next(stream.steps(0, 1))
    assert not stream.holes


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    shards = small_shards(tmp_path, [3])
    with pytest.raises(InputError, match="no split 'valid'"):
        Stream(shards, "valid", small_stream(shards).plan, inputs=[], targets=[], count=len)


# Damaged storage: an error that names the file, whatever was done to it.


def flip(path: Path, place: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[place] ^= 0xFF
    path.write_bytes(whole)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def swap(path: Path) -> None:
    path.write_bytes(path.with_name("train-000001.arrow").read_bytes())


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (lambda root: flip(root / "train-000000.tar", 512), "train-000000.tar"),
        (lambda root: flip(root / "train-000000.tar", 1536 + 128 + 5), "train-000000.tar"),
        (lambda root: cut(root / "train-000000.tar"), "train-000000.tar"),
        (lambda root: (root / "train-000000.tar").unlink(), "train-000000.tar"),
        (lambda root: (root / "train-000000.arrow").unlink(), "train-000000.arrow"),
        (lambda root: (root / "train-000000.arrow").write_bytes(b""), "train-000000.arrow"),
        (lambda root: cut(root / "train-000000.arrow"), "train-000000.arrow"),
        (lambda root: swap(root / "train-000000.arrow"), "train-000000.arrow"),
    ],
    ids=[
        "flipped text", "flipped number", "cut tar", "no tar", "no index", "empty index", "cut index", "other index",
    ],
)  # fmt: skip
def test_damaged_storage_raises_and_names_the_file(tmp_path: Path, damage: Any, file: str) -> None:
    shards = write_shards(tmp_path, [[sample("one"), sample("two")], [sample("six"), sample("ten")]])
    damage(shards.root)
    with pytest.raises(DataError, match=file):
        by_key(small_stream(shards))


def test_an_array_of_another_kind_than_the_manifest_says_raises(tmp_path: Path) -> None:
    shards = small_shards(tmp_path, [2])
    half = npy(features("x").astype(np.float16))
    name = shards.root / "train-000000"
    table = write_tar(name.with_suffix(".tar"), [(key, {**sample(key)[1], "sound": ("npy", half)}) for key in "xy"])
    write_index(name.with_suffix(".arrow"), table, {})
    with pytest.raises(DataError, match=r"train-000000\.tar: sound is .*<f2.*, its manifest says float32 \(3,\)"):
        by_key(small_stream(shards))


# Payloads that are whole and yet cannot be decoded: holes.


def raw_shards(tmp_path: Path, kinds: str) -> tuple[ShardSet, dict[str, Any]]:
    """One sample a letter, stored raw: g for good, b for bad. The other value: the fields of a stream of it."""
    samples = [
        (f"{kind}{row}", {"label": ("raw", b"a" if kind == "g" else b"\xff"), "sound": sample(f"{row}")[1]["sound"]})
        for row, kind in enumerate(kinds)
    ]
    target = StreamField(name="label", modality=Events(), info=LABEL, raw=True)
    return write_shards(tmp_path, [samples]), {"targets": [target]}


def test_what_cannot_be_decoded_leaves_a_hole_and_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards, fields = raw_shards(tmp_path, "gbggbg")
    stream = small_stream(shards, batch=3, **fields)
    with caplog.at_level(logging.WARNING):
        seen = [sorted(key for batch in batches for key in batch.keys) for batches in stream.steps(0, 6)]
    for epoch in range(3):
        assert sorted(seen[2 * epoch] + seen[2 * epoch + 1]) == ["g0", "g2", "g3", "g5"]
    assert sorted(hole.key for hole in stream.holes.values()) == ["b1", "b4"]
    hole = stream.holes[0, 1]
    assert hole.source.endswith("train-000000.tar") and "can't decode byte 0xff" in hole.reason
    assert hole.error == "UnicodeDecodeError"
    assert sorted(record.getMessage().split()[0] for record in caplog.records) == ["b1", "b4"]


def test_what_remains_of_a_batch_keeps_inputs_and_targets_together(tmp_path: Path) -> None:
    shards, fields = raw_shards(tmp_path, "bggbg")
    ((batch,),) = small_stream(shards, batch=5, shuffle=False, **fields).steps(0, 1)
    assert batch.keys == ["g1", "g2", "g4"] and batch.num_targets == 3
    for key, array in zip(batch.keys, pieces(batch.inputs["sound"]), strict=True):
        assert np.array_equal(array, features(key[1:]))


def test_a_batch_of_holes_is_a_placeholder(tmp_path: Path) -> None:
    shards, fields = raw_shards(tmp_path, "bbgg")
    batches = small_stream(shards, micro_batch=2, shuffle=False, **fields).step(0)
    assert [list(batch.keys) for batch in batches] == [[], ["g2", "g3"]]
    assert batches[0].num_targets == 0 and batches[0].inputs["sound"].lengths_B.tolist() == [1]


def test_too_many_holes_stop_the_stream_with_how_many_and_why(tmp_path: Path) -> None:
    shards, fields = raw_shards(tmp_path, "g" * 60 + "b" * 20)
    with pytest.raises(TooManyHolesError, match=r"\d\d of \d\d samples of small@1 .* 10% .*train-0.*decode byte 0xff"):
        by_key(small_stream(shards, batch=10, shuffle=False, **fields))


def test_some_holes_do_not_stop_a_stream_however_long_it_runs(tmp_path: Path) -> None:
    shards, fields = raw_shards(tmp_path, "g" * 38 + "b" * 2)
    stream = small_stream(shards, batch=8, **fields)
    assert len([*stream.steps(0, 50)]) == 50
    assert len(stream.holes) == 2
