"""ingest without Ray; with it: tests/cluster/test_ingest.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.contracts import InputError, Part
from pipeline.data import ingest as module
from pipeline.data.ingest import ingest
from pipeline.data.manifest import ShardSet
from pipeline.experiment import Dataset, FieldSpec, choose, to_dict
from pipeline.scale import Scale
from tests.recordings import PATTERN, Killed, contents, dataset_of, in_folder, record, times

pytestmark = pytest.mark.usefixtures("kill_after")


def test_the_manifest_says_what_is_there(tmp_path: Path, wavs: Path) -> None:
    dataset = dataset_of(wavs)
    manifest = ingest(dataset, in_folder(tmp_path / "data"))
    assert manifest == ShardSet(tmp_path / "data", "words@1").manifest
    assert manifest.fingerprint == dataset.fingerprint and manifest.splits == {"test": 2, "train": 10}
    assert manifest.fields["label"].vocabulary == ("no", "yes")
    assert len(manifest.fields["audio"].mean) == len(manifest.fields["audio"].std) == 4
    files = {f"{shard.name}.{end}" for shard in manifest.shards for end in ("tar", "arrow")}
    assert {*contents(tmp_path / "data/words@1")} == {*files, "manifest.json", "quarantine.parquet", "sources.parquet"}
    assert [*(tmp_path / "data").iterdir()] == [tmp_path / "data/words@1"]


def test_ingesting_twice_gives_the_same_bytes(tmp_path: Path, wavs: Path) -> None:
    for name in ("one", "other"):
        ingest(dataset_of(wavs), in_folder(tmp_path / name))
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_a_second_call_gives_the_manifest_and_touches_nothing(tmp_path: Path, wavs: Path) -> None:
    manifest, before = ingest(dataset_of(wavs), in_folder(tmp_path / "data")), times(tmp_path)
    assert ingest(dataset_of(wavs), in_folder(tmp_path / "data")) == manifest
    assert times(tmp_path) == before


def test_killed_after_any_part_and_run_again_gives_the_same_bytes(
    tmp_path: Path, wavs: Path, kill_after: dict[str, int]
) -> None:
    manifest = ingest(dataset_of(wavs), in_folder(tmp_path / "undisturbed"))
    for parts in range(len(manifest.shards)):
        kill_after["parts"] = parts
        with pytest.raises(Killed):
            ingest(dataset_of(wavs), in_folder(tmp_path / "killed"))
        assert not (tmp_path / "killed/words@1").exists()
    kill_after["parts"] = 10**6
    assert ingest(dataset_of(wavs), in_folder(tmp_path / "killed")) == manifest
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_what_a_killed_ingest_of_other_settings_left_is_not_used_and_goes(
    tmp_path: Path, wavs: Path, kill_after: dict[str, int]
) -> None:
    kill_after["parts"] = 3
    with pytest.raises(Killed):
        ingest(dataset_of(wavs, shard_mb=0.004), in_folder(tmp_path / "data"))
    (left,) = (tmp_path / "data").iterdir()
    assert left.name.startswith(".words@1-")
    kill_after["parts"] = 10**6
    for name in ("data", "undisturbed"):
        ingest(dataset_of(wavs), in_folder(tmp_path / name))
    assert contents(tmp_path / "data") == contents(tmp_path / "undisturbed")


def test_sources_say_which_file_went_into_which_shard(tmp_path: Path, wavs: Path) -> None:
    ingest(dataset_of(wavs), in_folder(tmp_path / "data"))
    rows = pq.read_table(tmp_path / "data/words@1/sources.parquet").to_pylist()
    sizes = {str(path.relative_to(wavs)): path.stat().st_size for path in wavs.rglob("*.wav")}
    assert dict(json.loads(row["source"]) for row in rows) == sizes
    assert {row["source"][2:6] for row in rows if row["split"] == "test"} == {"no/0", "yes/"}
    assert all(row["shard"].startswith(f"{row['split']}-0000") for row in rows)


# The same name for something else


def refused(dataset: Dataset, where: Scale) -> str:
    with pytest.raises(InputError) as raised:
        ingest(dataset, where)
    assert str(raised.value).endswith("; raise dataset.version")
    return str(raised.value)


def test_other_settings_under_the_same_name_are_refused_and_said(tmp_path: Path, wavs: Path) -> None:
    ingest(dataset_of(wavs), in_folder(tmp_path / "data"))
    assert "other settings (shard_mb: 0.007, was 0.006)" in refused(
        dataset_of(wavs, shard_mb=0.007), in_folder(tmp_path / "data")
    )
    corpus = choose("folder", path=str(tmp_path / "wavs" / ".." / "wavs"), pattern=PATTERN + "|x")
    message = refused(dataset_of(wavs, corpus=corpus), in_folder(tmp_path / "data"))
    assert "corpus.settings.pattern" in message and "settings.path:" not in message
    assert ingest(dataset_of(wavs, version=2), in_folder(tmp_path / "data")).identity == "words@2"


def test_a_corpus_that_has_moved_is_the_same(tmp_path: Path, wavs: Path) -> None:
    manifest = ingest(dataset_of(wavs), in_folder(tmp_path / "data"))
    wavs.rename(tmp_path / "moved")
    assert ingest(dataset_of(tmp_path / "moved"), in_folder(tmp_path / "data")) == manifest


def test_another_list_of_files_under_the_same_name_is_refused_and_said(tmp_path: Path, wavs: Path) -> None:
    ingest(dataset_of(wavs), in_folder(tmp_path / "data"))
    extra = wavs / "yes" / "99.wav"
    extra.write_bytes((wavs / "yes" / "1.wav").read_bytes())
    message = refused(dataset_of(wavs), in_folder(tmp_path / "data"))
    assert 'changed since it was made (1 came or changed, ["yes/99.wav", 1724] for example)' in message
    extra.unlink()
    (wavs / "no" / "4.wav").unlink()
    assert '(1 went or were otherwise, ["no/4.wav", 1964] for example)' in refused(
        dataset_of(wavs), in_folder(tmp_path / "data")
    )
    record(wavs, takes=3)
    (wavs / "no" / "4.wav").write_bytes(b"longer or shorter")
    message = refused(dataset_of(wavs), in_folder(tmp_path / "data"))
    assert '["no/4.wav", 17]' in message and '["no/4.wav", 1964]' in message


# What cannot be begun


def test_unknown_fields_and_impossible_tolerances_are_refused(tmp_path: Path, wavs: Path) -> None:
    field = FieldSpec(name="vidoe", modality=choose("events"), role="input")
    with pytest.raises(InputError, match=r"corpus folder has no field 'vidoe'.*\(choices: audio, label\)"):
        ingest(dataset_of(wavs, fields=(field,)), in_folder(tmp_path / "data"))
    for tolerance in (-0.1, 10, float("nan")):
        with pytest.raises(InputError, match="must be a share between 0 and 1"):
            ingest(dataset_of(wavs), in_folder(tmp_path / "data"), tolerance)
    assert not (tmp_path / "data").exists()


def test_a_data_dir_that_cannot_be_one_is_refused(tmp_path: Path, wavs: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(InputError, match=rf"data_dir: {tmp_path}/data cannot be written to"):
        ingest(dataset_of(wavs), in_folder(tmp_path / "data"))


def test_a_place_that_is_taken_by_other_files_is_refused(tmp_path: Path, wavs: Path) -> None:
    (tmp_path / "data/words@1").mkdir(parents=True)
    (tmp_path / "data/words@1/precious.txt").touch()
    with pytest.raises(InputError, match=r"words@1 cannot be taken: Directory not empty; move away what is there"):
        ingest(dataset_of(wavs), in_folder(tmp_path / "data"))
    (tmp_path / "data/words@1/precious.txt").unlink()
    assert ingest(dataset_of(wavs), in_folder(tmp_path / "data")).splits == {"test": 2, "train": 10}


def test_a_corpus_without_training_samples_is_refused(
    tmp_path: Path, wavs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Part] = []
    monkeypatch.setattr("pipeline.corpora.folder.Folder.parts", lambda self, split, part_bytes: iter(given))
    for parts in ([], [Part(split="test", index=0, source=[["no/0.wav", 1]])]):
        given[:] = parts
        with pytest.raises(InputError, match="corpus folder has no sample for the split 'train'"):
            ingest(dataset_of(wavs), in_folder(tmp_path / "data"))


def test_shards_that_disagree_about_a_field_are_refused() -> None:
    kinds = [{"audio": {"dtype": "<f4", "shape": [width]}} for width in (4, 4, 5)]
    rows = [{"name": f"train-{number:06d}", "arrays": kind} for number, kind in enumerate(kinds)]
    module._check_arrays([*rows[:2], {"name": "train-000007", "arrays": {}}])
    with pytest.raises(
        InputError, match=r"field audio is .*\[4\].* in shard train-000000, but .*\[5\].* in train-000002"
    ):
        module._check_arrays(rows)


def test_tasks_get_absolute_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wavs: Path) -> None:
    monkeypatch.chdir(tmp_path)
    plain = module._with_absolute_paths(to_dict(dataset_of("wavs")))
    assert plain["corpus"]["settings"]["path"] == str(wavs)
    manifest = ingest(dataset_of("wavs"), in_folder(tmp_path / "data"))
    assert manifest.dataset["corpus"]["settings"]["path"] == "wavs"
    assert ingest(dataset_of(wavs), in_folder(tmp_path / "data")) == manifest


def test_progress_is_said_in_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"samples": 5, "holes": []}, {"samples": 2, "holes": [{}]}]
    assert [*module._with_progress(rows, 2, "ingest words@1")] == rows
    *_, last = lines = capsys.readouterr().err.split("\n")[:-1]
    assert lines == [line.strip() for line in lines] and all(lines)
    assert re.fullmatch(
        r"ingest words@1: 2/2 shards, 7 samples \(\d+/s\), 1 quarantined \[.* so far, 00:00 left\]", last
    )


def test_a_task_that_cannot_write_stops_ingest() -> None:
    with pytest.raises(RuntimeError, match="shard train-000001 cannot be written: disk full"):
        [*module._with_progress([{"failure": "shard train-000001 cannot be written: disk full"}], 1, "ingest")]
