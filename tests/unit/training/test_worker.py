from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.training.worker import SoloWorker


@pytest.fixture
def worker(tmp_path: Path) -> SoloWorker:
    return SoloWorker(tmp_path / "run")


def saved(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "checkpoint.json").write_text(text)
    (path / "weights.safetensors").write_text(text)
    return path


def content(worker: SoloWorker) -> str | None:
    latest = worker.latest()
    return (latest / "weights.safetensors").read_text() if latest else None


def test_it_is_the_only_rank(worker: SoloWorker) -> None:
    assert (worker.rank, worker.world, dist.get_world_size()) == (0, 1, 1)


def test_a_fresh_run_has_no_checkpoint(worker: SoloWorker) -> None:
    assert worker.latest() is None


def test_the_newest_reported_checkpoint_is_the_latest(worker: SoloWorker, tmp_path: Path) -> None:
    for number in range(12):
        worker.report({}, saved(tmp_path / f"scratch{number}", f"checkpoint {number}"))
        assert content(worker) == f"checkpoint {number}"
    assert len(list(worker.directory.iterdir())) == 1, "older ones are removed"


def test_a_report_without_a_checkpoint_keeps_the_last_one(worker: SoloWorker, tmp_path: Path) -> None:
    worker.report({}, saved(tmp_path / "scratch", "one"))
    worker.report({"score": 1.0}, None)
    assert content(worker) == "one"


def test_the_reported_directory_may_vanish(worker: SoloWorker, tmp_path: Path) -> None:
    scratch = saved(tmp_path / "scratch", "one")
    worker.report({}, scratch)
    for file in scratch.iterdir():
        file.unlink()
    assert content(worker) == "one"


def test_another_worker_of_the_same_run_finds_it(worker: SoloWorker, tmp_path: Path) -> None:
    worker.report({}, saved(tmp_path / "scratch", "one"))
    assert content(SoloWorker(tmp_path / "run")) == "one"
    assert SoloWorker(tmp_path / "other").latest() is None


def test_torn_copies_are_passed_over_and_replaced(worker: SoloWorker, tmp_path: Path) -> None:
    worker.report({}, saved(tmp_path / "scratch0", "one"))
    saved(worker.directory / ".tmp-1", "half")  # killed while copying
    (worker.directory / "1").mkdir()  # no whole checkpoint either: its last file is missing
    (worker.directory / "1" / "weights.safetensors").write_text("half")
    assert content(worker) == "one"
    worker.report({}, saved(tmp_path / "scratch1", "two"))
    assert content(worker) == "two"
    worker.report({}, saved(tmp_path / "scratch2", "three"))
    assert content(worker) == "three"


def test_a_kill_before_the_old_one_is_removed_loses_nothing(worker: SoloWorker, tmp_path: Path) -> None:
    saved(worker.directory / "3", "old")
    saved(worker.directory / "10", "new")
    assert content(worker) == "new"
    worker.report({}, saved(tmp_path / "scratch", "newest"))
    assert content(worker) == "newest"
