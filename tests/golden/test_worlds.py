"""Law 6: losses and weights do not depend on how a step's samples were cut into ranks and micro-batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.experiment import to_dict
from pipeline.scale import Scale
from tests.words import FAMILIES, SHARDS, of_family, words, write_words

WORLDS = (1, 2, 4)
STEPS = 50
CUT = {2: 4}  # micro-batch by world
# 64 samples in batches of 30: steps of 30, 30 and 4 samples, so shares are uneven and some micro-batches are empty.
SETTINGS = {"batching.batch": 30, "budget.epochs": 16.6, "budget.rounds": 5}
FEW = {"train": (3, 2), "valid": (2,), "test": (2, 1)}  # fewer samples than four ranks


def jobs_of(world: int, data_dir: Path, runs_dir: Path) -> list[dict[str, Any]]:
    scale = to_dict(Scale(data_dir=str(data_dir), runs_dir=str(runs_dir), log_steps=1))
    jobs = [(family, of_family(family, SETTINGS)) for family in FAMILIES]
    if world in CUT:
        jobs += [
            (f"{family}-cut", of_family(family, {**SETTINGS, "batching.micro_batch": CUT[world]}))
            for family in FAMILIES
        ]
    jobs.append(("few", words({"dataset.name": "few", "batching.batch": 3})))
    return [{"name": name, "experiment": to_dict(experiment), "scale": scale} for name, experiment in jobs]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of each world: `runs`/WORLD/NAME; nothing may land in `runs`/compiled."""
    runs = tmp_path_factory.mktemp("worlds")
    write_words(runs / "data")
    write_words(runs / "data", replace(words().dataset, name="few"), FEW)
    (runs / "compiled").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(runs / "compiled")}
    for world in WORLDS:
        jobs = jobs_of(world, runs / "data", runs / str(world))
        (runs / f"jobs-{world}.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.golden.ranks", str(runs), *map(str, WORLDS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return runs


def logged(run_dir: Path, metric: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[metric] for line in lines if metric in line}


def close(ours: Mapping[int, float], theirs: Mapping[int, float], steps: int = STEPS) -> bool:
    assert list(ours) == list(theirs) == list(range(1, steps + 1))
    worst = max(abs(ours[step] - theirs[step]) / theirs[step] for step in ours)
    print(f"largest relative difference: {worst:.2g}")
    return worst <= 1e-5


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_has_the_same_loss_on_any_number_of_ranks(family: str, world: int, runs: Path) -> None:
    ours, alone = runs / str(world) / family, runs / "1" / family
    assert close(logged(ours, "train/loss"), logged(alone, "train/loss"))
    assert logged(ours, "train/accuracy") == logged(alone, "train/accuracy")
    assert logged(ours, "valid/accuracy") == logged(alone, "valid/accuracy")


@pytest.mark.parametrize("world", CUT)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_has_the_same_loss_in_micro_batches(family: str, world: int, runs: Path) -> None:
    assert close(logged(runs / str(world) / f"{family}-cut", "train/loss"), logged(runs / "1" / family, "train/loss"))


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_hold_the_same_weights_at_the_end_of_each_round(world: int, runs: Path) -> None:
    for name in (*FAMILIES, *(f"{family}-cut" for family in FAMILIES if world in CUT), "few"):
        digests = [json.loads((runs / str(world) / name / f"digests-{rank}.json").read_text()) for rank in range(world)]
        assert len(digests[0]) == (4 if name == "few" else 5)
        assert all(digest == digests[0] for digest in digests)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", [*FAMILIES, "few"])
def test_each_sample_has_one_row_and_every_rank_sees_all_rows(name: str, world: int, runs: Path) -> None:
    sizes = FEW["test"] if name == "few" else SHARDS["test"]
    keys = sorted(f"test_{index}_{row}" for index, size in enumerate(sizes) for row in range(size))
    run_dir = runs / str(world) / name
    tables = [pq.read_table(run_dir / f"rows-{rank}.parquet") for rank in range(world)]
    assert tables[0].column("key").to_pylist() == keys
    assert all(table.equals(tables[0]) for table in [*tables, pq.read_table(run_dir / "rows-test.parquet")])


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("name", [*FAMILIES, "few"])
def test_rows_are_the_same_on_any_number_of_ranks(name: str, world: int, runs: Path) -> None:
    ours, alone = (pq.read_table(runs / str(one) / name / "rows-test.parquet") for one in (world, 1))
    assert ours.schema == alone.schema
    for column in ("key", "target", "prediction"):
        assert ours.column(column).equals(alone.column(column))
    for column in ("loss", "confidence"):
        assert ours.column(column).to_pylist() == pytest.approx(alone.column(column).to_pylist(), rel=1e-4)


@pytest.mark.parametrize("world", WORLDS[1:])
def test_fewer_samples_than_ranks_train_alike(world: int, runs: Path) -> None:
    assert close(logged(runs / str(world) / "few", "train/loss"), logged(runs / "1" / "few", "train/loss"), steps=8)


def test_no_compiler_is_started(runs: Path) -> None:
    """DeepSpeed builds a CPU collective for a minute on first use, unless it is kept from it."""
    assert not list((runs / "compiled").rglob("*"))
