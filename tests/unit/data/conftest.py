"""ingest in one process: parts are written one after the other, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.contracts import Part
from pipeline.data import ingest as module
from pipeline.data.part import write_part
from pipeline.experiment import Dataset, to_dict
from pipeline.files import TEMPORARY
from pipeline.scale import Scale
from tests.recordings import Killed, record


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """No Ray; `kill_after["parts"]` ends ingest after so many parts, halfway through the next one."""
    limit = {"parts": 10**6}

    def in_this_process(dataset: Dataset, parts: list[Part], building: Path, scale: Scale) -> Iterator[dict[str, Any]]:
        for number, part in enumerate(parts):
            if number == limit["parts"]:
                (building / f"{TEMPORARY}{part.shard}.tar-00000000").write_bytes(b"half")
                raise Killed
            yield write_part(module._with_absolute_paths(to_dict(dataset)), part, building)

    monkeypatch.setattr(module, "_write_parts", in_this_process)
    return limit


@pytest.fixture
def wavs(tmp_path: Path) -> Path:
    return record(tmp_path / "wavs")
