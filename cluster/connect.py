"""Connecting to Ray: a cluster that is there, or one of this machine's own."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# Read when ray is imported: lines of progress are no repetitions of each other, though they look alike.
os.environ.setdefault("RAY_DEDUP_LOGS_ALLOW_REGEX", r" \| step \d")

import ray

from pipeline.contracts import InputError, TooManyHolesError
from pipeline.scale import Scale

ENVIRONMENT = {
    # How soon Ray Train sees a dead worker, and how long it waits for a group to start: the defaults (2 s, 60 s) make
    # recovery from a dead node slow.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    # oneDNN keeps a compiled kernel for every shape that it has seen, up to 1024: with sequences of all lengths that
    # comes to a gigabyte a process. At 128 a step is no slower.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
}


@contextmanager
def connected(scale: Scale) -> Iterator[None]:
    """A Ray cluster for the time of the block: `scale.address` or RAY_ADDRESS (set inside a Ray job), else a local one.

    A local cluster has its own temporary directory, so that two of them on a machine do not meet, and is stopped at the
    end; a cluster that was there before is left as it is.
    """
    if ray.is_initialized():
        yield
        return
    # The remark that token authentication is on says nothing that a user could act upon.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    address = scale.address or os.environ.get("RAY_ADDRESS")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    variables = {name: os.environ[name] for name in ENVIRONMENT}
    if address:
        # Ray Train's cleaner of left-over placement groups asks the dashboard who is alive; where two clusters run on a
        # machine, it has to be told which one is its own.
        variables |= {} if address == "auto" else {"RAY_ADDRESS": address}
        ray.init(address=address, runtime_env={"env_vars": variables}, logging_level=logging.WARNING)
        try:
            yield
        finally:
            ray.shutdown()
        return
    own = tempfile.mkdtemp(prefix="ray-")  # short: Ray keeps sockets below it, whose names have a limit
    port, cores = _free_port(), scale.workers * scale.cpus
    variables |= {
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away, and its start prints an error
    }
    ray.init(
        address="local",
        num_cpus=cores if cores > (os.cpu_count() or 1) else None,  # too many workers are slow; Ray would wait for ever
        runtime_env={"env_vars": variables},
        logging_level=logging.WARNING,
        include_dashboard=True,
        dashboard_port=port,
        _temp_dir=own,
    )
    failed = True
    try:
        yield
        failed = False
    except (InputError, TooManyHolesError, KeyboardInterrupt):
        failed = False
        raise
    finally:
        ray.shutdown()
        if failed:
            logging.getLogger(__name__).warning("Ray's logs are kept below %s", own)
        else:
            shutil.rmtree(own, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
