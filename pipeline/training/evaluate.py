"""Evaluation: one row a sample, each exactly once whatever the number of ranks.

Scores are computed from the rows alone, so every slice and interval can be computed from them later.
"""

from __future__ import annotations

import pyarrow as pa
import torch
import torch.distributed

from pipeline.data.stream import Stream
from pipeline.protocols import Task, Worker
from pipeline.training.model import Model


@torch.no_grad()
def evaluate(model: Model, task: Task, stream: Stream, worker: Worker) -> pa.Table:
    """Rows of a whole split, sorted by key, the same on every rank: `key` and what the task's decode gives."""
    was_training = model.training
    model.eval()
    tables = []
    for batches in stream.steps(0, stream.plan.steps_per_epoch):
        for batch in batches:
            if batch.keys:
                batch = batch.to(worker.device)
                tables.append(pa.table({"key": list(batch.keys), **task.decode(model(batch.inputs), batch)}))
    model.train(was_training)
    return gather(pa.concat_tables(tables) if tables else None, worker).sort_by("key")


def gather(table: pa.Table | None, worker: Worker) -> pa.Table:
    """The rows of all ranks together. They travel as Arrow bytes: nothing is unpickled."""
    if worker.world == 1:
        assert table is not None
        return table
    ours = torch.frombuffer(bytearray(_arrow_bytes(table)), dtype=torch.uint8).to(worker.device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=worker.device) for _ in range(worker.world)]
    torch.distributed.all_gather(sizes, torch.tensor([len(ours)], device=worker.device))
    padded = ours.new_zeros(int(max(sizes)))
    padded[: len(ours)] = ours
    parts = [torch.empty_like(padded) for _ in range(worker.world)]
    torch.distributed.all_gather(parts, padded)
    tables = [
        pa.ipc.open_stream(part[: int(size)].cpu().numpy().tobytes()).read_all()
        for part, size in zip(parts, sizes, strict=True)
    ]
    return pa.concat_tables([table for table in tables if table.num_rows])


def _arrow_bytes(table: pa.Table | None) -> bytes:
    """An Arrow stream; a rank that had no sample sends an empty one."""
    table = pa.table({}) if table is None else table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
