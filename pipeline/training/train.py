"""THE loop: one run, read top to bottom.

The same function runs in one process (SoloWorker), on every rank under Ray Train, and inside a Ray Tune trial; what
differs is the Worker. All that it remembers between steps is in the Run's progress, weights and optimizer, and every
step draws its random numbers from its own seed, so a run that was killed goes on from its newest checkpoint and ends
with the same weights.
"""

from __future__ import annotations

import torch

from pipeline.contracts import Batch, RunSummary, Tally
from pipeline.data.plan import derive
from pipeline.experiment import Experiment
from pipeline.protocols import Tracker, Worker
from pipeline.scale import Scale
from pipeline.training.progress import ProgressLine
from pipeline.training.run import Run


def train(
    experiment: Experiment,
    scale: Scale,
    worker: Worker,
    tracker: Tracker,
    *,
    name: str,
    until_round: int | None = None,
    commit: str = "",
) -> RunSummary:
    """Trains to the end of the budget (or of patience) and scores the weights of the best round on the test split.

    With `until_round` it is a trial that chooses settings: it pauses behind that round, never opens the test split, and
    its summary holds the best validation score. Rank 0 leaves `model/`, `rows-SPLIT.parquet` and `summary.json` under
    runs_dir/name. Raises InputError where the dataset is absent or lacks a split.
    """
    run = Run(experiment, scale, worker, tracker, name=name, until_round=until_round)
    progress, plan, window = run.progress, run.stream.plan, Tally()
    line = ProgressLine(name, run.total, start=progress.step, quiet=worker.rank > 0)
    steps = run.stream.steps(progress.step, progress.step if run.over else run.stop)

    for step, batches in enumerate(steps, start=progress.step):
        torch.manual_seed(derive(experiment.seed, "dropout", step, worker.rank))
        (num_targets,) = run.engine.sum_over_ranks([sum(batch.num_targets for batch in batches)])
        for batch in batches:
            window += _learn(run, batch.to(worker.device), num_targets)
        run.engine.update(step, run.total)

        progress.step = step + 1
        samples = plan.samples_before(progress.step)
        line.advance(progress.step, samples - plan.samples_before(step))
        round_ends = progress.step == run.round_ends[progress.round]
        if round_ends or progress.step % scale.log_steps == 0:
            learned = _over_ranks(run, window)
            window = Tally()
            tracker.log({f"train/{key}": value for key, value in learned.items()}, step=progress.step, samples=samples)
            line.note(learned)
        if round_ends:
            progress.round += 1
            score, best = run.judge(), progress.best_metrics[run.task.metric]
            tracker.log({f"valid/{run.task.metric}": score}, step=progress.step, samples=samples)
            line.note({f"valid {run.task.metric}": score, "best": best}, speak=True)
            run.save({"round": progress.round, "score": score, "best_score": best, "step": progress.step})
            if run.over:
                break
        elif scale.checkpoint_steps and progress.step % scale.checkpoint_steps == 0:
            run.save({"round": progress.round, "step": progress.step})

    return run.finish(commit)


def _learn(run: Run, batch: Batch, num_targets: float) -> Tally:
    predicted = run.engine.forward(batch.inputs)
    loss_sum, tally = run.task.loss(predicted, batch)
    run.engine.backward(loss_sum, num_targets)
    return tally


def _over_ranks(run: Run, tally: Tally) -> dict[str, float]:
    """The means of a tally, summed over all ranks first."""
    names = sorted(tally.sums)
    totals = run.engine.sum_over_ranks([tally.sums[name] for name in names] + [tally.counts[name] for name in names])
    whole = Tally(dict(zip(names, totals, strict=False)), dict(zip(names, totals[len(names) :], strict=True)))
    return {name: whole.mean(name) for name in names}
