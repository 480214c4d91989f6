"""The loop on one rank. What a kill leaves behind: test_resume; several ranks: tests/golden; Ray: tests/cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.contracts import DataError, InputError, RunSummary
from pipeline.experiment import Experiment, choose
from pipeline.scale import Scale
from pipeline.tracking.tracker import read_summary
from pipeline.training import checkpoint
from pipeline.training.begin import begin
from pipeline.training.worker import SoloWorker
from tests.words import FAMILIES, of_family, words, write_words


def solo(experiment: Experiment, scale: Scale, name: str = "run", **given: Any) -> RunSummary:
    return begin(experiment, scale, SoloWorker(Path(scale.runs_dir) / name), name=name, **given)


def logged(scale: Scale, metric: str, name: str = "run") -> list[tuple[int, float]]:
    lines = map(json.loads, (Path(scale.runs_dir) / name / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[metric]) for line in lines if metric in line]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(family: str, precision: str, scale: Scale) -> None:
    summary = solo(of_family(family, {"budget.epochs": 12, "optim.precision": precision}), scale)
    losses = [loss for _, loss in logged(scale, "train/loss")]
    assert sum(losses[-8:]) < 0.75 * sum(losses[:8])
    assert summary.score > 0.5


def test_a_run_leaves_model_rows_and_summary(scale: Scale) -> None:
    summary = solo(words(), scale, commit="abc")
    run_dir = Path(scale.runs_dir) / "run"
    assert read_summary(run_dir) == summary
    rows = pq.read_table(run_dir / "rows-test.parquet")
    assert summary.metrics == words().task.make("tasks").score(rows)
    saved = checkpoint.read(run_dir / "model")
    assert (saved.experiment, saved.progress.step) == (words(), summary.steps)
    assert not [path for path in run_dir.rglob("*") if path.name.startswith(".tmp")]


def test_a_summary_says_what_ran(scale: Scale) -> None:
    summary = solo(words(), scale, commit="abc")
    assert (summary.run, summary.contest, summary.family) == ("run", words().contest, "gru")
    assert (summary.phase, summary.split, summary.metric, summary.seed) == ("final", "test", "accuracy", 0)
    assert summary.score == summary.metrics["accuracy"]
    assert (summary.steps, summary.samples, summary.commit) == (16, 4 * 64, "abc")
    assert summary.device_seconds == summary.seconds > 0
    assert summary.fingerprint == words().fingerprint


def test_the_summary_of_a_budget_says_the_width_that_met_it(scale: Scale) -> None:
    summary = solo(words({"budget.parameters": 5000}), scale)
    assert summary.parameters == pytest.approx(5000, rel=0.02)
    saved = checkpoint.read(Path(scale.runs_dir) / "run" / "model")
    width = saved.experiment.model.settings["width"]
    assert summary.settings["model"]["settings"]["width"] == width != 8
    assert summary.fingerprint == words({"budget.parameters": 5000}).fingerprint, "the identity is what was asked for"
    assert sum(tensor.numel() for tensor in saved.weights().values()) == summary.parameters


def test_metrics_are_logged_every_so_many_steps_and_at_the_end_of_a_round(words_dir: Path, tmp_path: Path) -> None:
    scale = Scale(data_dir=str(words_dir), runs_dir=str(tmp_path), log_steps=3)
    solo(words({"budget.rounds": 3}), scale)
    assert [step for step, _ in logged(scale, "valid/accuracy")] == [5, 10, 16]
    assert [step for step, _ in logged(scale, "train/loss")] == [3, 5, 6, 9, 10, 12, 15, 16]


def test_a_logged_loss_is_the_mean_over_all_samples_since_the_last_line(words_dir: Path, tmp_path: Path) -> None:
    each = Scale(data_dir=str(words_dir), runs_dir=str(tmp_path), log_steps=1)
    some = Scale(data_dir=str(words_dir), runs_dir=str(tmp_path), log_steps=3)
    experiment = words({"batching.batch": 30, "budget.epochs": 2, "budget.rounds": 1})  # steps of 30, 30 and 4 samples
    solo(experiment, each, "each")
    solo(experiment, some, "some")
    losses = [loss for _, loss in logged(each, "train/loss", "each")]
    means = [sum(loss * size for loss, size in zip(losses[at:], (30, 30, 4), strict=False)) / 64 for at in (0, 3)]
    assert [loss for _, loss in logged(some, "train/loss", "some")] == pytest.approx(means, rel=1e-9)


@pytest.mark.parametrize(
    ("epochs", "rounds", "steps", "ends"),
    [(1.5, 2, 6, [3, 6]), (0.1, 10, 1, [1]), (2.1, 3, 9, [3, 6, 9]), (1, 10, 4, [1, 2, 3, 4])],
)
def test_epochs_may_be_fractions_and_rounds_are_never_more_than_steps(
    epochs: float, rounds: int, steps: int, ends: list[int], scale: Scale
) -> None:
    summary = solo(words({"budget.epochs": epochs, "budget.rounds": rounds}), scale)
    assert summary.steps == steps
    assert [step for step, _ in logged(scale, "valid/accuracy")] == ends


def test_patience_ends_a_run_that_gets_no_better(scale: Scale) -> None:
    still = {"optim.lr": 1e-30, "optim.weight_decay": 0.0, "budget.patience": 2, "budget.epochs": 8, "budget.rounds": 8}
    summary = solo(words(still), scale)
    assert [step for step, _ in logged(scale, "valid/accuracy")] == [4, 8, 12]
    assert (summary.steps, summary.samples) == (12, 3 * 64)


def test_patience_does_not_end_a_run_that_gets_better(scale: Scale) -> None:
    summary = solo(words({"budget.patience": 1, "optim.lr": 1e-3, "budget.epochs": 3, "budget.rounds": 3}), scale)
    assert summary.steps == 12


class Keeping(SoloWorker):
    """Keeps the weights of every round."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.weights: list[bytes] = []

    def report(self, metrics: Any, checkpoint: Path | None) -> None:
        assert checkpoint is not None
        self.weights.append((checkpoint / "weights.safetensors").read_bytes())
        super().report(metrics, checkpoint)


def test_the_weights_of_the_best_round_are_scored(scale: Scale) -> None:
    experiment = words(
        {"optim.lr": 0.3, "optim.warmup": 0.9, "optim.clip": 0.0, "budget.epochs": 8, "budget.rounds": 8}
    )
    worker = Keeping(Path(scale.runs_dir) / "run")
    begin(experiment, scale, worker, name="run")
    scores = [score for _, score in logged(scale, "valid/accuracy")]
    last = checkpoint.read(worker.latest() or Path()).progress
    assert last.best_metrics["accuracy"] == max(scores) == scores[last.best_round - 1]
    assert last.best_round < last.round, "the test wants a run whose last round is not its best"
    model = Path(scale.runs_dir) / "run" / "model" / "weights.safetensors"
    assert model.read_bytes() == worker.weights[last.best_round - 1] != worker.weights[-1]


def test_a_trial_pauses_behind_its_round_and_never_opens_the_test_split(tmp_path: Path) -> None:
    write_words(tmp_path / "data", shards={"train": (40, 24), "valid": (21,)})
    scale = Scale(data_dir=str(tmp_path / "data"), runs_dir=str(tmp_path / "runs"), log_steps=1)
    summary = solo(words(), scale, until_round=2)
    assert (summary.phase, summary.split, summary.steps) == ("search", "valid", 8)
    assert summary.score == max(score for _, score in logged(scale, "valid/accuracy"))
    assert not list(Path(scale.runs_dir).rglob("rows-*")) and not (Path(scale.runs_dir) / "run" / "model").exists()
    assert solo(words(), scale, until_round=9).steps == 16, "rounds behind the last one are the last one"
    with pytest.raises(InputError, match="no split 'test'"):
        solo(words(), scale)


@pytest.mark.parametrize("shards", [{"train": (3,), "valid": (1,), "test": (1,)}, {"train": (1,) * 5, "valid": (2,)}])
def test_the_smallest_datasets_work(shards: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    write_words(tmp_path / "data", shards={"test": (1,), **shards})
    scale = Scale(data_dir=str(tmp_path / "data"), runs_dir=str(tmp_path / "runs"))
    assert solo(words(), scale).steps == 4


def test_a_damaged_shard_ends_the_run_with_its_name(tmp_path: Path) -> None:
    write_words(tmp_path / "data")
    shard = tmp_path / "data" / "words@1" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"train-000001\.tar"):
        solo(words(), Scale(data_dir=str(tmp_path / "data"), runs_dir=str(tmp_path / "runs")))


def test_a_diverged_run_is_scored_all_the_same(scale: Scale) -> None:
    summary = solo(words({"optim.lr": 1e30, "optim.clip": 0.0, "optim.warmup": 0.0}), scale)
    assert 0 <= summary.score <= 1
    assert read_summary(Path(scale.runs_dir) / "run") is not None
    assert any(not isinstance(loss, float) for _, loss in logged(scale, "train/loss")), "the test wants a NaN"


def test_a_choice_without_targets_is_refused(scale: Scale) -> None:
    with pytest.raises(InputError, match="no target field 'mood'"):
        solo(words({"task": choose("classify", target="mood")}), scale)
