"""What several test folders share: one small dataset and, for tests that need it, one local Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from pipeline.scale import Scale
from tests.words import long_words, write_words

os.environ.setdefault("OMP_NUM_THREADS", "1")
hypothesis.settings.register_profile("seqpit", deadline=None)  # a loaded machine is no failure
hypothesis.settings.load_profile("seqpit")


@pytest.fixture(scope="session")
def words_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with the shard set of `tests.words`, whose files nobody changes."""
    data_dir = tmp_path_factory.mktemp("words")
    write_words(data_dir)
    return data_dir


@pytest.fixture
def scale(words_dir: Path, tmp_path: Path) -> Scale:
    return Scale(data_dir=str(words_dir), runs_dir=str(tmp_path / "runs"), log_steps=1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray cluster, as `python -m jobs.train` starts it."""
    from cluster.connect import connected

    with connected(Scale()):
        yield


@pytest.fixture(scope="session")
def pair(words_dir: Path, tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Path:
    """The directory of a run of `long_words` by two Ray Train workers that nothing disturbed."""
    from pipeline.training.fit import fit

    runs_dir = tmp_path_factory.mktemp("pair")
    fit(long_words(), Scale(data_dir=str(words_dir), runs_dir=str(runs_dir), workers=2, log_steps=1), "pair")
    return runs_dir / "pair"
