from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from itertools import permutations
from statistics import stdev

import pytest
from rich.console import Console

from pipeline.contracts import InputError, RunSummary
from pipeline.tracking.leaderboard import Standing, amount, decimals, rank, score_text, table, to_json

Row = Callable[..., RunSummary]


def order(standings: list[Standing]) -> list[tuple[str, int, str]]:
    return [(standing.contest, standing.rank, standing.family) for standing in standings]


def text(standings: list[Standing], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for grid in table(standings):
        console.print(grid)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("higher", "first"), [(True, "gru"), (False, "rnn")])
def test_the_metric_says_which_direction_wins(row: Row, higher: bool, first: str) -> None:
    rows = [
        row(family=family, score=score, higher_is_better=higher)
        for family, score in (("lstm", 0.6), ("gru", 0.9), ("rnn", 0.1))
    ]
    for shuffled in permutations(rows):
        ranked = [standing.family for standing in rank(shuffled)]
        assert (ranked[0], ranked[1]) == (first, "lstm")


def test_a_family_stands_by_the_mean_and_the_sample_spread_of_its_seeds(row: Row) -> None:
    scores = [0.5, 0.6, 0.9]
    (standing,) = rank([row(seed=seed, score=score) for seed, score in enumerate(scores)])
    assert standing.score_mean == pytest.approx(2 / 3)
    assert standing.score_spread == pytest.approx(stdev(scores))
    assert (standing.seeds, standing.runs) == (3, ("lstm-0", "lstm-1", "lstm-2"))


def test_one_seed_has_no_spread(row: Row) -> None:
    (standing,) = rank([row()])
    assert standing.score_spread is None
    assert json.loads(to_json(standing))["score_spread"] is None
    assert "0.5000 ± –" in text([standing])


def test_equal_means_are_ranked_by_fewer_parameters(row: Row) -> None:
    rows = [row(family="a", parameters=20), row(family="b", parameters=10), row(family="c", parameters=20)]
    assert [standing.family for standing in rank(rows)] == ["b", "a", "c"]


def test_contests_are_ranked_apart_and_sorted_by_name(row: Row) -> None:
    rows = [
        row(contest="z", family="lstm", score=0.1, metric="loss", higher_is_better=False),
        row(contest="a", family="lstm", score=0.1),
        row(contest="z", family="gru", score=0.2, metric="loss", higher_is_better=False),
        row(contest="a", family="gru", score=0.2),
    ]
    assert order(rank(rows)) == [("a", 1, "gru"), ("a", 2, "lstm"), ("z", 1, "lstm"), ("z", 2, "gru")]


def test_search_trials_are_counted_and_paid_for_but_never_ranked(row: Row) -> None:
    trials = [row(phase="search", split="valid", score=1.0, seed=seed, device_seconds=3.0) for seed in range(4)]
    (standing,) = rank([*trials, row(seed=0, device_seconds=8.0), row(seed=1, device_seconds=10.0)])
    assert (standing.score_mean, standing.trials, standing.seeds) == (0.5, 4, 2)
    assert (standing.device_seconds, standing.total_device_seconds) == (9.0, 30.0)
    assert rank(trials) == []
    assert rank([]) == []


def test_a_seed_that_was_run_again_counts_once_with_its_last_run(row: Row) -> None:
    rows = [
        row(run="new", score=0.8, finished_at="2026-01-01T11:30:00+01:00"),
        row(run="newest", score=0.9, finished_at="2026-01-01T10:45:00Z"),
        row(run="old", score=0.1, finished_at="2026-01-01T10:00:00"),
    ]
    for shuffled in permutations(rows):
        (standing,) = rank(shuffled)
        assert (standing.runs, standing.score_mean, standing.total_device_seconds) == (("newest",), 0.9, 24.0)


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_a_diverged_family_comes_last_in_either_direction(row: Row, lost: float, higher: bool) -> None:
    rows = [
        row(family="a", seed=0, score=lost, higher_is_better=higher),
        row(family="a", seed=1, score=0.9, higher_is_better=higher),
        row(family="b", score=0.1, higher_is_better=higher),
    ]
    good, bad = rank(rows)
    assert (good.family, bad.family) == ("b", "a")
    assert json.loads(to_json(bad), parse_constant=pytest.fail)["score_mean"] is None
    assert "nan" not in text([good, bad])


@pytest.mark.parametrize("other", [{"metric": "f1"}, {"split": "valid"}, {"higher_is_better": False}])
def test_runs_that_are_scored_differently_are_not_ranked_together(row: Row, other: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"contest words#abc123: run a .*accuracy on test.* run b .*ranked together"):
        rank([row(run="a", family="gru"), row(run="b", **other)])


def test_the_json_line_holds_what_a_program_needs(row: Row) -> None:
    (standing,) = rank([row()])
    line = to_json(standing)
    assert "\n" not in line
    assert json.loads(line) == {
        "contest": "words#abc123",
        "rank": 1,
        "family": "lstm",
        "metric": "accuracy",
        "score_mean": 0.5,
        "score_spread": None,
        "seeds": 1,
        "parameters": 100_000,
        "samples_per_second": 80.0,
        "device_seconds": 8.0,
        "trials": 0,
    }


def test_the_terminal_shows_one_whole_table_a_contest_in_eighty_columns(row: Row) -> None:
    rows = [
        row(contest=contest, family=family, seed=seed, score=0.5 + seed / 100, device_seconds=123456.0)
        for contest in ("words#1", "words#2")
        for family in ("transformer", "lstm")
        for seed in range(3)
    ]
    shown = text(rank(rows))
    assert shown.count("accuracy, higher is better") == 2
    assert shown.count("0.5100 ± 0.0100") == 4
    assert "…" not in shown


def test_a_name_with_markup_is_shown_as_it_is(row: Row) -> None:
    shown = text(rank([row(contest="[red]c[/red]", family="[bold]x", metric="[/]m")]))
    assert "[red]c[/red]" in shown
    assert "[bold]x" in shown
    assert "[/]m" in shown


@pytest.mark.parametrize(
    ("scores", "digits"),
    [([0.93, 0.1], 4), ([1.0], 3), ([45.3], 2), ([12345.0], 0), ([0.0012], 6), ([1e-30], 8), ([0.0], 4), ([], 4)],
)
def test_a_column_shows_four_digits_of_its_largest_score(scores: list[float], digits: int) -> None:
    assert decimals(scores) == digits
    assert decimals([*scores, math.nan]) == digits


def test_numbers_are_written_for_people() -> None:
    assert [amount(value) for value in (1234567.8, 99.96, 12.34, 0.1234, 3.0, math.nan)] == [
        "1,234,568",
        "100",
        "12.3",
        "0.123",
        "3",
        "–",
    ]
    assert score_text(0.5, 0.01, 3) == "0.500 ± 0.010"
