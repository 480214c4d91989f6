"""`python -m tests.golden.ranks FOLDER WORLD...`: runs on several numbers of ranks, each rank a plain process, no Ray.

FOLDER/jobs-WORLD.json lists the runs. All ranks are forked off one process, which has imported what is slow to import.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from pipeline.experiment import from_dict
from pipeline.scale import Scale
from pipeline.training import checkpoint, train
from pipeline.training.begin import begin
from pipeline.training.evaluate import evaluate
from pipeline.training.model import build, weights_of
from pipeline.training.run import Run
from pipeline.training.streams import open_shards, open_stream


class PlainWorker:
    """The Worker contract over a process group; keeps no checkpoint."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world, self.device = rank, world, torch.device("cpu")

    def latest(self) -> Path | None:
        return None

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        pass


class WatchedRun(Run):
    """Notes a digest of this rank's weights at the end of each round."""

    digests: list[str]

    def save(self, metrics: Mapping[str, float]) -> None:
        super().save(metrics)
        content = hashlib.sha256()
        for tensor in weights_of(self.model).values():
            content.update(tensor.numpy().tobytes())
        self.digests.append(content.hexdigest())


def work(folder: Path, rank: int, world: int) -> None:
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    worker = PlainWorker(rank, world)
    for job in json.loads((folder / f"jobs-{world}.json").read_text()):
        experiment, scale, name = from_dict(job["experiment"]), Scale(**job["scale"]), job["name"]
        out, WatchedRun.digests = Path(scale.runs_dir) / name, []
        begin(experiment, scale, worker, name=name)
        dist.barrier()
        (out / f"digests-{rank}.json").write_text(json.dumps(WatchedRun.digests))
        # Once more from the weights that rank 0 left: this time every rank says what it saw.
        shards = open_shards(experiment, scale)
        model = build(experiment, shards.manifest.fields)
        model.load_state_dict(checkpoint.read(out / "model").weights())
        stream = open_stream(experiment, shards, "test", worker, scale, training=False)
        pq.write_table(evaluate(model, experiment.task.make("tasks"), stream, worker), out / f"rows-{rank}.parquet")
    dist.destroy_process_group()


def main(folder: Path, worlds: list[int]) -> int:
    """The number of ranks that failed."""
    for module in ("deepspeed.runtime.engine", "torch._dynamo", "sklearn.metrics"):
        importlib.import_module(module)
    train.Run = WatchedRun
    forked = multiprocessing.get_context("fork")
    ranks = [forked.Process(target=work, args=(folder, rank, world)) for world in worlds for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return sum(rank.exitcode != 0 for rank in ranks)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [int(world) for world in sys.argv[2:]]))
