"""Spoken digits by a speaker whom no model has heard: the harder split of the same recordings.

Application: speech recognition, many to one. Source and features: see spoken_digits. Split: one speaker (theo) is the
test set, another (yweweler) chooses settings, four train. Hypothesis: all families fall well below their score on known
speakers; the gap between families widens. Cost: about an hour on two cores.
"""

from __future__ import annotations

from dataclasses import replace

from jobs.recipes.spoken_digits import spoken_digits
from pipeline.experiment import Experiment, Split


def spoken_digits_unseen() -> Experiment:
    known = spoken_digits()
    split = Split(rules={"test": {"speaker": "theo"}, "valid": {"speaker": "yweweler"}})
    dataset = replace(known.dataset, name="spoken_digits_unseen", split=split)
    return replace(known, name="spoken_digits_unseen", dataset=dataset)
