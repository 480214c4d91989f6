"""Law 9: a command on a cluster, by `ray job submit`, and the same command on this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.contracts import RunSummary
from pipeline.tracking.tracker import read_summary

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
COMMAND = ["python", "-m", "jobs.train", "spoken_words", "--name", "run"]
SETTINGS = [
    *("corpus.labels=4", "fields.audio.mels=8", "model.width=8"),
    *("budget.parameters=null", "budget.epochs=2", "budget.rounds=1"),
]


@dataclass(frozen=True)
class Head:
    """A Ray cluster of one machine, as an administrator starts it, with a token."""

    address: str
    environment: dict[str, str]

    def submit(self, *command: str) -> subprocess.CompletedProcess[str]:
        submit = [str(RAY), "job", "submit", "--address", self.address, "--working-dir", ".", "--", *command]
        return subprocess.run(
            submit, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=240, check=False
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    kinds = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    ports = dict(zip(kinds, free_ports(len(kinds)), strict=True))
    settings = [f"--{name}={port}" for name, port in ports.items()]
    settings += ["--num-cpus=2", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as own,
        Path(own, "log").open("w") as log,
    ):
        environment = {**plain_environment(), **token}
        command = [str(RAY), "start", "--head", "--block", f"--temp-dir={own}", *settings]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(ports["dashboard-port"], process)
            yield Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            for one in psutil.wait_procs(family, timeout=5)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.kill()
            process.wait()


def plain_environment() -> dict[str, str]:
    """This environment with `python` on the path as a user has it, and nothing of the tests' own cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PATH": f"{RAY.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"no dashboard on port {port}")


def command(out: Path) -> list[str]:
    places = [f"data_dir={out / 'data'}", f"runs_dir={out / 'runs'}"]
    return [
        *COMMAND,
        f"corpus.path={out / 'wavs'}",
        *SETTINGS,
        *(part for place in places for part in ("--scale", place)),
    ]


def summary_of(out: Path) -> RunSummary:
    summary = read_summary(out / "runs" / "run")
    assert summary is not None
    return summary


def test_a_submitted_job_scores_as_the_same_command_on_this_machine(head: Head, tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    here = subprocess.Popen(
        command(near), cwd=ROOT, env=plain_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    job = head.submit(*command(far))
    printed, told = here.communicate(timeout=240)
    assert (job.returncode, here.returncode) == (0, 0), job.stdout + told
    ours, theirs = summary_of(far), summary_of(near)
    assert (ours.metrics, ours.steps, ours.fingerprint) == (theirs.metrics, theirs.steps, theirs.fingerprint)
    [line] = printed.splitlines()
    assert (
        line.startswith(f"run: test accuracy {theirs.score:.4f}, ")
        and f"run: test accuracy {ours.score:.4f}" in job.stdout
    )
    for text in (job.stdout, printed, told):
        assert "Traceback" not in text and "Reporting training result" not in text


def test_a_mistake_fails_the_job_with_one_sentence(head: Head) -> None:
    job = head.submit("python", "-m", "jobs.train", "spoken_words", "model=lstn")
    assert job.returncode != 0
    assert "error: models has no 'lstn'; did you mean 'lstm'?" in job.stdout
    assert "Traceback" not in job.stdout


def test_a_job_without_the_token_is_turned_away(head: Head) -> None:
    stranger = Head(head.address, {**head.environment, "RAY_AUTH_TOKEN": "0" * 64})
    job = stranger.submit("python", "-c", "print('inside')")
    assert job.returncode != 0 and "inside" not in job.stdout.replace("print('inside')", "")
