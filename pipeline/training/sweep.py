"""sweep: the families against each other, under equal budgets, by Ray Tune.

Everything a search decides is arithmetic on recorded scores: each family's trials are drawn up front from its own
search space, then halved at fixed rounds inside the family alone, so a slow starter is never culled by another
family's fast one. A trial is paused by returning at the end of its rung, never stopped from outside, so nothing can
leak; it and a killed sweep go on from checkpoints and summaries on disk. The winner of each family is then trained from
scratch with several seeds, and only these runs see the test split.

Trials of one worker train inside Tune's own trial actors, which are reused from trial to trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from pipeline.choices import load
from pipeline.contracts import InputError, RunSummary
from pipeline.data.plan import derive
from pipeline.experiment import Choice, Experiment, digest, from_dict, override, to_dict
from pipeline.scale import Scale
from pipeline.tracking.tracker import read_summary
from pipeline.training.begin import begin, current_commit
from pipeline.training.fit import check, fit
from pipeline.training.progress import say
from pipeline.training.worker import SoloWorker

KEEP = 2  # one in so many trials goes on at each rung (successive halving, Jamieson & Talwalkar 2016)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run that Tune starts. `until_round` None: a final run."""

    name: str
    experiment: Experiment
    until_round: int | None


def sweep(experiment: Experiment, scale: Scale) -> list[RunSummary]:
    """The final runs of every family: its best settings with several seeds. Needs a connected Ray cluster.

    Running it again goes on where it was killed, and returns the same summaries once it is done. Raises InputError for
    settings that do not fit, before anything starts.
    """
    entered = [as_family(experiment, family) for family in experiment.families]
    for one in entered:
        check(one, scale)
    name = f"{experiment.name}-sweep-{digest(to_dict(experiment))[:8]}"
    alive = {one.model.name: draw(one) for one in entered}
    for until_round in rungs(experiment.budget.rounds, experiment.budget.trials):
        trials = [
            Trial(name=f"{name}/{family}-trial{number}", experiment=trial, until_round=until_round)
            for family, drawn in alive.items()
            for number, trial in drawn.items()
        ]
        say(f"{experiment.name}: {len(trials)} trials to round {until_round} of {experiment.budget.rounds}")
        summaries = run(trials, scale)
        alive = {
            family: {
                number: drawn[number] for number in keep({n: summaries[f"{name}/{family}-trial{n}"] for n in drawn})
            }
            for family, drawn in alive.items()
        }
    finals = [
        Trial(name=f"{name}/{family}-seed{seed}", experiment=override(winner, "seed", seed), until_round=None)
        for family, drawn in alive.items()
        for winner in list(drawn.values())[:1]
        for seed in range(experiment.seed, experiment.seed + experiment.budget.seeds)
    ]
    say(f"{experiment.name}: {len(finals)} final runs")
    return list(run(finals, scale).values())


def as_family(experiment: Experiment, family: str) -> Experiment:
    """The experiment with another family; settings that both have are kept."""
    if experiment.model.name == family:
        return experiment
    known = {field.name for field in fields(load("models", family))}
    kept = {key: value for key, value in experiment.model.settings.items() if key in known}
    return override(experiment, "model", Choice(name=family, settings=kept))


def draw(experiment: Experiment) -> dict[int, Experiment]:
    """The family's trials by number: different points of its search space, drawn from the experiment's seed.

    Raises InputError where the space has fewer points than the budget has trials.
    """
    space: Mapping[str, Sequence[Any]] = load("models", experiment.model.name).search
    points = list(product(*space.values()))
    wanted = experiment.budget.trials
    if wanted == 1:
        return {0: experiment}
    if wanted > len(points):
        raise InputError(
            f"budget.trials = {wanted}: {experiment.model.name} has only {len(points)} different settings to try"
        )
    rng = np.random.default_rng(derive(experiment.seed, "search", experiment.model.name))
    drawn = {}
    for number, point in enumerate(rng.permutation(len(points))[:wanted]):
        trial = experiment
        for path, value in zip(space, points[point], strict=True):
            trial = override(trial, path, value)
        drawn[number] = trial
    return drawn


def rungs(rounds: int, trials: int) -> list[int]:
    """The rounds at which the better half goes on; the last two trials run to the end. Empty without a choice."""
    halvings = trials.bit_length() - 1
    return [-(-rounds // KEEP ** (halvings - 1 - rung)) for rung in range(halvings)]


def keep(summaries: Mapping[int, RunSummary]) -> list[int]:
    """The numbers of the better half (at least one), best first; ties go to the lower loss, then the lower number.

    A score or loss that is not finite is worse than any other.
    """

    def rank(number: int) -> tuple[float, float, int]:
        summary = summaries[number]
        worth = (-summary.score if summary.higher_is_better else summary.score, summary.metrics["loss"])
        score, loss = (value if math.isfinite(value) else math.inf for value in worth)
        return score, loss, number

    return sorted(summaries, key=rank)[: max(1, len(summaries) // KEEP)]


def run(trials: Sequence[Trial], scale: Scale) -> dict[str, RunSummary]:
    """The trials' summaries by name. Raises RuntimeError, naming it, where a trial failed for good."""
    plain = [
        {"name": trial.name, "experiment": to_dict(trial.experiment), "until_round": trial.until_round}
        for trial in trials
    ]
    many = scale.workers > 1
    needs: dict[str, float] = {"CPU": 0.01} if many else {"CPU": scale.cpus, "GPU": int(scale.device == "cuda")}
    parallel = scale.parallel
    if many and parallel is None:
        cores = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
        parallel = max(1, int(cores // (scale.cpus * scale.workers)))
    where, commit = to_dict(scale), current_commit()

    def trial(config: dict[str, Any]) -> None:
        one = config["trial"]
        try:
            summary = conduct(from_dict(one["experiment"]), Scale(**where), one["name"], one["until_round"], commit)
        except Exception as error:
            raise RuntimeError(f"trial {one['name']} failed: {error}") from error
        tune.report({"score": summary.score})

    tuner = tune.Tuner(
        tune.with_resources(trial, needs),
        param_space={"trial": tune.grid_search(plain)},
        tune_config=tune.TuneConfig(max_concurrent_trials=parallel, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(Path(scale.runs_dir).resolve() / "tune"),
            failure_config=tune.FailureConfig(max_failures=scale.max_failures),
            verbose=0,
        ),
    )
    results = tuner.fit()
    for error in results.errors:
        raise error
    summaries = {one.name: read_summary(Path(scale.runs_dir) / one.name) for one in trials}
    return {name: summary for name, summary in summaries.items() if summary is not None}


def conduct(experiment: Experiment, scale: Scale, name: str, until_round: int | None, commit: str) -> RunSummary:
    """One trial: in this process where one worker is enough, else under Ray Train."""
    if scale.workers > 1:
        return fit(experiment, scale, name, until_round=until_round)
    done = read_summary(Path(scale.runs_dir) / name)
    if done is not None and done.phase == "final":
        return done
    worker = SoloWorker(Path(scale.runs_dir) / name, scale.device)
    return begin(experiment, scale, worker, name=name, until_round=until_round, commit=commit)
