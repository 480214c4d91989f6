"""Spoken digits: which of ten words is said in a recording of half a second.

Application: speech recognition, many to one. Source: Free Spoken Digit Dataset (3,000 recordings, 8 kHz, 6 speakers).
Split: official, takes 0 to 4 are the test set; takes 45 to 49 choose settings. Baseline: majority 10 %. Hypothesis: all
gated families and the Transformer pass 99 %, a plain RNN comes close. Cost: about an hour on two cores.
"""

from __future__ import annotations

from pipeline.experiment import Batching, Budget, Dataset, Experiment, FieldSpec, Optim, Split, choose

PATTERN = r"(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav"


def spoken_digits() -> Experiment:
    return Experiment(
        name="spoken_digits",
        dataset=Dataset(
            name="spoken_digits",
            corpus=choose("folder", path="../shared/corpora/fsdd/recordings", pattern=PATTERN),
            fields=(
                FieldSpec(name="audio", modality=choose("audio", sample_rate_hz=8000, mels=40), role="input"),
                FieldSpec(name="label", modality=choose("events"), role="target"),
            ),
            split=Split(rules={"test": {"take": "[0-4]"}, "valid": {"take": "4[5-9]"}}),
            shard_mb=1,
        ),
        task=choose("classify"),
        model=choose("lstm", layers=2, dropout=0.2),
        inputs={
            "audio": {"speed": 0.1, "freq_masks": 2, "freq_width": 6, "time_masks": 2, "time_width": 8, "stride": 2}
        },
        optim=Optim(lr=2e-3, weight_decay=0.01),
        batching=Batching(batch=32),
        budget=Budget(parameters=250_000, epochs=24, rounds=6, trials=4, seeds=3),
    )
