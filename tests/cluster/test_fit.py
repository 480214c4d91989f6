"""One run under Ray Train: fit, and scoring its model again."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.evaluate import main
from pipeline.contracts import DataError, InputError
from pipeline.experiment import override
from pipeline.scale import Scale
from pipeline.tracking.tracker import read_summary
from pipeline.training.begin import begin
from pipeline.training.fit import fit, score
from pipeline.training.worker import SoloWorker
from tests.words import long_words, words, write_words

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def beside(pair: Path, words_dir: Path) -> Scale:
    """Where the run of the two workers lies."""
    return Scale(data_dir=str(words_dir), runs_dir=str(pair.parent), workers=2, log_steps=1)


def logged(run_dir: Path, metric: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[metric] for line in lines if metric in line}


def test_two_ray_workers_have_the_losses_of_one_process(pair: Path, scale: Scale) -> None:
    alone = begin(long_words(), scale, SoloWorker(Path(scale.runs_dir) / "alone"), name="alone")
    ours, theirs = logged(pair, "train/loss"), logged(Path(scale.runs_dir) / "alone", "train/loss")
    assert list(ours) == list(theirs) == list(range(1, 201))
    assert ours == pytest.approx(theirs, rel=1e-5)
    summary = read_summary(pair)
    assert summary is not None and (summary.score, summary.steps) == (alone.score, alone.steps)
    assert summary.device_seconds == 2 * summary.seconds


def test_a_finished_run_is_returned_at_once(pair: Path, beside: Scale, capsys: pytest.CaptureFixture[str]) -> None:
    written, start = (pair / "summary.json").stat().st_mtime_ns, time.monotonic()
    assert fit(long_words(), beside, "pair") == read_summary(pair)
    assert time.monotonic() - start < 1
    assert (pair / "summary.json").stat().st_mtime_ns == written
    assert "pair is finished" in capsys.readouterr().err


def test_a_finished_run_of_other_settings_is_refused(beside: Scale) -> None:
    with pytest.raises(InputError, match="run 'pair' was finished with other settings"):
        fit(override(long_words(), "optim.lr", 0.5), beside, "pair")


def test_an_unfinished_run_of_other_settings_is_refused_in_one_sentence(
    pair: Path, scale: Scale, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pair / "ray", Path(scale.runs_dir) / "begun" / "ray")
    with pytest.raises(InputError, match=r"^run begun was begun with other settings \(optim\.lr: 0\.5, was 0\.001\)"):
        fit(override(long_words(), "optim.lr", 0.5), replace(scale, workers=2), "begun")
    assert "Traceback" not in "".join(capfd.readouterr())


def test_what_is_wrong_is_said_before_a_worker_starts(tmp_path: Path, beside: Scale) -> None:
    write_words(tmp_path, shards={"train": (8,), "valid": (4,)})
    start = time.monotonic()
    for changes, where, message in (
        ({"dataset.name": "elsewhere"}, beside, "no dataset 'elsewhere@1'"),
        ({"fields.audio.mels": 7}, beside, "exists with other settings"),
        ({}, replace(beside, data_dir=str(tmp_path)), "no split 'test'"),
        ({"task.target": "mood"}, beside, "no target field 'mood'"),
        ({"budget.parameters": 100}, beside, "cannot meet it within 2%"),
        ({}, replace(beside, engine={"fp16": {}}), "'fp16' would change what is computed"),
        ({}, replace(beside, device="cuda"), "the Ray cluster has no GPU"),
    ):
        with pytest.raises(InputError, match=message):
            fit(words(changes), where, "never")
    assert time.monotonic() - start < 5
    assert not (Path(beside.runs_dir) / "never").exists()


def test_damaged_data_ends_a_run_without_restarts_and_in_one_sentence(
    tmp_path: Path, scale: Scale, capfd: pytest.CaptureFixture[str]
) -> None:
    """The test split is the last to be opened: by one rank, while the other waits for its rows."""
    write_words(tmp_path)
    shard = tmp_path / "words@1" / "test-000001.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"^shard .*test-000001\.tar has 2000 bytes"):
        fit(words(), replace(scale, data_dir=str(tmp_path), workers=2), "damaged")
    assert "Traceback" not in "".join(capfd.readouterr())
    assert [*logged(Path(scale.runs_dir) / "damaged", "train/loss")] == list(range(1, 17))


def test_a_finished_model_is_scored_again_by_any_number_of_workers(pair: Path, beside: Scale) -> None:
    summary, rows = read_summary(pair), pq.read_table(pair / "rows-test.parquet")
    assert summary is not None
    (pair / "rows-test.parquet").unlink()
    places = [f"data_dir={beside.data_dir}", f"runs_dir={beside.runs_dir}", "workers=2"]
    printed = CliRunner().invoke(main, ["pair", "--json", *(part for place in places for part in ("--scale", place))])
    assert json.loads(printed.stdout) == pytest.approx(summary.metrics, rel=1e-9)
    assert pq.read_table(pair / "rows-test.parquet").equals(rows)


def test_scoring_names_what_is_not_there(beside: Scale) -> None:
    with pytest.raises(InputError, match="there is no finished run 'nobody'"):
        score("nobody", "test", beside)
    with pytest.raises(InputError, match="no split 'tset'; did you mean 'test'"):
        score("pair", "tset", beside)
