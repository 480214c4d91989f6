"""Small shard sets, written straight to disk from samples that a test gives: no Ray, no sound."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contracts import FieldInfo, Ragged
from pipeline.data.manifest import Manifest, ShardInfo, ShardSet, write_manifest
from pipeline.data.plan import plan_of
from pipeline.data.stream import Stream, StreamField
from pipeline.data.tar import write_index, write_tar
from pipeline.modalities.audio import Audio
from pipeline.modalities.events import Events

FEATURES = 3
SOUND = FieldInfo(dtype="float32", shape=(FEATURES,), rate_hz=100.0)
LABEL = FieldInfo(dtype="int64", shape=(), vocabulary=("a", "b", "c"))
Stored = Mapping[str, tuple[str, bytes]]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def steps_of(key: str) -> int:
    return 1 + sum(key.encode()) % 5


def features(key: str, steps: int | None = None) -> np.ndarray:
    """What the field `sound` of a key holds."""
    rng = np.random.default_rng(list(key.encode()))
    return rng.normal(size=(steps_of(key) if steps is None else steps, FEATURES)).astype(np.float32)


def label(key: str) -> str:
    return "abc"[len(key) % 3]


def sample(key: str) -> tuple[str, Stored]:
    return key, {"sound": ("npy", npy(features(key))), "label": ("txt", label(key).encode())}


def keys_of(sizes: Sequence[int]) -> list[list[str]]:
    """The keys of shards of so many samples."""
    return [[f"s{shard}_{row}" for row in range(size)] for shard, size in enumerate(sizes)]


def write_shards(
    data_dir: Path,
    shards: Sequence[Sequence[tuple[str, Stored]]],
    *,
    split: str = "train",
    fields: Mapping[str, FieldInfo] | None = None,
) -> ShardSet:
    """The shard set "small@1" of one split."""
    root, infos = data_dir / "small@1", []
    root.mkdir(parents=True, exist_ok=True)
    for number, samples in enumerate(shards):
        name = f"{split}-{number:06d}"
        index = write_tar(root / f"{name}.tar", samples)
        write_index(root / f"{name}.arrow", index, {})
        size = (root / f"{name}.tar").stat().st_size
        infos.append(ShardInfo(name=name, split=split, samples=len(samples), bytes=size, sha256=""))
    manifest = Manifest(
        identity="small@1",
        fingerprint="f",
        dataset={},
        listing="l",
        shards=tuple(infos),
        fields={**(fields or {"sound": SOUND, "label": LABEL})},
        quarantined=0,
    )
    write_manifest(root, manifest)
    return ShardSet(data_dir, "small@1")


def small_shards(data_dir: Path, sizes: Sequence[int]) -> ShardSet:
    return write_shards(data_dir, [[sample(key) for key in keys] for keys in keys_of(sizes)])


def num_known(targets: Mapping[str, Ragged]) -> int:
    return sum(int((field.values != -1).sum()) for field in targets.values())


def small_stream(shards: ShardSet, *, batch: int = 4, window: int = 2, shuffle: bool = True, **given: Any) -> Stream:
    """Of the fields `sound` (not normalised, not augmented) and `label`."""
    sizes = [shard.samples for shard in shards.split("train")]
    plan = plan_of(sizes, batch=batch, window=window, seed=3, shuffle=shuffle)
    fields = shards.manifest.fields
    fixed: dict[str, Any] = {
        "inputs": [StreamField(name="sound", modality=Audio(mels=FEATURES), info=fields["sound"])],
        "targets": [StreamField(name="label", modality=Events(), info=fields["label"])],
        "count": num_known,
    }
    return Stream(shards, "train", plan, **{**fixed, **given})


def pieces(ragged: Ragged) -> list[np.ndarray]:
    """The sequences of a Ragged, one by one."""
    return np.split(ragged.values.numpy(), np.cumsum(ragged.lengths_B.numpy())[:-1])
