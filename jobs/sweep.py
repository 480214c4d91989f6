"""`python -m jobs.sweep RECIPE [KEY=VALUE]...`: the families against each other under equal budgets."""

from __future__ import annotations

from pathlib import Path

from cluster.connect import connected
from jobs.cli import experiment_of, recipe_command, run, scale_of, tell_holes
from jobs.leaderboard import show
from pipeline.data.ingest import ensure
from pipeline.training.sweep import sweep


@recipe_command
def main(recipe: str, overrides: tuple[str, ...], scale: tuple[str, ...]) -> None:
    """Searches settings for every family of RECIPE, trains the winners with several seeds, prints the leaderboard."""
    experiment, where = experiment_of(recipe, overrides), scale_of(scale)
    experiment.check()
    with connected(where):
        tell_holes(ensure(experiment.dataset, where), where)
        sweep(experiment, where)
    show(Path(where.runs_dir), contest=experiment.contest)


if __name__ == "__main__":
    run(main)
