"""python -m jobs.leaderboard: who leads each contest, in the terminal and on a page."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from jobs.cli import run
from pipeline.choices import suggest
from pipeline.contracts import InputError
from pipeline.scale import LOCAL
from pipeline.tracking import leaderboard, page
from pipeline.tracking.tracker import read_curves, read_summaries, write_whole


@click.command()
@click.option("--runs", type=click.Path(path_type=Path), default=LOCAL.runs_dir, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON line a family instead of tables.")
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="Default: leaderboard.html among the runs.")
@click.option("--contest", help="Print only this one; what stands before # is enough.")
def main(runs: Path, as_json: bool, page_path: Path | None, contest: str | None) -> None:
    """Rank the families of every contest and write the page."""
    show(runs, as_json=as_json, page_path=page_path, contest=contest)


def show(runs: Path, *, as_json: bool = False, page_path: Path | None = None, contest: str | None = None) -> None:
    """Prints `contest` (all where None), writes the page of all. Raises InputError where there is nothing to rank."""
    with warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("always")
        summaries, curves = read_summaries(runs), read_curves(runs)
    for warning in left_out:
        click.echo(f"warning: {warning.message}", err=True)
    standings = leaderboard.rank(summaries)
    if not standings:
        trials = f" ({len(summaries)} search trials are there)" if summaries else ""
        raise InputError(f"no final run has finished below {runs}{trials}: `python -m jobs.sweep` makes some")
    shown = [row for row in standings if contest in (None, row.contest, row.contest.rpartition("#")[0])]
    if not shown:
        known = sorted({row.contest for row in standings})
        raise InputError(f"no contest {contest!r} below {runs}{suggest(str(contest), known)}")
    if as_json:
        click.echo("\n".join(leaderboard.to_json(standing) for standing in shown))
    else:
        console = Console()
        for grid in leaderboard.table(shown):
            console.print(grid)
    page_path = page_path or runs / "leaderboard.html"
    page_path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page_path, page.render(standings, summaries, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", curves))
    click.echo(f"page: {page_path}", err=True)


if __name__ == "__main__":
    run(main)
