"""Law 8 on one rank: whatever stopped a run, it ends with the same weights as one that nothing stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.contracts import InputError
from pipeline.experiment import Experiment, choose
from pipeline.scale import Scale
from pipeline.tracking.tracker import JsonlTracker
from pipeline.training import checkpoint
from pipeline.training.begin import begin
from pipeline.training.worker import SoloWorker
from tests.words import FAMILIES, words


class Killed(BaseException):
    """A kill -9, as far as one process can do it to itself."""


class Mortal(SoloWorker):
    """Keeps a copy of every checkpoint, and dies once it has reported `last` of them."""

    def __init__(self, directory: Path, last: int | None = None) -> None:
        super().__init__(directory)
        self.kept, self.last = directory / "kept", last
        self.count = 0

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        assert checkpoint is not None
        shutil.copytree(checkpoint, self.kept / str(self.count))
        self.count += 1
        super().report(metrics, checkpoint)
        if self.count == self.last:
            raise Killed


class From(SoloWorker):
    """Begins at a given checkpoint."""

    def __init__(self, directory: Path, first: Path) -> None:
        super().__init__(directory)
        self.first = first

    def latest(self) -> Path | None:
        return super().latest() or self.first


def random(family: str = "gru") -> Experiment:
    """Everything that draws random numbers is on."""
    experiment = words({"model": choose(family, width=8, layers=2, dropout=0.3), "task.dropout": 0.3})
    return replace(experiment, inputs={"audio": {"stride": 2, "speed": 0.2, "time_masks": 1, "time_width": 4}})


def ends(scale: Scale, name: str) -> tuple[Any, ...]:
    """All that a finished run leaves, but for clocks."""
    run_dir = Path(scale.runs_dir) / name
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    summary = json.loads((run_dir / "summary.json").read_text())
    kept = {key: summary[key] for key in ("score", "metrics", "steps", "samples", "fingerprint", "parameters")}
    return (
        (run_dir / "model" / "weights.safetensors").read_bytes(),
        pq.read_table(run_dir / "rows-test.parquet").to_pylist(),
        [{key: value for key, value in line.items() if key != "time"} for line in lines],
        kept,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_resumed_from_any_checkpoint_ends_the_same(family: str, scale: Scale) -> None:
    scale, runs = replace(scale, checkpoint_steps=3), Path(scale.runs_dir)
    worker = Mortal(runs / "whole")
    begin(random(family), scale, worker, name="whole")
    assert worker.count == 8, "16 steps: the ends of four rounds, and steps 3, 6, 9, 15"
    for number in range(worker.count):
        name = f"from{number}"
        shutil.copytree(runs / "whole", runs / name, ignore=shutil.ignore_patterns("checkpoints", "kept"))
        begin(random(family), scale, From(runs / name, runs / "whole" / "kept" / str(number)), name=name)
        assert ends(scale, name) == ends(scale, "whole"), f"checkpoint {number}"


@pytest.mark.parametrize("checkpoint_steps", [None, 5])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_run_killed_behind_a_checkpoint_goes_on_from_it(
    last: int, checkpoint_steps: int | None, scale: Scale
) -> None:
    scale, runs = replace(scale, checkpoint_steps=checkpoint_steps), Path(scale.runs_dir)
    with pytest.raises(Killed):
        begin(random(), scale, Mortal(runs / "killed", last), name="killed")
    begin(random(), scale, SoloWorker(runs / "killed"), name="killed")
    begin(random(), scale, SoloWorker(runs / "whole"), name="whole")
    assert ends(scale, "killed") == ends(scale, "whole")


@pytest.mark.parametrize("step", [1, 4, 7, 16])
def test_steps_behind_the_last_checkpoint_are_neither_doubled_nor_lost(
    step: int, scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Path(scale.runs_dir)
    log = JsonlTracker.log

    def dying(self: JsonlTracker, metrics: Mapping[str, float], *, step: int, samples: int) -> None:
        log(self, metrics, step=step, samples=samples)
        if step == killed_at:
            raise Killed

    killed_at = step
    with monkeypatch.context() as patch:
        patch.setattr(JsonlTracker, "log", dying)
        with pytest.raises(Killed):
            begin(random(), scale, SoloWorker(runs / "killed"), name="killed")
    begin(random(), scale, SoloWorker(runs / "killed"), name="killed")
    begin(random(), scale, SoloWorker(runs / "whole"), name="whole")
    assert ends(scale, "killed") == ends(scale, "whole")


def test_a_paused_trial_that_goes_on_is_the_trial_that_never_paused(scale: Scale) -> None:
    runs = Path(scale.runs_dir)
    for until_round in (2, 4):
        paused = begin(random(), scale, SoloWorker(runs / "paused"), name="paused", until_round=until_round)
    straight = begin(random(), scale, SoloWorker(runs / "straight"), name="straight", until_round=4)
    assert (paused.score, paused.metrics, paused.steps) == (straight.score, straight.metrics, straight.steps)
    states = [checkpoint.read(SoloWorker(runs / name).latest() or Path()) for name in ("paused", "straight")]
    for name in ("weights", "best"):
        ours, theirs = (state.weights(name) for state in states)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = (state.optimizer()["state"] for state in states)
    assert all(torch.equal(ours[key][name], theirs[key][name]) for key in ours for name in ours[key])


def test_a_paused_trial_can_be_made_a_final_run(scale: Scale) -> None:
    runs = Path(scale.runs_dir)
    begin(random(), scale, SoloWorker(runs / "paused"), name="paused", until_round=2)
    begin(random(), scale, SoloWorker(runs / "paused"), name="paused")
    begin(random(), scale, SoloWorker(runs / "straight"), name="straight")
    assert ends(scale, "paused") == ends(scale, "straight")


def test_a_run_that_patience_ended_stays_ended(scale: Scale) -> None:
    still = words({"optim.lr": 1e-30, "optim.weight_decay": 0.0, "budget.patience": 1})
    runs = Path(scale.runs_dir)
    first = begin(still, scale, SoloWorker(runs / "run"), name="run", until_round=3)
    again = begin(still, scale, SoloWorker(runs / "run"), name="run")
    assert first.steps == again.steps == 8


def test_a_name_is_not_continued_with_other_settings(scale: Scale) -> None:
    runs = Path(scale.runs_dir)
    begin(words(), scale, SoloWorker(runs / "run"), name="run", until_round=1)
    with pytest.raises(InputError, match=r"run was begun with other settings \(optim\.lr: 0\.5, was 0\.01\)"):
        begin(words({"optim.lr": 0.5}), scale, SoloWorker(runs / "run"), name="run")


def test_where_a_run_goes_on_may_change(scale: Scale) -> None:
    runs = Path(scale.runs_dir)
    begin(random(), scale, SoloWorker(runs / "moved"), name="moved", until_round=1)
    other = replace(scale, prefetch_steps=1, log_steps=1, checkpoint_steps=2)
    begin(random(), other, SoloWorker(runs / "moved"), name="moved")
    begin(random(), scale, SoloWorker(runs / "whole"), name="whole")
    assert ends(scale, "moved") == ends(scale, "whole")


def test_seconds_count_all_attempts(scale: Scale) -> None:
    runs = Path(scale.runs_dir)
    first = begin(words(), scale, SoloWorker(runs / "run"), name="run", until_round=2)
    assert begin(words(), scale, SoloWorker(runs / "run"), name="run").seconds > first.seconds
