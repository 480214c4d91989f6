"""A modality for text that fails in whatever way its text says: `choose("tests.hostile")`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from pipeline.modalities.events import Events

FAULTS: dict[bytes, Callable[[], object]] = {
    b"die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"zero": lambda: 1 // 0,
    b"memory": lambda: bytes(1 << 60),
    b"surrogate": lambda: b"\xff".decode("utf-8", "surrogateescape").encode(),
    b"novel": lambda: int("9" * 400 + "x"),
}


class Hostile(Events):
    suffix: ClassVar[str] = "txt"

    def encode(self, raw: bytes) -> bytes:
        if raw.startswith(b"die once: "):
            died = Path(raw.decode().removeprefix("die once: "))
            if not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if raw in FAULTS:
            FAULTS[raw]()
        return super().encode(raw)
