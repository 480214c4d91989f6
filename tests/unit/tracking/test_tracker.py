from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.contracts import DataError, RunSummary
from pipeline.protocols import Tracker
from pipeline.tracking.tracker import METRICS, SUMMARY, JsonlTracker, Many, read_curves, read_summaries, read_summary

Row = Callable[..., RunSummary]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / METRICS).read_text().splitlines()]


def logged(run_dir: Path, steps: int) -> JsonlTracker:
    tracker = JsonlTracker(run_dir, now=lambda: 7.5)
    for step in range(1, steps + 1):
        tracker.log({"loss": 1 / step}, step=step, samples=32 * step)
    return tracker


def test_every_log_call_is_one_line_on_disk_at_once(tmp_path: Path) -> None:
    logged(tmp_path / "run", steps=2)
    assert lines(tmp_path / "run") == [
        {"step": 1, "samples": 32, "time": 7.5, "loss": 1.0},
        {"step": 2, "samples": 64, "time": 7.5, "loss": 0.5},
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_written_as_null(tmp_path: Path, value: float) -> None:
    JsonlTracker(tmp_path).log({"loss": value}, step=1, samples=1)
    assert lines(tmp_path)[0]["loss"] is None


def test_a_metric_cannot_take_the_place_of_the_step(tmp_path: Path) -> None:
    JsonlTracker(tmp_path, now=lambda: 1.0).log({"step": 99.0, "time": 3.0}, step=4, samples=1)
    assert lines(tmp_path) == [{"step": 4, "samples": 1, "time": 1.0}]


def test_a_resumed_run_has_no_line_twice(tmp_path: Path) -> None:
    logged(tmp_path, steps=5)
    again = JsonlTracker(tmp_path, now=lambda: 7.5)
    again.rewind(3)
    for step in (4, 5, 6):
        again.log({"loss": 1 / step}, step=step, samples=32 * step)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_rewinding_to_the_start_forgets_everything_and_needs_no_file(tmp_path: Path) -> None:
    JsonlTracker(tmp_path).rewind(0)
    logged(tmp_path, steps=2).rewind(0)
    assert lines(tmp_path) == []


@pytest.mark.parametrize("kept", range(1, 30))
def test_a_line_torn_anywhere_by_a_kill_is_forgotten(tmp_path: Path, kept: int) -> None:
    tracker = logged(tmp_path, steps=3)
    whole = (tmp_path / METRICS).read_bytes().splitlines(keepends=True)
    (tmp_path / METRICS).write_bytes(b"".join(whole[:2]) + whole[2][:kept])
    tracker.rewind(3)
    tracker.log({}, step=3, samples=96)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    tracker = logged(tmp_path, steps=2)
    (tmp_path / METRICS).write_bytes((tmp_path / METRICS).read_bytes().rstrip())
    tracker.rewind(2)
    tracker.log({}, step=3, samples=96)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    tracker = logged(tmp_path, steps=2)
    first, second = (tmp_path / METRICS).read_text().splitlines()
    (tmp_path / METRICS).write_text(f"{first}\n[1, 2]\n{second}\n")
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 2 is left out"):
        tracker.rewind(2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_kill_while_rewinding_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = logged(tmp_path, steps=3)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        tracker.rewind(1)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_summary_comes_back_as_it_was(tmp_path: Path, row: Row) -> None:
    JsonlTracker(tmp_path / "a").finish(row(seed=3))
    assert read_summaries(tmp_path) == [row(seed=3)]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [SUMMARY]


def test_a_summary_of_a_diverged_run_is_plain_json_and_comes_back_as_nan(tmp_path: Path, row: Row) -> None:
    JsonlTracker(tmp_path).finish(row(score=math.nan))
    plain = json.loads((tmp_path / SUMMARY).read_text(), parse_constant=pytest.fail)
    assert plain["score"] is None
    (back,) = read_summaries(tmp_path)
    assert math.isnan(back.score)
    assert math.isnan(back.metrics["accuracy"])
    assert back.metrics["loss"] == 1.25


def test_summaries_are_found_at_any_depth_by_path(tmp_path: Path, row: Row) -> None:
    for place, seed in (("b", 1), ("a/deep/down", 2), ("c/x", 3)):
        JsonlTracker(tmp_path / place).finish(row(seed=seed))
    assert [summary.seed for summary in read_summaries(tmp_path)] == [2, 1, 3]
    assert read_summaries(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "broken",
    ["", "{", "[]", "{}", '{"run": 1}', "\xff"],
    ids=["empty", "torn", "a list", "no field", "wrong type", "odd bytes"],
)
def test_an_unreadable_summary_is_named_and_stops_nothing(tmp_path: Path, row: Row, broken: str) -> None:
    JsonlTracker(tmp_path / "good").finish(row())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / SUMMARY).write_bytes(broken.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"bad/summary\.json is left out") as caught:
        assert read_summaries(tmp_path) == [row()]
    assert len(caught) == 1


@pytest.mark.parametrize("wrong", [{"phase": "draft"}, {"finished_at": "yesterday"}])
def test_a_summary_that_no_leaderboard_could_place_is_named(tmp_path: Path, row: Row, wrong: dict[str, str]) -> None:
    JsonlTracker(tmp_path).finish(row(**wrong))
    with pytest.warns(UserWarning, match=r"draft|yesterday"):
        assert read_summaries(tmp_path) == []


def test_one_runs_summary_is_none_until_it_is_finished_and_an_error_when_broken(tmp_path: Path, row: Row) -> None:
    tracker = JsonlTracker(tmp_path)
    assert read_summary(tmp_path) is None
    tracker.finish(row())
    assert read_summary(tmp_path) == row()
    (tmp_path / SUMMARY).write_text("{")
    with pytest.raises(DataError, match=r"summary\.json is no run summary"):
        read_summary(tmp_path)


def test_curves_are_the_validation_scores_over_samples(tmp_path: Path, row: Row) -> None:
    tracker = JsonlTracker(tmp_path / "a")
    tracker.log({"loss": 2.0}, step=1, samples=32)
    tracker.log({"loss": 1.5, "valid/accuracy": 0.4}, step=2, samples=64)
    tracker.log({"valid/accuracy": math.nan}, step=3, samples=96)
    tracker.finish(row(run="a"))
    JsonlTracker(tmp_path / "b").finish(row(run="b"))
    assert read_curves(tmp_path) == {"a": [(64.0, 0.4)]}


class Spy:
    def __init__(self, identity: str | None) -> None:
        self.identity = identity
        self.calls: list[object] = []

    def log(self, metrics: Mapping[str, float], *, step: int, samples: int) -> None:
        self.calls.append((dict(metrics), step, samples))

    def rewind(self, step: int) -> None:
        self.calls.append(step)

    def finish(self, summary: RunSummary) -> None:
        self.calls.append(summary)


def test_many_trackers_are_told_the_same_and_the_first_identity_counts(row: Row) -> None:
    spies = [Spy(None), Spy("one"), Spy("two")]
    many: Tracker = Many(spies)
    many.rewind(4)
    many.log({"loss": 1.0}, step=5, samples=6)
    many.finish(row())
    assert many.identity == "one"
    assert all(spy.calls == [4, ({"loss": 1.0}, 5, 6), row()] for spy in spies)
