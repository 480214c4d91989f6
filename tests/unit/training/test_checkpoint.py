from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.contracts import DataError, FieldInfo
from pipeline.experiment import choose
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Progress
from tests.words import words

FIELDS = {
    "audio": FieldInfo(dtype="float32", shape=(6,), rate_hz=100.0, mean=(0.5,) * 6, std=(2.0,) * 6),
    "label": FieldInfo(dtype="int64", shape=(), vocabulary=("a", "ä b")),
}
PROGRESS = Progress(step=12, round=3, best_round=2, best_metrics={"accuracy": 0.5, "loss": 1.25}, seconds=3.5)
WEIGHTS = {"layer.weight": torch.randn(3, 4), "layer.bias": torch.zeros(3)}
BEST = {"layer.weight": torch.ones(3, 4), "layer.bias": torch.ones(3)}
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(12.0), "exp_avg": torch.randn(3, 4)}},
    "param_groups": [{"lr": 0.01, "betas": (0.9, 0.98), "params": [0], "fused": True, "foreach": None}],
}


def write(path: Path, **given: Any) -> Path:
    plain = {
        "experiment": words({"task": choose("classify", pool="last")}),
        "fields": FIELDS,
        "progress": PROGRESS,
        "identity": "wandb-7",
        "weights": WEIGHTS,
        "best": BEST,
        "optimizer": OPTIMIZER,
    }
    return checkpoint.write(path, **{**plain, **given})


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    saved = checkpoint.read(write(tmp_path / "one"))
    assert saved.experiment == words({"task": choose("classify", pool="last")})
    assert saved.fields == FIELDS
    assert asdict(saved.progress) == asdict(PROGRESS)
    assert saved.identity == "wandb-7"
    assert same(saved.weights(), WEIGHTS) and same(saved.weights("best"), BEST)
    assert same(saved.optimizer(), OPTIMIZER)


def test_a_finished_model_has_weights_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "model", best=None, optimizer=None)
    assert {file.name for file in path.iterdir()} == {"checkpoint.json", "weights.safetensors"}
    assert same(checkpoint.read(path).weights(), WEIGHTS)


def test_a_checkpoint_is_never_written_over_another(tmp_path: Path) -> None:
    write(tmp_path / "one")
    with pytest.raises(FileExistsError):
        write(tmp_path / "one")


@pytest.mark.parametrize("text", ["", "{", '{"experiment": '])
def test_a_torn_checkpoint_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "torn")
    (path / "checkpoint.json").write_text(text)
    with pytest.raises(DataError, match="torn is not a whole checkpoint"):
        checkpoint.read(path)


def test_a_checkpoint_without_its_last_file_is_no_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "torn")
    (path / "checkpoint.json").unlink()
    with pytest.raises(DataError, match="torn is not a whole checkpoint"):
        checkpoint.read(path)


def test_no_directory_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(DataError, match="is not a whole checkpoint"):
            checkpoint.read(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_damaged_tensors_are_named(tmp_path: Path, name: str, harm: str) -> None:
    path = write(tmp_path / "one")
    file = path / name
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        file.unlink()
    saved = checkpoint.read(path)
    with pytest.raises(DataError, match=name):
        saved.weights() if name.startswith("weights") else saved.optimizer()


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    path = write(tmp_path / "hostile")
    torch.save({"state": Evil(tmp_path / "ran")}, path / "optimizer.pt")
    with pytest.raises(DataError, match=r"optimizer\.pt"):
        checkpoint.read(path).optimizer()
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_checkpoint_can_be_moved(tmp_path: Path) -> None:
    shutil.move(write(tmp_path / "here"), tmp_path / "there")
    assert same(checkpoint.read(tmp_path / "there").weights(), WEIGHTS)
