"""`python -m jobs.ingest RECIPE [KEY=VALUE]...`: makes the recipe's shard set."""

from __future__ import annotations

import click

from cluster.connect import connected
from jobs.cli import experiment_of, recipe_command, run, scale_of, tell_holes
from pipeline.data.ingest import ingest


@recipe_command
@click.option("--tolerance", default=0.1, show_default=True, help="Share of samples that may be quarantined.")
def main(recipe: str, overrides: tuple[str, ...], scale: tuple[str, ...], tolerance: float) -> None:
    """Reads the corpus of RECIPE and writes its shards."""
    experiment, where = experiment_of(recipe, overrides), scale_of(scale)
    experiment.dataset.check()
    with connected(where):
        manifest = ingest(experiment.dataset, where, tolerance)
    splits = ", ".join(f"{split} {count}" for split, count in manifest.splits.items())
    click.echo(f"{where.data_dir}/{manifest.identity}: {len(manifest.shards)} shards; samples: {splits}")
    tell_holes(manifest, where)


if __name__ == "__main__":
    run(main)
