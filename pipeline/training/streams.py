"""The streams of an experiment: its splits as micro-batches for one rank."""

from __future__ import annotations

from pipeline.contracts import FieldInfo
from pipeline.data.manifest import ShardSet, check_settings
from pipeline.data.plan import derive, plan_of
from pipeline.data.stream import Stream, StreamField
from pipeline.experiment import Experiment, FieldSpec
from pipeline.protocols import Worker
from pipeline.scale import Scale


def open_shards(experiment: Experiment, scale: Scale) -> ShardSet:
    """The ingested dataset of an experiment. Raises InputError where it is absent or was made with other settings."""
    shards = ShardSet(scale.data_dir, experiment.dataset.identity)
    check_settings(shards.manifest, experiment.dataset)
    return shards


def open_stream(
    experiment: Experiment, shards: ShardSet, split: str, worker: Worker, scale: Scale, *, training: bool
) -> Stream:
    """`training` shuffles and augments; otherwise samples come once, in stored order, as they are."""
    sizes = [shard.samples for shard in shards.split(split)]
    batching = experiment.batching
    seed = derive(experiment.seed, "data")
    plan = plan_of(sizes, batch=batching.batch, window=batching.window, seed=seed, shuffle=training)
    fields = shards.manifest.fields

    def stream_field(spec: FieldSpec, fed: bool) -> StreamField:
        info: FieldInfo = fields[spec.name]
        return StreamField(
            name=spec.name,
            modality=spec.modality.make("modalities"),
            info=info,
            feed=experiment.feed(spec) if fed else None,
            raw=spec.store == "raw",
        )

    return Stream(
        shards,
        split,
        plan,
        inputs=[stream_field(spec, training) for spec in experiment.dataset.of_role("input")],
        targets=[stream_field(spec, False) for spec in experiment.dataset.of_role("target")],
        count=experiment.task.make("tasks").num_targets,
        rank=worker.rank,
        world=worker.world,
        micro_batch=batching.micro_batch,
        prefetch_steps=scale.prefetch_steps,
    )
