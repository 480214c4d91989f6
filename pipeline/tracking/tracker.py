"""Where a run's metrics go: JSON lines on disk, always; and the finished runs read back.

In a run's directory: `metrics.jsonl`, one line a `log` call ({"step", "samples", "time", **metrics}; time in Unix
seconds, NaN and infinity as null), and `summary.json`, the RunSummary, whose existence means the run is finished.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pydantic

from pipeline.contracts import DataError, RunSummary
from pipeline.files import whole_file
from pipeline.protocols import Tracker

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CURVE = "valid/{metric}"  # the name under which training logs a round's score on the validation split
Curve = list[tuple[float, float]]  # (samples seen, score)
_ROW = pydantic.TypeAdapter(RunSummary)


class JsonlTracker:
    """The record that needs nothing but a disk; a kill loses at most the line being written."""

    def __init__(self, run_dir: Path, identity: str | None = None, now: Callable[[], float] = time.time) -> None:
        self.identity = identity
        self._dir = run_dir
        self._now = now
        run_dir.mkdir(parents=True, exist_ok=True)

    def log(self, metrics: Mapping[str, float], *, step: int, samples: int) -> None:
        values = {name: _finite(value) for name, value in metrics.items()}
        place = {"step": step, "samples": samples, "time": self._now()}
        line = json.dumps({**place, **values, **place}, allow_nan=False)
        with (self._dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def rewind(self, step: int) -> None:
        """Forget what was logged behind `step`: training repeats it. Belongs before an attempt's first `log`."""
        path = self._dir / METRICS
        if path.exists():
            write_whole(path, "".join(raw + "\n" for raw, line in _lines(path) if line["step"] <= step))

    def finish(self, summary: RunSummary) -> None:
        write_whole(self._dir / SUMMARY, _ROW.dump_json(summary, indent=2).decode() + "\n")


class Many:
    """Several trackers as one; `identity` is the first that one of them has."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.identity = next((tracker.identity for tracker in trackers if tracker.identity), None)
        self._trackers = trackers

    def log(self, metrics: Mapping[str, float], *, step: int, samples: int) -> None:
        for tracker in self._trackers:
            tracker.log(metrics, step=step, samples=samples)

    def rewind(self, step: int) -> None:
        for tracker in self._trackers:
            tracker.rewind(step)

    def finish(self, summary: RunSummary) -> None:
        for tracker in self._trackers:
            tracker.finish(summary)


def read_summaries(runs_dir: Path) -> list[RunSummary]:
    """Every finished run below `runs_dir`, by path. A file that cannot be read is named in a warning."""
    found = []
    for path in sorted(runs_dir.rglob(SUMMARY)):
        try:
            found.append(_read(path))
        except (OSError, ValueError) as error:
            warnings.warn(f"{path} is left out, it is no run summary: {_brief(error)}", stacklevel=2)
    return found


def read_summary(run_dir: Path) -> RunSummary | None:
    """The run's summary, or None where it is not finished. Raises DataError where the file is no summary."""
    path = run_dir / SUMMARY
    try:
        return _read(path) if path.exists() else None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no run summary: {_brief(error)}") from error


def read_curves(runs_dir: Path) -> dict[str, Curve]:
    """By run: its validation scores over samples seen. Files that `read_summaries` names are passed over."""
    curves: dict[str, Curve] = {}
    for path in sorted(runs_dir.rglob(SUMMARY)):
        try:
            summary = _read(path)
        except (OSError, ValueError):
            continue
        log, name = path.with_name(METRICS), CURVE.format(metric=summary.metric)
        lines = [line for _, line in _lines(log)] if log.exists() else []
        points = [(float(line["samples"]), float(line[name])) for line in lines if line.get(name) is not None]
        if points:
            curves[summary.run] = points
    return curves


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing, also when the machine dies on the way."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(raw, parsed) lines. A last line that a kill tore is passed over, one in the middle with a warning."""
    raws = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, raw in enumerate(raws, start=1):
        try:
            line = json.loads(raw)
            whole = isinstance(line, dict) and isinstance(line["step"], int)
        except (ValueError, KeyError):
            whole = False
        if whole:
            yield raw, line
        elif number < len(raws):
            warnings.warn(f"{path}: line {number} is left out, it is no metrics line: {raw[:80]!r}", stacklevel=3)


def _read(path: Path) -> RunSummary:
    plain = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(plain, dict):
        raise ValueError(f"it holds a {type(plain).__name__}")
    metrics = plain.get("metrics")
    if isinstance(metrics, dict):
        plain["metrics"] = {name: math.nan if value is None else value for name, value in metrics.items()}
    row = _ROW.validate_python({name: math.nan if value is None else value for name, value in plain.items()})
    datetime.fromisoformat(row.finished_at)  # raises ValueError; the leaderboard sorts by it
    if row.phase not in {"search", "final"}:
        raise ValueError(f"phase is {row.phase!r}, neither 'search' nor 'final'")
    return row


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _brief(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        return "; ".join(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors())
    return str(error)
