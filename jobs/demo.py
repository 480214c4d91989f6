"""`python -m jobs.demo [FOLDER]`: from recordings to a leaderboard of four families, in one command.

Without a folder it writes small wav files first; with one (a sub-folder for each label) it takes those recordings.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from cluster.connect import connected
from jobs.cli import experiment_of, run, scale_of, scale_option, tell_holes
from jobs.leaderboard import show
from pipeline.data.ingest import ingest
from pipeline.experiment import Experiment, override
from pipeline.training.sweep import sweep


@click.command()
@click.argument("folder", required=False)
@scale_option
def main(folder: str | None, scale: tuple[str, ...]) -> None:
    """Ingests, pits the families against each other, prints the leaderboard and names its page."""
    where = scale_of(scale)
    experiment = experiment_of("spoken_words") if folder is None else _own(folder)
    experiment.check()
    with connected(where):
        tell_holes(ingest(experiment.dataset, where), where)
        sweep(experiment, where)
    show(Path(where.runs_dir), contest=experiment.contest)


def _own(folder: str) -> Experiment:
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(folder).resolve().name).strip("_-") or "recordings"
    experiment = experiment_of("recordings")
    for path, value in {"corpus.path": folder, "dataset.name": name, "name": name}.items():
        experiment = override(experiment, path, value)
    return experiment


if __name__ == "__main__":
    run(main)
