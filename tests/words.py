"""Small "words" to train on, written straight into shards: no Ray, no sound, no download.

A word is a ramp of one of `LABELS` slopes in noise, 6 to 14 steps of 6 features.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.manifest import Manifest, ShardInfo, write_manifest
from pipeline.data.tar import write_index, write_tar
from pipeline.experiment import Batching, Budget, Dataset, Experiment, FieldSpec, Optim, choose, override, to_dict

LABELS = ("fall", "flat", "peak", "rise")
FEATURES = 6
SHARDS = {"train": (23, 17, 24), "valid": (11, 10), "test": (9, 12)}
FAMILIES = ("rnn", "lstm", "gru", "transformer")


def words(changes: Mapping[str, Any] | None = None) -> Experiment:
    """An experiment on these words, with some settings changed: a small GRU, batches of 16, nothing random."""
    experiment = Experiment(
        name="words",
        dataset=Dataset(
            name="words",
            corpus=choose("synthetic", path="nowhere"),
            fields=(
                FieldSpec(name="audio", modality=choose("audio", mels=FEATURES), role="input"),
                FieldSpec(name="label", modality=choose("events"), role="target"),
            ),
        ),
        task=choose("classify", dropout=0.0),
        model=choose("gru", width=8, layers=1, dropout=0.0),
        inputs={"audio": {"stride": 1}},
        optim=Optim(lr=1e-2),
        batching=Batching(batch=16, window=2),
        budget=Budget(epochs=4, rounds=4),
    )
    for path, value in (changes or {}).items():
        experiment = override(experiment, path, value)
    return experiment


def long_words() -> Experiment:
    """Two hundred steps, long enough to be killed on the way; augmented, which does not depend on the rank."""
    model = choose("gru", width=32, layers=2, dropout=0.0)
    experiment = words({"model": model, "budget.epochs": 50, "budget.rounds": 5, "optim.lr": 1e-3})
    return replace(experiment, inputs={"audio": {"stride": 1, "speed": 0.1, "time_masks": 1, "time_width": 3}})


def of_family(family: str, changes: Mapping[str, Any] | None = None) -> Experiment:
    return replace(words(changes), model=choose(family, width=8, layers=1, dropout=0.0))


def write_words(
    data_dir: Path, dataset: Dataset | None = None, shards: Mapping[str, tuple[int, ...]] = SHARDS
) -> Dataset:
    """Writes the shard set of `dataset`: for each split, shards of so many samples."""
    dataset = dataset or words().dataset
    root = data_dir / dataset.identity
    root.mkdir(parents=True)
    modalities = {spec.name: spec.modality.make("modalities") for spec in dataset.fields}
    statistics = {name: modality.statistics() for name, modality in modalities.items()}
    infos = []
    for split, sizes in shards.items():
        for index, size in enumerate(sizes):
            name, samples = f"{split}-{index:06d}", [word(split, index, row) for row in range(size)]
            for _, fields in samples if split == "train" else []:
                for field, (_, payload) in fields.items():
                    statistics[field].add(payload)
            write_index(root / f"{name}.arrow", write_tar(root / f"{name}.tar", samples), {})
            size_bytes = (root / f"{name}.tar").stat().st_size
            infos.append(ShardInfo(name=name, split=split, samples=size, bytes=size_bytes, sha256=""))
    write_manifest(
        root,
        Manifest(
            identity=dataset.identity,
            fingerprint=dataset.fingerprint,
            dataset=to_dict(dataset),
            listing="",
            shards=tuple(infos),
            fields={name: modality.info(statistics[name]) for name, modality in modalities.items()},
            quarantined=0,
        ),
    )
    return dataset


def word(split: str, index: int, row: int) -> tuple[str, dict[str, tuple[str, bytes]]]:
    rng = np.random.default_rng([len(split), ord(split[1]), index, row])
    label = LABELS[(index + row) % len(LABELS)]
    steps = int(rng.integers(6, 15))
    line_T = np.linspace(-1, 1, steps)
    shape_T = {"fall": -line_T, "flat": 0 * line_T, "peak": 1 - 2 * np.abs(line_T), "rise": line_T}[label]
    noise_TF = rng.normal(0, 0.7, (steps, FEATURES))
    array = (shape_T[:, None] * np.linspace(0.5, 1.5, FEATURES) + noise_TF).astype(np.float32)
    file = io.BytesIO()
    np.save(file, array)
    return f"{split}_{index}_{row}", {"audio": ("npy", file.getvalue()), "label": ("txt", label.encode())}
