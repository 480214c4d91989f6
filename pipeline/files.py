"""Files that are whole or not there: written aside, synced, renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what was written there takes `path`'s place when the block ends well.

    A reader sees the old file or the new one, never a part. A killed writer leaves a file named `.tmp-*` behind.
    """
    aside = path.parent / f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        yield aside
        sync(aside)
        aside.rename(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Has the file's (or directory's) content reach the disk before what follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
