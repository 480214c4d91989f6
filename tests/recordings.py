"""A small folder of recordings and a dataset of it, for tests of ingest."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.manifest import ShardSet
from pipeline.data.plan import plan_of
from pipeline.data.stream import Stream, StreamField
from pipeline.experiment import Dataset, FieldSpec, Split, choose
from pipeline.scale import Scale


class Killed(BaseException):
    """What ends an ingest where a test wants it to end."""


PATTERN = r"(?P<label>\w+)/(?P<take>\d+)\.wav"


def record(root: Path, labels: tuple[str, ...] = ("no", "yes"), takes: int = 6) -> Path:
    """`root/LABEL/TAKE.wav`: a tenth of a second of noise each, 16 bit, 8 kHz."""
    for number, label in enumerate(labels):
        (root / label).mkdir(parents=True, exist_ok=True)
        for take in range(takes):
            noise = np.random.default_rng([number, take]).normal(0, 1000, 800 + 40 * take).astype("<i2")
            with wave.open(str(root / label / f"{take}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes(noise.tobytes())
    return root


def dataset_of(root: Path | str, **given: Any) -> Dataset:
    """Take 0 of each label is the test split; two or three recordings a shard."""
    fixed: dict[str, Any] = {
        "name": "words",
        "corpus": choose("folder", path=str(root), pattern=PATTERN),
        "fields": (
            FieldSpec(name="audio", modality=choose("audio", sample_rate_hz=8000, mels=4), role="input"),
            FieldSpec(name="label", modality=choose("events"), role="target"),
        ),
        "split": Split(rules={"test": {"take": "0"}}),
        "shard_mb": 0.006,
    }
    return Dataset(**{**fixed, **given})


def in_folder(folder: Path) -> Scale:
    return Scale(data_dir=str(folder))


def stream_of(data_dir: Path, split: str = "train") -> Stream:
    shards = ShardSet(data_dir, "words@1")
    dataset = Dataset(**shards.manifest.dataset)
    plan = plan_of([shard.samples for shard in shards.split(split)], batch=4)
    fields = {
        spec.name: StreamField(
            name=spec.name,
            modality=spec.modality.make("modalities"),
            info=shards.manifest.fields[spec.name],
            raw=spec.store == "raw",
        )
        for spec in dataset.fields
    }
    return Stream(shards, split, plan, inputs=[fields["audio"]], targets=[fields["label"]], count=lambda targets: 1)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    """When each file and folder below a folder last changed."""
    return {str(path): path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}
