"""What a trial of a sweep costs beside its bare training.

Ours: trials under Ray Tune, one at a time, in reused actors. Rivals: the same runs in a plain loop in one process, and
each as a Ray Train run of its own. Seconds a trial; repeats interleaved, median and spread (half the range).
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from cluster.connect import connected
from jobs.cli import experiment_of
from pipeline.data.ingest import ingest
from pipeline.experiment import Experiment, override
from pipeline.scale import Scale
from pipeline.training.begin import begin
from pipeline.training.fit import fit
from pipeline.training.sweep import Trial, run
from pipeline.training.worker import SoloWorker

TRIALS, REPEATS = 8, 3


def cases() -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        scale = Scale(data_dir=f"{scratch}/data", runs_dir=f"{scratch}/runs", parallel=1)
        experiment = override(experiment_of("spoken_words"), "corpus.path", f"{scratch}/words")
        experiment = replace(experiment, budget=replace(experiment.budget, epochs=2, rounds=1))
        experiments = [replace(experiment, seed=seed) for seed in range(TRIALS)]
        with connected(scale):
            ingest(experiment.dataset, scale)
            ways: dict[str, Callable[[list[Experiment], Scale], None]] = {
                "tune": _tune,
                "the same runs in a plain loop": _loop,
                "a Ray Train run each": _fits,
            }
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            _loop(experiments[:1], scale)  # imports and DeepSpeed's first engine are nobody's trial
            for _ in range(REPEATS):
                for name, way in ways.items():
                    shutil.rmtree(scale.runs_dir, ignore_errors=True)
                    few = experiments[:2] if way is _fits else experiments
                    began = time.perf_counter()
                    way(few, scale)
                    seconds[name].append((time.perf_counter() - began) / len(few))
    ours = seconds.pop("tune")
    for name, theirs in seconds.items():
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        yield {
            "case": f"{TRIALS} trials of 2 epochs, seconds a trial",
            "ours": statistics.median(ours),
            "ours_spread": (max(ours) - min(ours)) / 2,
            "rival": statistics.median(theirs),
            "rival_spread": (max(theirs) - min(theirs)) / 2,
            "rival_name": name,
            "ratio": statistics.median(ratios),
        }


def _tune(experiments: list[Experiment], scale: Scale) -> None:
    run([Trial(name=f"tune-{one.seed}", experiment=one, until_round=None) for one in experiments], scale)


def _loop(experiments: list[Experiment], scale: Scale) -> None:
    for one in experiments:
        name = f"loop-{one.seed}"
        begin(one, scale, SoloWorker(Path(scale.runs_dir) / name), name=name)


def _fits(experiments: list[Experiment], scale: Scale) -> None:
    for one in experiments:
        fit(one, scale, f"fit-{one.seed}")
