from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.leaderboard import main
from pipeline.contracts import InputError, RunSummary
from pipeline.tracking.tracker import JsonlTracker


def finish(runs: Path, contest: str, family: str, score: float, phase: str = "final") -> None:
    tracker = JsonlTracker(runs / f"{contest}-{family}-{phase}")
    tracker.log({"valid/accuracy": score}, step=1, samples=64)
    tracker.finish(
        RunSummary(
            run=f"{contest}-{family}-{phase}",
            contest=contest,
            family=family,
            phase=phase,
            seed=0,
            split="test",
            metric="accuracy",
            score=score,
            higher_is_better=True,
            metrics={"accuracy": score},
            parameters=1000,
            steps=1,
            samples=64,
            seconds=1.0,
            device_seconds=2.0,
            samples_per_second=64.0,
            fingerprint="f",
            settings={"model": {"name": family}},
            commit="c",
            finished_at="2026-01-01T00:00:00+00:00",
        )
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for contest in ("words#1", "speech#2"):
        finish(tmp_path, contest, "lstm", 0.5)
        finish(tmp_path, contest, "gru", 0.7)
    return tmp_path


def test_it_prints_the_tables_and_writes_the_page(runs: Path) -> None:
    result = CliRunner().invoke(main, ["--runs", str(runs)], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.index("speech#2") < result.stdout.index("gru") < result.stdout.index("words#1")
    assert result.stderr == f"page: {runs / 'leaderboard.html'}\n"
    html = (runs / "leaderboard.html").read_text()
    assert "words#1" in html
    assert "<polyline" in html


def test_json_is_all_that_stands_on_stdout(runs: Path, tmp_path: Path) -> None:
    (runs / "broken").mkdir()
    (runs / "broken" / "summary.json").write_text("{")
    page = tmp_path / "there" / "page.html"
    result = CliRunner().invoke(main, ["--runs", str(runs), "--json", "--page", str(page)], catch_exceptions=False)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["contest"], line["rank"], line["family"]) for line in lines] == [
        ("speech#2", 1, "gru"),
        ("speech#2", 2, "lstm"),
        ("words#1", 1, "gru"),
        ("words#1", 2, "lstm"),
    ]
    assert "warning:" in result.stderr
    assert "summary.json is left out" in result.stderr
    assert str(page) in result.stderr
    assert page.exists()
    assert not (runs / "leaderboard.html").exists()


@pytest.mark.parametrize("name", ["words#1", "words"])
def test_one_contest_can_be_printed_while_the_page_keeps_all(runs: Path, name: str) -> None:
    result = CliRunner().invoke(main, ["--runs", str(runs), "--json", "--contest", name], catch_exceptions=False)
    assert {json.loads(line)["contest"] for line in result.stdout.splitlines()} == {"words#1"}
    assert "speech#2" in (runs / "leaderboard.html").read_text()


def test_an_unknown_contest_is_answered_with_the_known_ones(runs: Path) -> None:
    with pytest.raises(InputError, match=r"no contest 'word#1'.*did you mean 'words#1'.*speech#2, words#1"):
        CliRunner().invoke(main, ["--runs", str(runs), "--contest", "word#1"], catch_exceptions=False)


def test_without_a_finished_run_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    finish(tmp_path, "words#1", "lstm", 0.5, phase="search")
    command = [sys.executable, "-m", "jobs.leaderboard", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: no final run has finished below {tmp_path} (1 search trials are there): "
        "`python -m jobs.sweep` makes some\n"
    )
    assert not (tmp_path / "leaderboard.html").exists()
