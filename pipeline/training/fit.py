"""fit: one run under Ray Train, on as many workers as the scale says.

Ray restarts the whole group of workers when one dies; each finds the newest checkpoint and the Plan does the rest.
Calling fit again under the same name continues an unfinished run and returns a finished one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pipeline.contracts import InputError, RunSummary
from pipeline.experiment import Experiment, from_dict, to_dict
from pipeline.files import whole_file
from pipeline.scale import Scale
from pipeline.tracking.tracker import read_summary
from pipeline.training import checkpoint, failure
from pipeline.training.begin import begin, current_commit, run_name
from pipeline.training.engine import check_settings
from pipeline.training.evaluate import evaluate
from pipeline.training.model import build, meet_budget
from pipeline.training.progress import say
from pipeline.training.streams import open_shards, open_stream


class RayWorker:
    """The Worker contract inside a Ray Train worker."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device: torch.device = get_device()

    def latest(self) -> Path | None:
        saved = ray.train.get_checkpoint()
        return Path(saved.path) if saved else None  # below runs_dir, which every node can reach

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        saved = ray.train.Checkpoint.from_directory(checkpoint) if checkpoint else None
        ray.train.report(dict(metrics), checkpoint=saved)


def fit(experiment: Experiment, scale: Scale, name: str | None = None, *, until_round: int | None = None) -> RunSummary:
    """Trains and scores one run; needs a Ray cluster that this process is connected to.

    Raises InputError, before any worker starts, where settings do not fit the dataset, the dataset is not ingested, or
    `name` belongs to a run of other settings.
    """
    name = name or run_name(experiment)
    check(experiment, scale)
    directory = Path(scale.runs_dir).resolve() / name
    done = read_summary(directory)
    if done is not None and done.phase == "final":
        if done.fingerprint != experiment.fingerprint:
            raise InputError(f"run {name!r} was finished with other settings; give this one another name")
        say(f"{name} is finished; its summary is {directory / 'summary.json'}")
        return done
    config = {
        "experiment": to_dict(experiment),
        "scale": to_dict(scale),
        "name": name,
        "until_round": until_round,
        "commit": current_commit(),
    }
    _on_workers(work, config, scale, directory)
    finished = read_summary(directory)
    assert finished is not None, f"{directory} has no summary"
    return finished


def _on_workers(work: Callable[[dict[str, Any]], Any], config: dict[str, Any], scale: Scale, directory: Path) -> Any:
    """What rank 0 gives of `work(config)`, run on `scale.workers` ranks; Ray's own files go to `directory`/ray.

    Raises InputError or DataError where a worker did. Ray would restart the workers, to fail again: so that worker
    leaves a note instead and ends, and the others end with it.
    """
    note = directory / "failure.json"
    note.unlink(missing_ok=True)

    def noted(config: dict[str, Any]) -> Any:
        logging.getLogger().setLevel(logging.WARNING)  # Ray tells every report to the root logger
        if note.exists():
            return None
        try:
            return work(config)
        except failure.LASTING as error:
            failure.leave(error, note)
            if dist.get_backend() == "nccl":
                raise  # only gloo tells the others that this one has gone
            dist.destroy_process_group()
        except RuntimeError:
            if not note.exists():
                raise
        return None

    trainer = TorchTrainer(
        noted,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=scale.workers, use_gpu=scale.device == "cuda", resources_per_worker={"CPU": scale.cpus}
        ),
        torch_config=TorchConfig(backend="nccl" if scale.device == "cuda" else "gloo"),
        run_config=RunConfig(  # type: ignore[call-arg] # mypy sees Ray Train's old API, here and below
            name="ray",
            storage_path=str(directory),
            failure_config=FailureConfig(max_failures=scale.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        return trainer.fit().return_value  # type: ignore[attr-defined]
    finally:
        if left := failure.found(note):
            raise left from None


def work(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    scale = Scale(**config["scale"])
    begin(
        from_dict(config["experiment"]),
        scale,
        RayWorker(),
        name=config["name"],
        until_round=config["until_round"],
        commit=config["commit"],
    )


def check(experiment: Experiment, scale: Scale) -> None:
    """Raises InputError for whatever can be known to be wrong before workers start; says what they will wait for."""
    shards = open_shards(experiment, scale)
    check_settings(scale.engine)
    for split in ("train", "valid", "test"):
        shards.split(split)
    with torch.device("meta"):
        build(meet_budget(experiment, shards.manifest.fields), shards.manifest.fields)
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if scale.device == "cuda" and not there.get("GPU"):
        raise InputError("scale.device = 'cuda', but the Ray cluster has no GPU; use device=cpu")
    wanted, cores = scale.workers * scale.cpus, there.get("CPU", 0)
    if cores < wanted:
        say(f"{scale.workers} workers want {wanted} cores, the cluster has {cores:.0f}: waiting for more")


def score(name: str, split: str, scale: Scale) -> dict[str, float]:
    """The metrics of a finished run's model (or of the checkpoint at a path) on a split, scored by all workers.

    Leaves `rows-SPLIT.parquet` beside the model. Raises InputError where there is no such run or split.
    """
    places = [Path(scale.runs_dir) / name / "model", Path(name)]
    path = next((place.resolve() for place in places if (place / checkpoint.FILE).exists()), None)
    if path is None:
        raise InputError(f"there is no finished run {name!r} below {scale.runs_dir}, and no checkpoint at that path")
    open_shards(checkpoint.read(path).experiment, scale).split(split)
    config = {"path": str(path), "split": split, "scale": to_dict(scale)}
    scores: dict[str, float] = _on_workers(_score, config, scale, path.parent / "score")
    return scores


def _score(config: dict[str, Any]) -> dict[str, float]:
    saved, scale, worker = checkpoint.read(Path(config["path"])), Scale(**config["scale"]), RayWorker()
    torch.set_num_threads(scale.cpus)
    model = build(saved.experiment, saved.fields)
    model.load_state_dict(saved.weights())
    shards = open_shards(saved.experiment, scale)
    stream = open_stream(saved.experiment, shards, config["split"], worker, scale, training=False)
    task = saved.experiment.task.make("tasks")
    rows = evaluate(model.to(worker.device), task, stream, worker)
    if worker.rank == 0:
        with whole_file(saved.path.parent / f"rows-{config['split']}.parquet") as aside:
            pq.write_table(rows, aside)
    scores: dict[str, float] = task.score(rows)
    return scores
