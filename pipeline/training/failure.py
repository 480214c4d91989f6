"""Failures that would come again however often a run is restarted: a user's mistake, damaged data.

They are carried as plain JSON from the worker that met one to the process that was asked for the run.
"""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.contracts import DataError, InputError
from pipeline.files import whole_file

LASTING = (InputError, DataError)


def to_plain(error: InputError | DataError) -> dict[str, str]:
    return {"kind": "input" if isinstance(error, InputError) else "data", "message": str(error)}


def from_plain(plain: dict[str, str]) -> InputError | DataError:
    return (InputError if plain["kind"] == "input" else DataError)(plain["message"])


def leave(error: InputError | DataError, path: Path) -> None:
    with whole_file(path) as aside:
        aside.write_text(json.dumps(to_plain(error)))


def found(path: Path) -> InputError | DataError | None:
    """What was left at `path`, if anything."""
    return from_plain(json.loads(path.read_text())) if path.exists() else None
