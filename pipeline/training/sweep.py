"""sweep: the families against each other, under equal budgets, by Ray Tune.

Everything a search decides is arithmetic on recorded scores: each family's trials are drawn up front from its own
search space, then halved at fixed rounds inside the family alone, so a slow starter is never culled by another
family's fast one. A trial is paused by returning at the end of its rung, never stopped from outside, so nothing can
leak; it and a killed sweep go on from checkpoints and summaries on disk. The winner of each family is then trained from
scratch with several seeds, and only these runs see the test split.

Trials of one worker train inside Tune's own trial actors, which are reused from trial to trial.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from pipeline.choices import load
from pipeline.contracts import FieldInfo, InputError, RunSummary
from pipeline.data.plan import derive
from pipeline.experiment import Choice, Experiment, digest, from_dict, override, to_dict
from pipeline.scale import Scale
from pipeline.tracking.tracker import read_summary
from pipeline.training import failure
from pipeline.training.begin import begin, current_commit
from pipeline.training.fit import check, fit
from pipeline.training.model import UnmetBudgetError, meet_budget
from pipeline.training.progress import say
from pipeline.training.run import standing
from pipeline.training.streams import open_shards
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
    learned = open_shards(experiment, scale).manifest.fields
    alive = {family: draw(as_family(experiment, family), learned) for family in experiment.families}
    for drawn in alive.values():
        check(drawn[0], scale)
    name = f"{experiment.name}-sweep-{digest(to_dict(experiment))[:8]}"
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


def draw(experiment: Experiment, learned: Mapping[str, FieldInfo]) -> dict[int, Experiment]:
    """The family's trials by number: different points of its search space, drawn from the experiment's seed.

    Points at which no width meets the parameter budget are passed over. Raises InputError where the space has fewer
    points than the budget has trials.
    """
    space: Mapping[str, Sequence[Any]] = load("models", experiment.model.name).search
    points = list(product(*space.values()))
    wanted = experiment.budget.trials
    if wanted == 1:
        return {0: experiment}
    rng = np.random.default_rng(derive(experiment.seed, "search", experiment.model.name))
    drawn: dict[int, Experiment] = {}
    for point in rng.permutation(len(points)):
        trial = experiment
        for path, value in zip(space, points[point], strict=True):
            trial = override(trial, path, value)
        with suppress(UnmetBudgetError):
            meet_budget(trial, learned)
            drawn[len(drawn)] = trial
        if len(drawn) == wanted:
            return drawn
    met = f" at {experiment.budget.parameters} parameters" if experiment.budget.parameters else ""
    raise InputError(
        f"budget.trials = {wanted}: {experiment.model.name} has only {len(drawn)} different settings to try{met}"
    )


def rungs(rounds: int, trials: int) -> list[int]:
    """The rounds at which the better half goes on; the last two trials run to the end. Empty without a choice."""
    halvings = trials.bit_length() - 1
    return [-(-rounds // KEEP ** (halvings - 1 - rung)) for rung in range(halvings)]


def keep(summaries: Mapping[int, RunSummary]) -> list[int]:
    """The numbers of the better half (at least one), best first; equals by number."""

    def rank(number: int) -> tuple[tuple[float, float], int]:
        one = summaries[number]
        return standing(one.score, one.metrics["loss"], one.higher_is_better), -number

    return sorted(summaries, key=rank, reverse=True)[: max(1, len(summaries) // KEEP)]


def run(trials: Sequence[Trial], scale: Scale) -> dict[str, RunSummary]:
    """The trials' summaries by name; final runs that are finished are not started again.

    Raises what a trial raised; RuntimeError, naming it, where restarts did not help.
    """
    places = {one.name: Path(scale.runs_dir) / one.name for one in trials}
    done = {name: read_summary(place) for name, place in places.items()}
    finished = {name for name, summary in done.items() if summary is not None and summary.phase == "final"}
    waiting = [one for one in trials if one.name not in finished]
    if waiting:
        _tune(waiting, scale)
    summaries = {name: read_summary(place) for name, place in places.items()}
    return {name: summary for name, summary in summaries.items() if summary is not None}


def _tune(trials: Sequence[Trial], scale: Scale) -> None:
    plain = [
        {"name": trial.name, "experiment": to_dict(trial.experiment), "until_round": trial.until_round}
        for trial in trials
    ]
    many = scale.workers > 1
    # A trial of several workers leaves all cores to them; Tune insists that it takes something, were it a byte.
    needs: dict[str, float] = (
        {"CPU": 0, "memory": 1} if many else {"CPU": scale.cpus, "GPU": int(scale.device == "cuda")}
    )
    parallel = scale.parallel
    if many and parallel is None:
        cores = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
        parallel = max(1, int(cores // (scale.cpus * scale.workers)))
    where, commit = to_dict(scale), current_commit()

    def trial(config: dict[str, Any]) -> None:
        one = config["trial"]
        try:
            conduct(from_dict(one["experiment"]), Scale(**where), one["name"], one["until_round"], commit)
        except failure.LASTING as error:  # reported, not raised: Tune would try again, to fail again
            tune.report({"failure": failure.to_plain(error)})
        except Exception as error:
            raise RuntimeError(f"trial {one['name']} failed: {error}") from error
        else:
            tune.report({"failure": None})

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
    with redirect_stdout(io.StringIO()):  # Tune's banner, which no setting turns off
        results = tuner.fit()
    for error in results.errors:
        raise error
    for result in (results[number] for number in range(len(results))):
        if result.metrics and result.metrics["failure"]:
            raise failure.from_plain(result.metrics["failure"])


def conduct(experiment: Experiment, scale: Scale, name: str, until_round: int | None, commit: str) -> RunSummary:
    """One trial: in this process where one worker is enough, else under Ray Train."""
    if scale.workers > 1:
        return fit(experiment, scale, name, until_round=until_round)
    worker = SoloWorker(Path(scale.runs_dir) / name, scale.device)
    return begin(experiment, scale, worker, name=name, until_round=until_round, commit=commit)
