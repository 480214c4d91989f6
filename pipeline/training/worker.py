"""SoloWorker: the Worker contract in this process, for tests, cheap trials and a lone machine."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.files import TEMPORARY, sync
from pipeline.training.checkpoint import FILE


class SoloWorker:
    """The only rank. Keeps its newest checkpoint under `directory`/checkpoints."""

    rank = 0
    world = 1

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        self.directory = directory / "checkpoints"
        self.device = torch.device(device)
        if not dist.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        whole = [path.parent for path in self.directory.glob(f"[0-9]*/{FILE}")]
        return max(whole, key=lambda path: int(path.name), default=None)

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        if checkpoint is None:
            return
        old = list(self.directory.glob("[0-9]*"))
        place = self.directory / str(max((int(path.name) for path in old), default=-1) + 1)
        aside = self.directory / f"{TEMPORARY}{place.name}"
        shutil.rmtree(aside, ignore_errors=True)  # what a killed copy left
        shutil.copytree(checkpoint, aside)
        for path in [*aside.iterdir(), aside]:
            sync(path)
        aside.rename(place)
        for path in old:
            shutil.rmtree(path)
