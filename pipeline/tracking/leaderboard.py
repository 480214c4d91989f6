"""Finished runs -> ranked standings; pure functions over RunSummary rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from statistics import fmean, stdev

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.contracts import InputError, RunSummary

NOTHING = "–"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What one family reached in one contest, over the final runs that count (`counted`): one a seed.

    `score_mean` is NaN where a seed's score is not finite; `score_spread` is the sample standard deviation over seeds,
    None where there is only one. `samples_per_second` and `device_seconds` are means over those runs;
    `total_device_seconds` is all that the family was given in the contest: every final run and search trial.
    """

    rank: int
    contest: str
    family: str
    metric: str
    higher_is_better: bool
    score_mean: float
    score_spread: float | None
    seeds: int
    parameters: int
    samples_per_second: float
    device_seconds: float
    total_device_seconds: float
    trials: int
    runs: tuple[str, ...]


def counted(summaries: Sequence[RunSummary]) -> list[RunSummary]:
    """The final runs that count: of each contest, family and seed the one finished last, in that order."""
    latest: dict[tuple[str, str, int], RunSummary] = {}
    for row in sorted(summaries, key=lambda row: (finished(row), row.run)):
        if row.phase == "final":
            latest[row.contest, row.family, row.seed] = row
    return [latest[key] for key in sorted(latest)]


def rank(summaries: Sequence[RunSummary]) -> list[Standing]:
    """Contests by name; in each the families by mean score in the metric's direction, then by fewer parameters.

    A mean that is not finite comes last. Raises InputError where runs of one contest are scored differently.
    """
    standings = []
    for _, group in groupby(counted(summaries), key=lambda row: row.contest):
        rows = list(group)
        _comparable(rows)
        families = [list(of_family) for _, of_family in groupby(rows, key=lambda row: row.family)]
        ordered = sorted(families, key=_order)
        standings += [_standing(place, final, summaries) for place, final in enumerate(ordered, start=1)]
    return standings


def finished(row: RunSummary) -> datetime:
    """When the run finished, in UTC; a time without a zone is taken for UTC."""
    when = datetime.fromisoformat(row.finished_at)
    return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)


def to_json(standing: Standing) -> str:
    """One JSON line; null where there is no spread or no finite mean."""
    names = ("contest", "rank", "family", "metric", "score_mean", "score_spread", "seeds", "parameters")
    plain = {name: getattr(standing, name) for name in (*names, "samples_per_second", "device_seconds", "trials")}
    return json.dumps({name: None if _lost(value) else value for name, value in plain.items()}, allow_nan=False)


def table(standings: Sequence[Standing]) -> list[Table]:
    """One table a contest, for the terminal."""
    return [_table(list(group)) for _, group in groupby(standings, key=lambda standing: standing.contest)]


def decimals(scores: Sequence[float]) -> int:
    """Digits behind the point that show four significant ones of the largest score."""
    largest = max((abs(score) for score in scores if math.isfinite(score)), default=0.0)
    return min(8, max(0, 3 - math.floor(math.log10(largest)))) if largest else 4


def score_text(mean: float, spread: float | None, digits: int) -> str:
    """`0.9120 ± 0.0041`; a dash for what there is not."""
    if not math.isfinite(mean):
        return NOTHING
    return f"{mean:.{digits}f} ± " + (NOTHING if spread is None else f"{spread:.{digits}f}")


def amount(value: float) -> str:
    """`12,345`, `12.3`, `0.123`: three significant digits or all before the point."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _standing(place: int, final: Sequence[RunSummary], summaries: Sequence[RunSummary]) -> Standing:
    last = max(final, key=finished)
    scores = [row.score for row in final]
    whole = all(math.isfinite(score) for score in scores)
    everything = [row for row in summaries if (row.contest, row.family) == (last.contest, last.family)]
    return Standing(
        rank=place,
        contest=last.contest,
        family=last.family,
        metric=last.metric,
        higher_is_better=last.higher_is_better,
        score_mean=fmean(scores) if whole else math.nan,
        score_spread=stdev(scores) if whole and len(scores) > 1 else None,
        seeds=len(final),
        parameters=last.parameters,
        samples_per_second=fmean(row.samples_per_second for row in final),
        device_seconds=fmean(row.device_seconds for row in final),
        total_device_seconds=math.fsum(row.device_seconds for row in everything),
        trials=sum(row.phase == "search" for row in everything),
        runs=tuple(row.run for row in final),
    )


def _order(final: Sequence[RunSummary]) -> tuple[bool, float, int, str]:
    mean = fmean(row.score for row in final)
    last = max(final, key=finished)
    better = -mean if last.higher_is_better else mean
    return not math.isfinite(mean), better if math.isfinite(mean) else 0.0, last.parameters, last.family


def _comparable(rows: Sequence[RunSummary]) -> None:
    first = rows[0]
    for row in rows:
        if _terms(row) != _terms(first):
            raise InputError(
                f"contest {row.contest}: run {first.run} is scored by {_terms(first)}, run {row.run} by {_terms(row)};"
                " they cannot be ranked together"
            )


def _terms(row: RunSummary) -> str:
    return f"{row.metric} on {row.split} ({'higher' if row.higher_is_better else 'lower'} is better)"


def _lost(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _table(standings: Sequence[Standing]) -> Table:
    first = standings[0]
    digits = decimals([standing.score_mean for standing in standings])
    direction = "higher is better" if first.higher_is_better else "lower is better"
    title = Text.assemble((first.contest, "bold"), f"  {first.metric}, {direction}")
    grid = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    grid.add_column("#", justify="right", no_wrap=True)
    grid.add_column("family", no_wrap=True)
    for name in ("score", "seeds", "params", "samples\na second", "device-s\na run", "device-s\nin all", "trials"):
        grid.add_column(name, justify="right", no_wrap=True)
    for standing in standings:
        cells = [
            str(standing.rank),
            standing.family,
            score_text(standing.score_mean, standing.score_spread, digits),
            str(standing.seeds),
            f"{standing.parameters:,}",
            amount(standing.samples_per_second),
            amount(standing.device_seconds),
            amount(standing.total_device_seconds),
            str(standing.trials),
        ]
        grid.add_row(*(Text(cell) for cell in cells), style="bold" if standing.rank == 1 else "")
    return grid
