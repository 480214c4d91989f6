"""Where a run starts on each rank: its record is opened (rank 0), continued if it was cut short, and the loop runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline.contracts import RunSummary
from pipeline.experiment import Experiment, to_dict
from pipeline.protocols import Tracker, Worker
from pipeline.scale import Scale
from pipeline.tracking.tracker import JsonlTracker, Many
from pipeline.tracking.wandb import WandbTracker
from pipeline.training import checkpoint
from pipeline.training.train import train


def begin(
    experiment: Experiment, scale: Scale, worker: Worker, *, name: str, until_round: int | None = None, commit: str = ""
) -> RunSummary:
    """Trains under runs_dir/name; see train."""
    tracker = _open_tracker(experiment, scale, worker, name)
    return train(experiment, scale, worker, tracker, name=name, until_round=until_round, commit=commit)


def _open_tracker(experiment: Experiment, scale: Scale, worker: Worker, name: str) -> Tracker:
    if worker.rank:
        return Many([])
    latest = worker.latest()
    identity = checkpoint.read(latest).identity if latest else None
    directory = Path(scale.runs_dir) / name
    trackers: list[Tracker] = [JsonlTracker(directory, identity)]
    if scale.wandb:
        trackers.append(WandbTracker(name, experiment.contest, to_dict(experiment), directory, identity))
    return Many(trackers)


def run_name(experiment: Experiment) -> str:
    """The name of a run that was given none: other settings, another name."""
    return f"{experiment.name}-{experiment.model.name}-seed{experiment.seed}-{experiment.fingerprint[:8]}"


def current_commit() -> str:
    """The checkout's commit, with `+` where files differ from it; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
