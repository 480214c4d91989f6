"""`python -m jobs.train RECIPE [KEY=VALUE]...`: one run of one family, trained and scored."""

from __future__ import annotations

import click

from cluster.connect import connected
from jobs.cli import experiment_of, recipe_command, run, scale_of, tell_holes
from pipeline.data.ingest import ensure
from pipeline.training.fit import fit


@recipe_command
@click.option("--name", help="The run's name; the same name goes on where it stopped. Default: from the settings.")
def main(recipe: str, overrides: tuple[str, ...], scale: tuple[str, ...], name: str | None) -> None:
    """Trains the model of RECIPE (model=lstm picks another family); ingests the dataset first where it is absent."""
    experiment, where = experiment_of(recipe, overrides), scale_of(scale)
    experiment.check()
    with connected(where):
        tell_holes(ensure(experiment.dataset, where), where)
        summary = fit(experiment, where, name)
    click.echo(
        f"{summary.run}: {summary.split} {summary.metric} {summary.score:.4f}, {summary.parameters:,} parameters, "
        f"{summary.samples_per_second:,.0f} samples/s, {summary.seconds:.0f} s ({where.runs_dir}/{summary.run})"
    )


if __name__ == "__main__":
    run(main)
