from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.contracts import RunSummary


@pytest.fixture
def row() -> Callable[..., RunSummary]:
    """Makes a final run's summary; any field can be given."""

    def make(**given: Any) -> RunSummary:
        family, seed, score = given.get("family", "lstm"), given.get("seed", 0), given.get("score", 0.5)
        plain: dict[str, Any] = {
            "run": f"{family}-{seed}",
            "contest": "words#abc123",
            "family": family,
            "phase": "final",
            "seed": seed,
            "split": "test",
            "metric": "accuracy",
            "score": score,
            "higher_is_better": True,
            "metrics": {"accuracy": score, "loss": 1.25},
            "parameters": 100_000,
            "steps": 10,
            "samples": 320,
            "seconds": 4.0,
            "device_seconds": 8.0,
            "samples_per_second": 80.0,
            "fingerprint": "f" * 64,
            "settings": {"name": "words", "model": {"name": family, "settings": {"width": 64}}, "seed": seed},
            "commit": "0123456789abcdef",
            "finished_at": "2026-01-01T10:00:00+00:00",
        }
        return RunSummary(**{**plain, **given})

    return make
