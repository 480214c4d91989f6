"""Law 8 under Ray Train: a run whose workers are killed ends as one that nothing disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.scale import Scale
from pipeline.tracking.tracker import read_summary
from pipeline.training.fit import fit
from tests.words import long_words

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def logged(run_dir: Path) -> list[dict[str, float]]:
    """All lines of metrics but for their clock; a line that is being written is passed over."""
    path, lines = run_dir / "metrics.jsonl", []
    for raw in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append({name: value for name, value in json.loads(raw).items() if name != "time"})
    return lines


def train_workers() -> list[int]:
    """The pids of this cluster's Ray Train workers."""
    return [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if any("RayTrainWorker" in part for part in process.cmdline())
    ]


class Killer(threading.Thread):
    """Kills a worker each time the run has logged one of these steps."""

    def __init__(self, run_dir: Path, steps: tuple[int, ...]) -> None:
        super().__init__(daemon=True)
        self.run_dir, self.steps = run_dir, steps
        self.killed: list[tuple[int, int]] = []  # (step, pid)
        self.ended = False

    def run(self) -> None:
        for number, step in enumerate(self.steps):
            while not self.ended and (at := self._step()) < step:
                time.sleep(0.01)
            if not self.ended:
                victim = sorted(train_workers())[number]
                os.kill(victim, signal.SIGKILL)
                self.killed.append((at, victim))

    def _step(self) -> int:
        return max((int(line["step"]) for line in logged(self.run_dir)), default=0)


@contextlib.contextmanager
def killing(run_dir: Path, *steps: int) -> Iterator[Killer]:
    killer = Killer(run_dir, steps)
    killer.start()
    try:
        yield killer
    finally:
        killer.ended = True
        killer.join()


def test_a_run_whose_workers_are_killed_ends_with_the_same_weights(pair: Path, scale: Scale) -> None:
    run_dir = Path(scale.runs_dir) / "killed"
    with killing(run_dir, 30, 120) as killer:
        summary = fit(long_words(), replace(scale, workers=2, checkpoint_steps=5), "killed")
    assert len(killer.killed) == 2 and len({pid for _, pid in killer.killed}) == 2
    assert all(step < 200 for step, _ in killer.killed), "killed on the way"
    weights = Path("model", "weights.safetensors")
    assert (run_dir / weights).read_bytes() == (pair / weights).read_bytes()
    assert pq.read_table(run_dir / "rows-test.parquet").equals(pq.read_table(pair / "rows-test.parquet"))
    assert logged(run_dir) == logged(pair), "no step is doubled or lost, and each is the same to the last bit"
    undisturbed = read_summary(pair)
    assert undisturbed is not None and (summary.metrics, summary.steps) == (undisturbed.metrics, undisturbed.steps)
