"""What a search decides, as arithmetic; tests/cluster runs it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.choices import load, names
from pipeline.contracts import FieldInfo, InputError, RunSummary
from pipeline.experiment import Experiment, choose, override, to_dict
from pipeline.training.run import standing
from pipeline.training.sweep import KEEP, as_family, draw, keep, rungs
from tests.words import of_family, words

LEARNED = {
    "audio": FieldInfo(dtype="float32", shape=(40,)),
    "label": FieldInfo(dtype="int64", shape=(), vocabulary=("a", "b", "c")),
}


def trials(family: str, count: int, **changes: Any) -> dict[int, Experiment]:
    return draw(of_family(family, {"budget.trials": count, **changes}), LEARNED)


def ended(score: float, loss: float = 1.0, higher: bool = True) -> RunSummary:
    """The summary of a trial, as far as a search looks at it."""
    return RunSummary(
        run="trial",
        contest="words#abc123",
        family="gru",
        phase="search",
        seed=0,
        split="valid",
        metric="accuracy",
        score=score,
        higher_is_better=higher,
        metrics={"loss": loss},
        parameters=1,
        steps=1,
        samples=1,
        seconds=1.0,
        device_seconds=1.0,
        samples_per_second=1.0,
        fingerprint="",
        settings={},
        commit="",
        finished_at="2026-01-01T10:00:00+00:00",
    )


@pytest.mark.parametrize("count", [2, 4, 9])
@pytest.mark.parametrize("family", names("models"))
def test_every_family_draws_as_many_different_trials_out_of_its_own_space(family: str, count: int) -> None:
    drawn = trials(family, count)
    assert list(drawn) == list(range(count))
    assert len({trial.fingerprint for trial in drawn.values()}) == count
    for trial in drawn.values():
        for path, values in load("models", family).search.items():
            room, _, setting = path.partition(".")
            given = trial.model.settings[setting] if room == "model" else getattr(getattr(trial, room), setting)
            assert given in values, path


def test_the_same_seed_draws_the_same_trials() -> None:
    assert trials("gru", 4) == trials("gru", 4)
    assert trials("gru", 4) != trials("gru", 4, seed=1)


def test_fewer_trials_are_the_first_of_more() -> None:
    few, many = trials("lstm", 2), trials("lstm", 8)
    assert all(override(few[number], "budget.trials", 8) == trial for number, trial in list(many.items())[:2])


def test_trials_differ_in_nothing_but_what_is_searched() -> None:
    searched = {path.partition(".")[2] for path in load("models", "gru").search}
    for trial in trials("gru", 4).values():
        plain, asked = to_dict(trial), to_dict(of_family("gru", {"budget.trials": 4}))
        for tree in (plain, asked):
            tree["optim"] = {key: value for key, value in tree["optim"].items() if key not in searched}
            tree["model"] = {key: value for key, value in tree["model"]["settings"].items() if key not in searched}
        assert plain == asked


def test_a_single_trial_is_the_recipe_itself() -> None:
    assert trials("gru", 1) == {0: of_family("gru", {"budget.trials": 1})}


def test_more_trials_than_points_are_refused() -> None:
    space = math.prod(len(values) for values in load("models", "gru").search.values())
    assert len(trials("gru", space)) == space
    with pytest.raises(InputError, match=rf"budget.trials = {space + 1}: gru has only {space} different settings"):
        trials("gru", space + 1)


def test_points_that_cannot_meet_the_parameter_budget_are_passed_over() -> None:
    """100,000 parameters: no Transformer of three layers and four or eight heads comes within 2 %."""
    experiment = words({"model": choose("transformer"), "budget.parameters": 100_000, "budget.trials": 20})
    heads = {
        (trial.model.settings["layers"], trial.model.settings["heads"]) for trial in draw(experiment, LEARNED).values()
    }
    assert heads and not heads & {(3, 4), (3, 8)}
    with pytest.raises(InputError, match=r"has only \d+ different settings to try at 100 parameters"):
        draw(override(experiment, "budget.parameters", 100), LEARNED)


def test_a_family_takes_over_the_settings_it_knows() -> None:
    experiment = words({"model": choose("lstm", width=32, layers=3, residual=False)})
    assert as_family(experiment, "lstm") is experiment
    assert as_family(experiment, "transformer").model == choose("transformer", width=32, layers=3)
    assert as_family(experiment, "gru").model == choose("gru", width=32, layers=3, residual=False)
    with pytest.raises(InputError, match="did you mean 'gru'"):
        as_family(experiment, "grru")


@pytest.mark.parametrize(
    ("rounds", "count", "expected"),
    [(10, 1, []), (10, 2, [10]), (10, 3, [10]), (10, 4, [5, 10]), (10, 8, [3, 5, 10]), (1, 4, [1, 1]), (7, 5, [4, 7])],
)
def test_rungs_halve_the_rounds_from_the_end(rounds: int, count: int, expected: list[int]) -> None:
    assert rungs(rounds, count) == expected


@pytest.mark.parametrize("count", range(2, 20))
def test_behind_the_last_rung_one_trial_is_left(count: int) -> None:
    alive = count
    for _ in rungs(10, count):
        alive = max(1, alive // KEEP)
    assert alive == 1


def test_the_better_half_goes_on_best_first() -> None:
    scores = {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2}
    assert keep({number: ended(score) for number, score in scores.items()}) == [1, 2]
    lower = {number: ended(score, higher=False) for number, score in scores.items()}
    assert keep(lower) == [0, 3]


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (9, 4)])
def test_half_go_on_and_at_least_one(count: int, kept: int) -> None:
    assert len(keep({number: ended(number) for number in range(count)})) == kept


def test_ties_go_to_the_lower_loss_and_then_to_the_lower_number() -> None:
    losses = {0: 2.0, 1: 1.0, 2: 1.0, 3: 3.0}
    for higher in (True, False):
        tied = {number: ended(0.5, loss, higher) for number, loss in losses.items()}
        assert keep(tied) == [1, 2]


def test_a_trial_that_diverged_is_the_worst() -> None:
    nan = math.nan
    for higher in (True, False):
        scores = {0: (nan, nan), 1: (0.0, nan), 2: (0.0, 9.0), 3: (nan, 1.0)}
        diverged = {number: ended(score, loss, higher) for number, (score, loss) in scores.items()}
        assert keep(diverged) == [2, 1]


def test_a_better_round_stands_higher() -> None:
    assert standing(0.5, 9.0, True) > standing(0.4, 1.0, True)
    assert standing(0.4, 9.0, False) > standing(0.5, 1.0, False)
    assert standing(0.5, 1.0, True) > standing(0.5, 2.0, True) > standing(0.5, math.nan, True)
    assert not standing(0.5, 1.0, True) > standing(0.5, 1.0, True)
    assert standing(0.0, 99.0, True) > standing(math.nan, 0.0, True)
