"""ray_cluster.yaml is what Ray's own cluster launcher accepts, and it opens no door."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return loaded


@pytest.fixture
def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """With Ray's defaults for AWS filled in."""
    return prepare_config(cluster)


def ray_starts(cluster: dict[str, Any]) -> list[str]:
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def test_ray_accepts_the_file(prepared: dict[str, Any]) -> None:
    validate_config(prepared)


def test_ray_refuses_the_file_with_a_misspelt_key(prepared: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="min_worker"):
        validate_config({**prepared, "min_worker": 1})


def test_the_cluster_shrinks_to_its_head(prepared: dict[str, Any]) -> None:
    types = prepared["available_node_types"]
    assert {name: kind["min_workers"] for name, kind in types.items()} == {"head": 0, "data": 0, "gpu": 0}
    assert types["head"]["max_workers"] == 0
    assert types["data"]["max_workers"] + types["gpu"]["max_workers"] <= prepared["max_workers"]


def test_all_nodes_run_one_image(cluster: dict[str, Any]) -> None:
    images = {kind["node_config"]["ImageId"] for kind in cluster["available_node_types"].values()}
    assert len(images) == 1


def test_every_node_asks_for_the_token_and_has_it(cluster: dict[str, Any]) -> None:
    starts = ray_starts(cluster)
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in start for start in starts)
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_dashboard_listens_on_the_head_alone(cluster: dict[str, Any]) -> None:
    head = next(start for start in ray_starts(cluster) if "--head" in start)
    assert "--dashboard-host=127.0.0.1" in head


def test_local_files_of_the_checkout_are_there(cluster: dict[str, Any]) -> None:
    local = [path for path in cluster["file_mounts"].values() if not path.startswith("~")]
    assert local == ["pyproject.toml"]
    assert (ROOT / local[0]).is_file()


def test_the_pinned_ray_is_one_that_the_project_allows(cluster: dict[str, Any]) -> None:
    pinned = re.search(r"ray\[default\]==([\d.]+)", " ".join(cluster["setup_commands"]))
    assert pinned
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [Requirement(line) for name in ("ingest", "train") for line in extras[name] if line.startswith("ray[")]
    assert len(wanted) == 2
    assert all(requirement.specifier.contains(pinned[1]) for requirement in wanted)


@pytest.mark.parametrize(
    "stage",
    [
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ],
)
def test_commands_are_valid_shell(cluster: dict[str, Any], stage: str) -> None:
    for command in cluster[stage]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
