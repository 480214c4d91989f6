"""Checkpoints: a directory that is enough to go on training, or to rebuild the model and predict.

    checkpoint.json      written last: experiment, fields, progress (step, best score, ...), tracker's identity
    weights.safetensors  the weights; best.safetensors: those of the best round so far
    optimizer.pt         tensors and plain values alone (loaded with weights_only)

All ranks hold equal parameters, so rank 0 writes for all and any number of ranks can read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.contracts import DataError, FieldInfo
from pipeline.experiment import Experiment, from_dict, to_dict
from pipeline.files import whole_file

FILE = "checkpoint.json"
FIELDS = pydantic.TypeAdapter(dict[str, FieldInfo])


@dataclass(kw_only=True)
class Progress:
    """Where a run stands: all that its loop remembers between steps. `seconds` of training, restarts included."""

    step: int = 0
    round: int = 0
    best_round: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What `read` gives: everything but the tensors, which are loaded when asked for."""

    path: Path
    experiment: Experiment
    fields: Mapping[str, FieldInfo]
    progress: Progress
    identity: str | None

    def weights(self, name: str = "weights") -> dict[str, Tensor]:
        """Raises DataError where the file is damaged."""
        path = self.path / f"{name}.safetensors"
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} holds no weights: {error}") from error

    def optimizer(self) -> dict[str, Any]:
        """Raises DataError where the file is damaged, or holds more than tensors and plain values."""
        path = self.path / "optimizer.pt"
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise DataError(f"{path} holds no optimizer state: {error}") from error
        return state


def write(
    path: Path,
    *,
    experiment: Experiment,
    fields: Mapping[str, FieldInfo],
    progress: Progress,
    identity: str | None,
    weights: Mapping[str, Tensor],
    best: Mapping[str, Tensor] | None,
    optimizer: Mapping[str, Any] | None,
) -> Path:
    """A checkpoint without `best` and `optimizer` is a finished model: enough to predict, not to go on."""
    path.mkdir(parents=True)
    save_file(dict(weights), path / "weights.safetensors")
    if best is not None:
        save_file(dict(best), path / "best.safetensors")
    if optimizer is not None:
        torch.save(dict(optimizer), path / "optimizer.pt")
    plain = {
        "experiment": to_dict(experiment),
        "fields": FIELDS.dump_python(dict(fields), mode="json"),
        "progress": asdict(progress),
        "identity": identity,
    }
    with whole_file(path / FILE) as aside:
        aside.write_text(json.dumps(plain, indent=1))
    return path


def read(path: Path) -> Checkpoint:
    """Raises DataError where no whole checkpoint lies at `path`."""
    try:
        plain = json.loads((path / FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a whole checkpoint: {error}") from error
    return Checkpoint(
        path=path,
        experiment=from_dict(plain["experiment"]),
        fields=FIELDS.validate_python(plain["fields"]),
        progress=Progress(**plain["progress"]),
        identity=plain["identity"],
    )
