"""What an import brings along: ingest needs no torch, a training step needs no Ray.

import-linter (`make check`) holds the static side; these tests ask a fresh interpreter.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def shelf(name: str) -> list[str]:
    """Its choices; what begins with an underscore is shared between them, and imported by the side that needs it."""
    return sorted(f"pipeline.{name}.{file.stem}" for file in (ROOT / "pipeline" / name).glob("[a-z]*.py"))


def imported_with(modules: list[str]) -> set[str]:
    """Top-level packages in a fresh interpreter that has imported `modules`."""
    program = f"import importlib, json, sys; [importlib.import_module(name) for name in {modules!r}]; " + (
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


SETTINGS = ["pipeline.contracts", "pipeline.choices", "pipeline.experiment", "pipeline.scale"]
INGEST = ["pipeline.data.ingest", *shelf("corpora"), *shelf("modalities")]
TRAINING_STEP = ["pipeline.training.train", *shelf("models"), *shelf("tasks"), *shelf("modalities")]


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        pytest.param(SETTINGS, {"torch", "ray", "deepspeed", "wandb"}, id="settings"),
        pytest.param(INGEST, {"torch", "deepspeed", "wandb"}, id="ingest"),
        pytest.param(TRAINING_STEP, {"ray", "wandb"}, id="training step"),
    ],
)
def test_an_import_brings_only_what_its_room_needs(modules: list[str], absent: set[str]) -> None:
    unwanted = imported_with(modules) & absent
    assert unwanted == set()
