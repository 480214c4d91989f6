"""Your own labelled recordings: a folder with a sub-folder for each label.

Application: sound classification, many to one. Source: `corpus.path=FOLDER`; `corpus.pattern=` reads labels (and
groups such as the speaker, for `split.group=`) from file names instead. Split: by a hash of the file's path, 15 % each
to choose settings and to test; name a group whenever recordings belong together. Cost: minutes for some hundred files.
"""

from __future__ import annotations

from pipeline.experiment import Batching, Budget, Dataset, Experiment, FieldSpec, Optim, Split, choose


def recordings() -> Experiment:
    return Experiment(
        name="recordings",
        dataset=Dataset(
            name="recordings",
            corpus=choose("folder", path="recordings"),
            fields=(
                FieldSpec(name="audio", modality=choose("audio", sample_rate_hz=16000, mels=40), role="input"),
                FieldSpec(name="label", modality=choose("events"), role="target"),
            ),
            split=Split(shares={"valid": 0.15, "test": 0.15}),
            shard_mb=8,
        ),
        task=choose("classify"),
        model=choose("lstm", layers=2, dropout=0.2),
        inputs={
            "audio": {"speed": 0.1, "freq_masks": 2, "freq_width": 6, "time_masks": 2, "time_width": 8, "stride": 2}
        },
        optim=Optim(lr=2e-3),
        batching=Batching(batch=16),
        budget=Budget(parameters=100_000, epochs=12, rounds=6, trials=2, seeds=3),
    )
