from __future__ import annotations

import importlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pipeline.tracking.wandb as ours
from pipeline.contracts import RunSummary
from pipeline.protocols import Tracker
from pipeline.tracking.wandb import WandbTracker

theirs = pytest.importorskip("wandb")
Row = Callable[..., RunSummary]


@pytest.fixture(autouse=True)
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is logged in, no setting of this machine counts, and W&B reads the environment afresh."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    theirs.teardown()
    yield
    theirs.teardown()


def tracker(tmp_path: Path, identity: str | None = None) -> WandbTracker:
    return WandbTracker("lstm-0", "words#abc123", {"model": {"width": 64}}, tmp_path / "run", identity)


def recorded(tmp_path: Path) -> list[bytes]:
    theirs.teardown()  # W&B's own process writes the files; offline, finish() does not wait for it
    return [path.read_bytes() for path in sorted((tmp_path / "run").rglob("*.wandb"))]


def silent_from_here_on(given: Tracker, summary: RunSummary) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            given.log({"loss": 1.0}, step=step, samples=step)
        given.rewind(1)
        given.finish(summary)


def test_our_module_and_the_library_do_not_shadow_each_other() -> None:
    assert ours is not importlib.import_module("wandb")
    assert Path(theirs.__file__).parent.parent != Path(ours.__file__).parent


def test_offline_a_run_is_recorded_and_resumes_under_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = tracker(tmp_path)
    first.log({"loss": 0.5}, step=1, samples=32)
    first.finish(row())
    assert first.identity
    second = tracker(tmp_path, first.identity)
    assert second.identity == first.identity
    second.rewind(1)
    second.log({"loss": float("nan"), "valid/accuracy": 0.7}, step=2, samples=64)
    second.log({"again": 0.7}, step=1, samples=32)
    silent_from_here_on(second, row())
    files = recorded(tmp_path)
    assert len(files) == 2
    for said in (b"words#abc123", b"lstm-0", b"seqpit", b"samples", b"loss", b"score", first.identity.encode()):
        assert all(said in file for file in files), said
    assert b"valid/accuracy" in files[1]
    assert b"again" not in files[1]
    assert "".join(capfd.readouterr()) == ""


def test_two_runs_of_one_process_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, second = tracker(tmp_path / "a"), tracker(tmp_path / "b")
    assert first.identity != second.identity
    first.log({"mine": 1.0}, step=1, samples=1)
    second.log({"yours": 1.0}, step=1, samples=1)
    first.finish(row())
    second.finish(row())
    assert [b"mine" in file for name in "ab" for file in recorded(tmp_path / name)] == [True, False]


def test_without_a_login_the_run_is_recorded_offline_and_says_so_once(tmp_path: Path, row: Row) -> None:
    with pytest.warns(UserWarning, match="no login.*WANDB_MODE=offline") as caught:
        stranger = tracker(tmp_path, "kept-id")
    assert len(caught) == 1
    assert stranger.identity == "kept-id"
    silent_from_here_on(stranger, row())
    assert len(recorded(tmp_path)) == 1


def test_switched_off_it_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    silent_from_here_on(tracker(tmp_path, "kept-id"), row())
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_down_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(ours, "INIT_SECONDS", 1.0)
    start = time.monotonic()
    with pytest.warns(UserWarning, match="W&B is off") as caught:
        down = tracker(tmp_path, "kept-id")
    assert len(caught) == 1
    assert down.identity == "kept-id"
    silent_from_here_on(down, row())
    assert time.monotonic() - start < 15


def test_a_broken_library_warns_once_by_name_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("no luck today")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(theirs, "init", broken)
    with pytest.warns(UserWarning, match="RuntimeError: no luck today.*WANDB_MODE=offline") as caught:
        given = tracker(tmp_path, "kept-id")
    assert len(caught) == 1
    assert given.identity == "kept-id"
    silent_from_here_on(given, row())


def test_a_library_that_is_not_installed_warns_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match="W&B is off for the rest of this run, ModuleNotFoundError") as caught:
        given = tracker(tmp_path)
    assert len(caught) == 1
    assert given.identity is None
    silent_from_here_on(given, row())


@pytest.mark.parametrize("call", ["log", "finish"])
def test_a_failure_on_the_way_warns_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row, call: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    given = tracker(tmp_path)
    run = given._run
    assert run is not None
    original = run.finish

    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(run, call, broken)
    with pytest.warns(UserWarning, match="OSError: disk full") as caught:
        given.log({"loss": 1.0}, step=1, samples=1)
        given.finish(row())
    assert len(caught) == 1
    silent_from_here_on(given, row())
    original()
