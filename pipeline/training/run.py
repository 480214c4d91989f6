"""Run: the parts of one rank's training run, and where it stands.

Made the same way every time, then brought to where the worker's newest checkpoint left it.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.contracts import InputError, RunSummary
from pipeline.experiment import Experiment, difference, to_dict
from pipeline.files import whole_file
from pipeline.protocols import Task, Tracker, Worker
from pipeline.scale import Scale
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Progress
from pipeline.training.engine import Engine
from pipeline.training.evaluate import evaluate
from pipeline.training.model import build, meet_budget, num_parameters, weights_of
from pipeline.training.streams import open_shards, open_stream


def standing(score: float, loss: float, higher_is_better: bool) -> tuple[float, float]:
    """What stands higher is better: a better score, among equal ones a lower loss. NaN is the worst."""
    signed = score if higher_is_better else -score
    return -math.inf if math.isnan(signed) else signed, -math.inf if math.isnan(loss) else -loss


class Run:
    """`until_round` makes it a trial, which never opens the test split (see train)."""

    def __init__(
        self,
        experiment: Experiment,
        scale: Scale,
        worker: Worker,
        tracker: Tracker,
        *,
        name: str,
        until_round: int | None,
    ) -> None:
        self.asked, self.scale, self.worker, self.tracker, self.name = experiment, scale, worker, tracker, name
        self.shards = open_shards(experiment, scale)
        self.fields = self.shards.manifest.fields
        self.experiment = meet_budget(experiment, self.fields)
        self.task: Task = experiment.task.make("tasks")
        torch.set_num_threads(scale.cpus)
        self.model = build(self.experiment, self.fields)
        self.stream = open_stream(experiment, self.shards, "train", worker, scale, training=True)
        self.valid = open_stream(experiment, self.shards, "valid", worker, scale, training=False)
        self.scored = (
            open_stream(experiment, self.shards, "test", worker, scale, training=False) if until_round is None else None
        )
        self.engine = Engine(self.model, experiment.optim, worker, scale.engine)
        self.total = math.ceil(experiment.budget.epochs * self.stream.plan.steps_per_epoch)
        rounds = min(experiment.budget.rounds, self.total)
        self.round_ends = [self.total * (number + 1) // rounds for number in range(rounds)]
        self.stop = self.total if until_round is None else self.round_ends[min(until_round, rounds) - 1]
        self.progress, self.best = Progress(), weights_of(self.model)
        self._restore()
        self._mark = time.monotonic()

    def _restore(self) -> None:
        latest = self.worker.latest()
        if latest is not None:
            saved = checkpoint.read(latest)
            if saved.experiment.fingerprint != self.experiment.fingerprint:
                changes = "; ".join(difference(to_dict(self.experiment), to_dict(saved.experiment)))
                raise InputError(f"run {self.name} was begun with other settings ({changes}); give it another name")
            self.progress, self.best = saved.progress, saved.weights("best")
            self.engine.restore(saved.weights(), saved.optimizer())
        self.tracker.rewind(self.progress.step)

    @property
    def over(self) -> bool:
        """All steps asked for are made, or patience is at its end."""
        patience = self.experiment.budget.patience
        waited = self.progress.round - self.progress.best_round
        return self.progress.step >= self.stop or (patience is not None and waited >= patience)

    def judge(self) -> float:
        """Scores the model on the validation split, and remembers it where it is the best so far (ties: lower loss)."""
        scores = self.task.score(evaluate(self.model, self.task, self.valid, self.worker))
        progress, metric, higher = self.progress, self.task.metric, self.task.higher_is_better
        old = progress.best_metrics
        if not old or standing(scores[metric], scores["loss"], higher) > standing(old[metric], old["loss"], higher):
            progress.best_metrics, progress.best_round = scores, progress.round
            self.best = weights_of(self.model)
        return scores[metric]

    def save(self, metrics: Mapping[str, float]) -> None:
        """Reports the metrics with a checkpoint; every rank calls it, rank 0 writes."""
        now = time.monotonic()
        self.progress.seconds, self._mark = self.progress.seconds + now - self._mark, now
        if self.worker.rank:
            self.worker.report(metrics, None)
            return
        with tempfile.TemporaryDirectory(prefix="seqpit-") as scratch:
            self.worker.report(metrics, self._write(Path(scratch) / "checkpoint", weights_of(self.model)))

    def _write(self, path: Path, weights: Mapping[str, Tensor], *, to_go_on: bool = True) -> Path:
        return checkpoint.write(
            path,
            experiment=self.experiment,
            fields=self.fields,
            progress=self.progress,
            identity=self.tracker.identity,
            weights=weights,
            best=self.best if to_go_on else None,
            optimizer=self.engine.state() if to_go_on else None,
        )

    def finish(self, commit: str) -> RunSummary:
        """Scores the best round's weights, and (rank 0) leaves model, rows and summary in the run's directory."""
        directory, split, metrics = Path(self.scale.runs_dir) / self.name, "valid", self.progress.best_metrics
        if self.scored is not None:
            self.model.load_state_dict(self.best)
            rows = evaluate(self.model, self.task, self.scored, self.worker)
            split, metrics = "test", self.task.score(rows)
            if self.worker.rank == 0:
                directory.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(directory / "model", ignore_errors=True)
                self._write(directory / "model", self.best, to_go_on=False)
                with whole_file(directory / f"rows-{split}.parquet") as aside:
                    pq.write_table(rows, aside)
        summary = self._summary(split, metrics, commit)
        if self.worker.rank == 0:
            self.tracker.finish(summary)
        self.engine.close()
        return summary

    def _summary(self, split: str, metrics: Mapping[str, float], commit: str) -> RunSummary:
        progress, asked = self.progress, self.asked
        samples = self.stream.plan.samples_before(progress.step)
        return RunSummary(
            run=self.name,
            contest=asked.contest,
            family=asked.model.name,
            phase="final" if split == "test" else "search",
            seed=asked.seed,
            split=split,
            metric=self.task.metric,
            score=metrics[self.task.metric],
            higher_is_better=self.task.higher_is_better,
            metrics=metrics,
            parameters=num_parameters(self.model),
            steps=progress.step,
            samples=samples,
            seconds=progress.seconds,
            device_seconds=progress.seconds * self.worker.world,
            samples_per_second=samples / max(1e-9, progress.seconds),
            fingerprint=asked.fingerprint,
            settings=to_dict(self.experiment),
            commit=commit,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
