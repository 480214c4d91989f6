"""Spoken words, generated: small wav files of vowel sequences, written to disk, for a first look without any download.

Application: speech recognition, many to one; what `make demo` runs. Source: generated (corpora/synthetic). Split: no
speaker stands in two splits. The 42 words hold the same three vowels in other orders, so order must be heard. Baseline:
chance 2.4 %. Hypothesis: at 30,000 parameters and ten epochs the recurrent families lead the Transformer. Cost: about
two minutes on two cores for all four families.
"""

from __future__ import annotations

from dataclasses import replace

from jobs.recipes.recordings import recordings
from pipeline.experiment import Budget, Experiment, FieldSpec, Split, choose


def spoken_words() -> Experiment:
    own = recordings()
    dataset = replace(
        own.dataset,
        name="spoken_words",
        corpus=choose("synthetic", path="data/spoken_words", labels=42, speakers=12, takes=2),
        fields=(
            FieldSpec(name="audio", modality=choose("audio", sample_rate_hz=8000, mels=40), role="input"),
            FieldSpec(name="label", modality=choose("events"), role="target"),
        ),
        split=Split(rules={"test": {"speaker": "s(9|10|11)"}, "valid": {"speaker": "s[78]"}}),
        shard_mb=1,
    )
    budget = Budget(parameters=30_000, epochs=10, rounds=5, trials=2, seeds=3)
    return replace(own, name="spoken_words", dataset=dataset, budget=budget)
