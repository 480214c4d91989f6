from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.contracts import TooManyHolesError
from pipeline.data.ingest import ingest
from tests.recordings import dataset_of, in_folder, record, stream_of

pytestmark = pytest.mark.usefixtures("kill_after")


def quarantine(tmp_path: Path, folder: str = "data/words@1") -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(tmp_path / folder / "quarantine.parquet").to_pylist()
    return rows


def test_what_cannot_be_used_is_quarantined_and_named(tmp_path: Path, wavs: Path) -> None:
    (wavs / "no" / "1.wav").write_bytes(b"")
    (wavs / "no" / "2.wav").write_bytes(b"not a sound at all" * 50)
    (wavs / "yes" / "3.wav").write_bytes((wavs / "yes" / "3.wav").read_bytes()[:1000])
    (wavs / "yes" / "4.wav").unlink()
    (wavs / "yes" / "4.wav").symlink_to(wavs / "nowhere.wav")
    manifest = ingest(dataset_of(wavs), in_folder(tmp_path / "data"), tolerance=0.5)
    holes = {hole["source"]: hole for hole in quarantine(tmp_path)}
    assert sorted(holes) == ["no/1.wav", "no/2.wav", "yes/3.wav", "yes/4.wav"]
    assert holes["no/1.wav"]["reason"] == "the file is empty"
    assert "not a sound" in holes["no/2.wav"]["reason"]
    assert "cut off" in holes["yes/3.wav"]["reason"]
    assert "No such file" in holes["yes/4.wav"]["reason"]
    assert {hole["split"] for hole in holes.values()} == {"train"}
    assert manifest.quarantined == 4 and manifest.splits == {"test": 2, "train": 6}
    keys = {key for batches in stream_of(tmp_path / "data").steps(0, 2) for batch in batches for key in batch.keys}
    assert not keys & {hole["key"] for hole in holes.values()} and len(keys) == 6


def test_too_many_holes_stop_with_how_many_and_why_and_keep_what_was_done(tmp_path: Path, wavs: Path) -> None:
    for take in (1, 2, 3):
        (wavs / "no" / f"{take}.wav").write_bytes(b"noise")
    with pytest.raises(
        TooManyHolesError, match=r"3 of 12 .* 20% tolerated; the first: no/\d.wav: not a sound"
    ) as raised:
        ingest(dataset_of(wavs), in_folder(tmp_path / "data"), tolerance=0.2)
    assert not (tmp_path / "data/words@1").exists()
    table = re.search(r"\(see (.*quarantine\.parquet)\)", str(raised.value))
    assert table is not None and pq.read_table(table[1]).num_rows == 3
    assert ingest(dataset_of(wavs), in_folder(tmp_path / "data"), tolerance=0.25).quarantined == 3


@pytest.mark.parametrize(("takes", "split"), [(range(1, 6), "train"), (range(1), "test"), (range(6), "test")])
def test_a_split_of_holes_alone_stops_whatever_is_tolerated(
    tmp_path: Path, wavs: Path, takes: range, split: str
) -> None:
    for take in takes:
        for label in ("no", "yes"):
            (wavs / label / f"{take}.wav").write_bytes(b"noise")
    with pytest.raises(TooManyHolesError, match=f"no sample of words@1 .* is left in the split '{split}'.*not a sound"):
        ingest(dataset_of(wavs), in_folder(tmp_path / "data"), tolerance=1)


def test_a_shard_of_holes_alone_is_not_listed_and_leaves_no_file(tmp_path: Path, wavs: Path) -> None:
    dataset = dataset_of(wavs)
    part = next(
        part for part in dataset.corpus.make("corpora").parts(dataset.split, 6000) if part.shard == "train-000001"
    )
    for relative, size in part.source:
        (wavs / relative).write_bytes(bytes(size))
    manifest = ingest(dataset, in_folder(tmp_path / "data"), tolerance=0.5)
    assert "train-000001" not in {shard.name for shard in manifest.shards}
    assert not [*(tmp_path / "data/words@1").glob("train-000001*")]
    assert {hole["shard"] for hole in quarantine(tmp_path)} == {"train-000001"}


def test_only_the_training_split_teaches(tmp_path: Path, wavs: Path, caplog: pytest.LogCaptureFixture) -> None:
    record(wavs, labels=("no", "yes", "maybe"), takes=1)
    with caplog.at_level(logging.WARNING):
        manifest = ingest(dataset_of(wavs), in_folder(tmp_path / "data"))
    assert manifest.splits == {"test": 3, "train": 10}
    assert manifest.fields["label"].vocabulary == ("no", "yes")
    assert "label: 'maybe' never stands in the training split; no model can predict it" in caplog.text
    batches = [batch for step in stream_of(tmp_path / "data").steps(0, 3) for batch in step]
    values = np.concatenate([batch.inputs["audio"].values.numpy() for batch in batches])
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-4)
    test = next(stream_of(tmp_path / "data", "test").steps(0, 1))[0]
    assert -1 in test.targets["label"].values
