"""One rank here; several ranks in tests/golden."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.experiment import Experiment
from pipeline.scale import Scale
from pipeline.training.evaluate import evaluate
from pipeline.training.model import build
from pipeline.training.streams import open_shards, open_stream
from pipeline.training.worker import SoloWorker
from tests.words import SHARDS, of_family, words

KEYS = {
    split: sorted(f"{split}_{index}_{row}" for index, size in enumerate(sizes) for row in range(size))
    for split, sizes in SHARDS.items()
}


def rows(experiment: Experiment, split: str, scale: Scale, tmp_path: Path) -> pa.Table:
    shards, worker = open_shards(experiment, scale), SoloWorker(tmp_path)
    stream = open_stream(experiment, shards, split, worker, scale, training=False)
    return evaluate(build(experiment, shards.manifest.fields), experiment.task.make("tasks"), stream, worker)


@pytest.mark.parametrize("batch", [1, 4, 16, 1000])
@pytest.mark.parametrize("split", ["train", "test"])
def test_each_sample_has_one_row_in_order_of_keys(split: str, batch: int, scale: Scale, tmp_path: Path) -> None:
    table = rows(words({"batching.batch": batch}), split, scale, tmp_path)
    assert table.column("key").to_pylist() == KEYS[split]


@pytest.mark.parametrize("family", ["gru", "transformer"])
def test_rows_do_not_depend_on_how_they_were_batched(family: str, scale: Scale, tmp_path: Path) -> None:
    whole = rows(of_family(family, {"batching.batch": 1000}), "test", scale, tmp_path)
    for changes in ({"batching.batch": 1}, {"batching.batch": 1000, "batching.micro_batch": 5}):
        cut = rows(of_family(family, changes), "test", scale, tmp_path)
        assert cut.column_names == whole.column_names
        for name in ("key", "target", "prediction"):
            assert cut.column(name).equals(whole.column(name))
        for name in ("loss", "confidence"):
            assert cut.column(name).to_pylist() == pytest.approx(whole.column(name).to_pylist(), rel=1e-5)


def test_dropout_is_off_while_it_lasts_and_on_afterwards(scale: Scale, tmp_path: Path) -> None:
    experiment = words({"model.dropout": 0.5, "task.dropout": 0.5, "model.layers": 2})
    assert rows(experiment, "test", scale, tmp_path).equals(rows(experiment, "test", scale, tmp_path))
    shards, worker = open_shards(experiment, scale), SoloWorker(tmp_path)
    stream = open_stream(experiment, shards, "test", worker, scale, training=False)
    model, task = build(experiment, shards.manifest.fields), experiment.task.make("tasks")
    for was_training in (True, False):
        evaluate(model.train(was_training), task, stream, worker)
        assert model.training is was_training
    assert all(parameter.grad is None for parameter in model.parameters())
