"""A search over all four families by Ray Tune, killed and not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from jobs.cli import experiment_of
from pipeline.contracts import DataError, InputError, RunSummary
from pipeline.data.ingest import ingest
from pipeline.scale import Scale
from pipeline.tracking.tracker import read_summary
from pipeline.training.sweep import Trial, run, sweep
from tests.words import FAMILIES, words, write_words

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
ROOT = Path(__file__).parents[2]
TRIALS, SEEDS, ROUNDS = 4, 2, 2


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the recipe `spoken_words`: 96 recordings, small models, two epochs."""
    return [
        f"corpus.path={tmp_path_factory.mktemp('wavs')}",
        *("corpus.labels=4", "corpus.speakers=12", "corpus.takes=2", "fields.audio.mels=8"),
        *("model.width=8", "budget.parameters=null", "budget.epochs=2", f"budget.rounds={ROUNDS}"),
        *(f"budget.trials={TRIALS}", f"budget.seeds={SEEDS}"),
    ]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Scale:
    out = tmp_path_factory.mktemp("sweep")
    return Scale(data_dir=str(out / "data"), runs_dir=str(out / "runs"), log_steps=1)


@pytest.fixture(scope="module")
def finals(settings: list[str], where: Scale, cluster: None) -> list[RunSummary]:
    """What an undisturbed sweep gives."""
    experiment = experiment_of("spoken_words", settings)
    ingest(experiment.dataset, where)
    return sweep(experiment, where)


def runs(where: Scale, pattern: str) -> list[Path]:
    return sorted(path.parent for path in Path(where.runs_dir).glob(f"*/{pattern}/metrics.jsonl"))


def round_scores(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["valid/accuracy"] for line in lines if "valid/accuracy" in line]


def test_every_family_has_as_many_final_runs_on_the_test_split(finals: list[RunSummary]) -> None:
    assert [(one.family, one.seed) for one in finals] == [
        (family, seed) for family in FAMILIES for seed in range(SEEDS)
    ]
    assert all((one.phase, one.split) == ("final", "test") for one in finals)
    assert len({one.contest for one in finals}) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_as_many_trials_halved_among_each_other(
    family: str, finals: list[RunSummary], where: Scale
) -> None:
    scores = {path: round_scores(path) for path in runs(where, f"{family}-trial*")}
    assert len(scores) == TRIALS
    survivors = [path for path, rounds in scores.items() if len(rounds) == ROUNDS]
    culled = [path for path, rounds in scores.items() if len(rounds) == 1]
    assert len(survivors) == TRIALS // 2 and len(culled) == TRIALS // 2
    assert min(scores[path][0] for path in survivors) >= max(scores[path][0] for path in culled)


def test_the_winner_of_each_family_is_what_its_final_runs_train(finals: list[RunSummary], where: Scale) -> None:
    for family in FAMILIES:
        trials = [read_summary(path) for path in runs(where, f"{family}-trial*")]
        full = [trial for trial in trials if trial is not None and trial.steps == finals[0].steps]
        best = max(full, key=lambda trial: (trial.score, -trial.metrics["loss"]))
        for one in finals:
            if one.family == family:
                assert {**one.settings, "seed": 0} == best.settings


def test_a_search_never_opens_the_test_split(finals: list[RunSummary], where: Scale) -> None:
    trials = [read_summary(path) for path in runs(where, "*-trial*")]
    assert {(trial.phase, trial.split) for trial in trials if trial} == {("search", "valid")}
    assert not [path for path in runs(where, "*-trial*") if list(path.glob("rows-*")) or (path / "model").exists()]


def test_all_cores_are_free_afterwards(finals: list[RunSummary]) -> None:
    assert soon(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], seconds=20)


def test_a_killed_sweep_goes_on_and_ends_the_same(
    finals: list[RunSummary], settings: list[str], where: Scale, tmp_path: Path
) -> None:
    """With two families: theirs are the same runs as in a sweep of all four."""
    again, two = replace(where, runs_dir=str(tmp_path / "runs")), ("gru", "rnn")
    command = [sys.executable, "-m", "jobs.sweep", "spoken_words", *settings, f"families={','.join(two)}"]
    for setting in (f"data_dir={again.data_dir}", f"runs_dir={again.runs_dir}", "log_steps=1"):
        command += ["--scale", setting]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def finished() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(again.runs_dir).glob("*/*-seed*/summary.json")}

    assert soon(lambda: bool(finished()) or driver.poll() is not None, seconds=200)
    assert driver.poll() is None, (tmp_path / "log").read_text()
    family = [one for one in psutil.Process(driver.pid).children(recursive=True) if "Agent" not in one.name()]
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "a local cluster ends with its driver; agents of Ray take a minute longer"
    before = finished()
    assert 0 < len(before) < SEEDS * len(two), "killed on the way"
    summaries = sweep(experiment_of("spoken_words", [*settings, f"families={','.join(two)}"]), again)
    assert [lasting(one) for one in summaries] == [lasting(one) for f in two for one in finals if one.family == f]
    assert before.items() <= finished().items(), "finished runs are left as they are"


def lasting(summary: RunSummary) -> RunSummary:
    """The summary without what clocks say, and without the name of the sweep."""
    name = Path(summary.run).name
    return replace(summary, run=name, seconds=0, device_seconds=0, samples_per_second=0, finished_at="", settings={})


def test_what_is_wrong_with_a_search_is_said_before_a_trial_starts(words_dir: Path, tmp_path: Path) -> None:
    scale = Scale(data_dir=str(words_dir), runs_dir=str(tmp_path))
    for changes, message in (
        ({"budget.trials": 99}, r"budget\.trials = 99: rnn has only 54 different settings"),
        ({"budget.parameters": 100, "budget.trials": 2}, "rnn has only 0 different settings to try at 100 parameters"),
        ({"families": ("gru", "lstn")}, "models has no 'lstn'; did you mean 'lstm'"),
        ({"task.target": "mood"}, "no target field 'mood'"),
    ):
        with pytest.raises(InputError, match=message):
            sweep(words(changes), scale)
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_a_trial_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_words(tmp_path / "data")
    shard = tmp_path / "data" / "words@1" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    scale = Scale(data_dir=str(tmp_path / "data"), runs_dir=str(tmp_path / "runs"))
    with pytest.raises(DataError, match=r"^shard .*train-000001\.tar has 2000 bytes"):
        run([Trial(name="trial", experiment=words(), until_round=None)], scale)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_trials_of_several_workers_give_their_cores_back(words_dir: Path, tmp_path: Path) -> None:
    scale = Scale(data_dir=str(words_dir), runs_dir=str(tmp_path), workers=2)
    [summary] = sweep(replace(words({"budget.trials": 1, "budget.seeds": 1}), families=("gru",)), scale)
    assert summary.phase == "final" and summary.device_seconds == 2 * summary.seconds
    assert soon(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], seconds=20)


def soon(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return met
