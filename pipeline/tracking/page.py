"""The leaderboard as one static HTML file: no script, no outside reference, light and dark.

Numbers and coordinates are made here, `page.html` lays them out and escapes whatever came from a run. Lengths are in
SVG user units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from pipeline.contracts import RunSummary
from pipeline.tracking.leaderboard import NOTHING, Standing, amount, counted, decimals, finished, score_text

Points = Sequence[tuple[float, float]]

DOTS_WIDTH = 200.0
CURVES_WIDTH, CURVES_HEIGHT = 760.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 16.0, 14.0, 44.0
COLOURS = 6  # as many as page.html has


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear scale from values to positions, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    digits: int

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    @property
    def marks(self) -> list[tuple[float, str]]:
        return [(self.at(tick), f"{tick:,.{self.digits}f}") for tick in self.ticks]


def axis(values: Sequence[float], start: float, end: float, most: int, room: float = 0.08) -> Axis | None:
    """A scale around the finite values, with at most about `most` ticks and `room` (a share) on both sides.

    None where no value is finite.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - (abs(low) or 1.0) * 0.05, high + (abs(high) or 1.0) * 0.05
    low, high = low - (high - low) * room, high + (high - low) * room
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    ticks = tuple(k * stride for k in range(math.ceil(low / stride), math.floor(high / stride) + 1))
    digits = max(0, -math.floor(math.log10(stride) + 1e-9))
    return Axis(low=low, high=high, start=start, end=end, ticks=ticks, digits=digits)


def render(
    standings: Sequence[Standing],
    summaries: Sequence[RunSummary],
    generated_at: str,
    curves: Mapping[str, Points] | None = None,
) -> str:
    """The whole page. `curves`: by run, (samples seen, validation score) in the order they were reached."""
    families = sorted({standing.family for standing in standings})
    places = {family: place % COLOURS for place, family in enumerate(families)}
    contests = [
        _contest(index, list(group), summaries, curves or {}, places)
        for index, (_, group) in enumerate(groupby(standings, key=lambda standing: standing.contest))
    ]
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    num_runs = sum(contest["num_runs"] for contest in contests)
    return templates.get_template("page.html").render(contests=contests, generated_at=generated_at, num_runs=num_runs)


def _contest(
    index: int,
    standings: Sequence[Standing],
    summaries: Sequence[RunSummary],
    curves: Mapping[str, Points],
    places: Mapping[str, int],
) -> dict[str, Any]:
    first = standings[0]
    rows = sorted((row for row in summaries if row.contest == first.contest), key=_reading_order)
    final = counted(rows)
    digits = decimals([row.score for row in final])
    scale = axis([row.score for row in final], 10.0, DOTS_WIDTH - 10.0, 3)
    return {
        "id": f"contest-{index + 1}",
        "name": first.contest,
        "metric": first.metric,
        "split": final[0].split,
        "direction": "higher is better" if first.higher_is_better else "lower is better",
        "verdict": _verdict(standings, digits),
        "num_runs": len(rows),
        "ticks": scale.marks if scale else [],
        "standings": [_line(standing, final, scale, digits, places) for standing in standings],
        "curves": _curves([(row, curves[row.run]) for row in final if row.run in curves], places),
        "winner": first.family,
        "settings": _settings([row for row in final if row.family == first.family]),
        "details": [
            ("Final runs", [_run(row, digits, row in final) for row in rows if row.phase == "final"]),
            ("Search trials", [_run(row, digits, True) for row in rows if row.phase != "final"]),
        ],
    }


def _line(
    standing: Standing, final: Sequence[RunSummary], scale: Axis | None, digits: int, places: Mapping[str, int]
) -> dict[str, Any]:
    scores = [(row.seed, row.score) for row in final if row.family == standing.family]
    said = ", ".join(f"seed {seed}: {_score(score, digits)}" for seed, score in scores)
    mean = standing.score_mean
    return {
        "rank": standing.rank,
        "family": standing.family,
        "score": score_text(mean, standing.score_spread, digits),
        "dots": [scale.at(score) for _, score in scores if scale and math.isfinite(score)],
        "mean": scale.at(mean) if scale and math.isfinite(mean) else None,
        "colour": places[standing.family],
        "said": f"{standing.family}: {said}",
        "seeds": standing.seeds,
        "parameters": f"{standing.parameters:,}",
        "samples_per_second": amount(standing.samples_per_second),
        "device_seconds": amount(standing.device_seconds),
        "total_device_seconds": amount(standing.total_device_seconds),
        "trials": standing.trials,
    }


def _verdict(standings: Sequence[Standing], digits: int) -> str:
    """Who leads, and whether the lead is more than the seeds' own noise."""
    first = standings[0]
    if not math.isfinite(first.score_mean):
        return "No family reached a finite score."
    seeds = f"{first.seeds} seed{'s' if first.seeds != 1 else ''}"
    said = f"{first.family} leads with {score_text(first.score_mean, first.score_spread, digits)} over {seeds}"
    if len(standings) < 2 or not math.isfinite(standings[1].score_mean):
        return said + "."
    second = standings[1]
    gap = abs(first.score_mean - second.score_mean)
    said += f", {gap:.{digits}f} ahead of {second.family}"
    spreads = [spread for spread in (first.score_spread, second.score_spread) if spread is not None]
    if not spreads:
        return said + "; one seed each says nothing of the noise."
    return said + ("." if gap > max(spreads) else ", which is within the spread between seeds.")


def _curves(runs: Sequence[tuple[RunSummary, Points]], places: Mapping[str, int]) -> dict[str, Any] | None:
    points = [point for _, curve in runs for point in curve if all(map(math.isfinite, point))]
    across = axis([0.0, *(x for x, _ in points)], LEFT, CURVES_WIDTH - RIGHT, 6, room=0.0)
    up = axis([y for _, y in points], CURVES_HEIGHT - BOTTOM, TOP, 7, room=0.04)
    if across is None or up is None:
        return None
    lines = []
    for row, curve in runs:
        drawn = [f"{across.at(x)},{up.at(y)}" for x, y in curve if math.isfinite(x) and math.isfinite(y)]
        name = f"{row.family}, seed {row.seed}"
        lines.append({"name": name, "points": " ".join(drawn), "colour": places[row.family]})
    drawn_families = {row.family for row, _ in runs}
    return {
        "lines": lines,
        "across": across.marks,
        "up": up.marks,
        "legend": [(family, colour) for family, colour in places.items() if family in drawn_families],
    }


def _settings(runs: Sequence[RunSummary]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The last finished run's settings, grouped by their first name; what differs between seeds says so."""
    trees = [dict(_leaves(row.settings)) for row in sorted(runs, key=finished)]
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, value in trees[-1].items():
        if path == "seed":
            continue
        head, _, rest = path.partition(".")
        same = all(tree.get(path) == value for tree in trees)
        groups.setdefault(head if rest else "experiment", []).append(
            (rest or head, value if same else f"{value} (differs between seeds)")
        )
    return sorted(groups.items(), key=lambda group: len(group[1]))


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list | tuple) and any(isinstance(item, Mapping) for item in node):
        for index, item in enumerate(node):
            yield from _leaves(item, f"{path}.{index}")
    elif isinstance(node, str):
        yield path, node
    else:
        yield path, json.dumps(node, default=str)


def _run(row: RunSummary, digits: int, counts: bool) -> dict[str, Any]:
    return {
        "run": row.run,
        "family": row.family,
        "seed": row.seed,
        "score": _score(row.score, digits),
        "counts": counts,
        "split": row.split,
        "commit": row.commit,
        "fingerprint": row.fingerprint,
        "finished_at": f"{finished(row):%Y-%m-%d %H:%M}",
        "metrics": [(name, f"{value:.6g}") for name, value in sorted(row.metrics.items())],
    }


def _reading_order(row: RunSummary) -> tuple[str, int, str]:
    return row.family, row.seed, row.run


def _score(score: float, digits: int) -> str:
    return f"{score:.{digits}f}" if math.isfinite(score) else NOTHING
