from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest

from pipeline.scale import LOCAL, Scale

ROOT = Path(__file__).parents[2]


def test_relative_places_are_fixed_where_the_scale_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    scale = Scale(runs_dir="here/../runs")
    monkeypatch.chdir("/")
    assert (scale.data_dir, scale.runs_dir) == (f"{tmp_path}/data", f"{tmp_path}/runs")
    assert Scale(data_dir="/a").data_dir == "/a"


@pytest.mark.parametrize(
    "given",
    [
        {"workers": 0},
        {"cpus": -1},
        {"parallel": 0},
        {"device": "tpu"},
        {"max_failures": -2},
        {"worker": 2},
        {"engine": 3},
    ],
)
def test_a_scale_that_cannot_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Scale(**given)


def test_local_is_one_worker_on_the_cpu() -> None:
    assert (LOCAL.workers, LOCAL.device, LOCAL.address) == (1, "cpu", None)


def test_the_environment_says_where_local_keeps_things() -> None:
    program = "from pipeline.scale import LOCAL; print(LOCAL.data_dir, LOCAL.runs_dir)"
    environment = {"SEQPIT_DATA": "/tmp/d", "SEQPIT_RUNS": "/tmp/r"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout.split() == [b"/tmp/d", b"/tmp/r"]
