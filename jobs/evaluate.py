"""`python -m jobs.evaluate RUN [--split test]`: scores a finished run's model again, on any number of workers."""

from __future__ import annotations

import json

import click

from cluster.connect import connected
from jobs.cli import run, scale_of, scale_option
from pipeline.training.fit import score


@click.command()
@click.argument("name", metavar="RUN")
@click.option("--split", default="test", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The metrics as one JSON line.")
@scale_option
def main(name: str, split: str, as_json: bool, scale: tuple[str, ...]) -> None:
    """Scores the model of RUN (its name below the runs, or the path of a checkpoint) on a split."""
    where = scale_of(scale)
    with connected(where):
        metrics = score(name, split, where)
    shown = json.dumps(metrics) if as_json else ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
    click.echo(shown if as_json else f"{name}: {split} {shown}")


if __name__ == "__main__":
    run(main)
