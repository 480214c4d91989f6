from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.contracts import DataError, InputError
from pipeline.data.manifest import Manifest, ShardInfo, ShardSet, find_manifest, write_manifest
from tests.shards import LABEL, SOUND, small_shards


def info(name: str, samples: int = 5) -> ShardInfo:
    return ShardInfo(name=name, split=name.split("-")[0], samples=samples, bytes=10_240, sha256="0" * 64)


MANIFEST = Manifest(
    identity="words@2",
    fingerprint="f",
    dataset={"name": "words", "shard_mb": 0.5},
    listing="l",
    shards=(info("test-000000"), info("train-000000", 7), info("train-000001", 2)),
    fields={"sound": replace(SOUND, mean=(0.1, -2.5e-9, 1e30), std=(1.0, 2.0, 3.0)), "label": LABEL},
    quarantined=3,
)


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert find_manifest(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_splits_count_their_samples() -> None:
    assert MANIFEST.splits == {"test": 5, "train": 9}


def test_where_there_is_no_manifest_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert find_manifest(tmp_path) is None
    assert find_manifest(tmp_path / "nowhere") is None
    assert find_manifest(tmp_path / "file") is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"shards": [{"name": "../../etc/x", "split": "train", "samples": 1, "bytes": 1, "sha256": ""}]},
            "shards.0.name",
        ),
        ({"shards": [{"name": "x", "split": "train", "samples": -1, "bytes": 1, "sha256": ""}]}, "shards.0.samples"),
        ({"more": 1}, "more"),
        ({"quarantined": "many"}, "quarantined"),
        ({"fields": {"sound": {}}}, "fields.sound.dtype"),
    ],
)
def test_a_manifest_that_is_none_is_named(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=rf"{path} is not a manifest: {fault}: "):
        find_manifest(tmp_path)


def test_half_a_manifest_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{path} is not a manifest: Invalid JSON"):
        find_manifest(tmp_path)


def test_a_dataset_that_is_not_there_is_said_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no dataset 'words@1' under .*; nothing has been ingested there"):
        ShardSet(tmp_path, "words@1")
    for name in ("words@2", "birds@1", ".words@1-0123456789abcdef"):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, MANIFEST)
    with pytest.raises(InputError, match=r"did you mean 'words@2'\? \(choices: birds@1, words@2\)"):
        ShardSet(tmp_path, "words@1")


def test_a_split_that_is_not_there_is_said_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "words@2").mkdir()
    write_manifest(tmp_path / "words@2", MANIFEST)
    shards = ShardSet(tmp_path, "words@2")
    assert [shard.name for shard in shards.split("train")] == ["train-000000", "train-000001"]
    with pytest.raises(
        InputError, match=r"words@2 has no split 'tset'; did you mean 'test'\? \(choices: test, train\)"
    ):
        shards.split("tset")


def test_a_shard_opens_by_what_the_manifest_says_of_it(tmp_path: Path) -> None:
    shards = small_shards(tmp_path, [3, 2])
    first, second = shards.split("train")
    assert shards.open(second).key(1) == "s1_1"
    with pytest.raises(DataError, match=r"train-000000\.arrow has 3 samples, its manifest says 4"):
        shards.open(replace(first, samples=4))
    with pytest.raises(DataError, match=rf"train-000000\.tar has {first.bytes} bytes, its manifest says 1"):
        shards.open(replace(first, bytes=1))
