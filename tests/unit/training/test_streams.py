from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.contracts import InputError
from pipeline.experiment import Experiment
from pipeline.scale import Scale
from pipeline.training.streams import open_shards, open_stream
from pipeline.training.worker import SoloWorker
from tests.words import words, write_words


def test_an_absent_dataset_is_named_with_those_that_are_there(words_dir: Path, tmp_path: Path) -> None:
    other = words({"dataset.name": "wrds"})
    with pytest.raises(InputError, match=r"no dataset 'wrds@1' .*did you mean 'words@1'"):
        open_shards(other, Scale(data_dir=str(words_dir)))
    with pytest.raises(InputError, match=r"no dataset 'words@1' under .*nothing has been ingested there"):
        open_shards(words(), Scale(data_dir=str(tmp_path)))


def test_a_dataset_ingested_with_other_settings_is_refused(words_dir: Path) -> None:
    other = words({"fields.audio.mels": 7, "corpus.path": "elsewhere"})
    changes = r"\(fields\.0\.modality\.settings\.mels: 7, was 6\)"
    with pytest.raises(InputError, match=rf"words@1 exists with other settings {changes}; raise"):
        open_shards(other, Scale(data_dir=str(words_dir)))


def test_where_the_corpus_lies_is_no_setting_of_the_dataset(words_dir: Path) -> None:
    assert open_shards(words({"corpus.path": "elsewhere"}), Scale(data_dir=str(words_dir))).manifest.splits


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_words(tmp_path, shards={"train": (8,), "valid": (4,)})
    scale = Scale(data_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"words@1 has no split 'test' \(choices: train, valid\)"):
        open_stream(words(), open_shards(words(), scale), "test", SoloWorker(tmp_path), scale, training=False)


def augmented() -> Experiment:
    return replace(words(), inputs={"audio": {"stride": 1, "time_masks": 2, "time_width": 4}})


def test_training_samples_are_shuffled_and_augmented_and_others_are_as_stored(
    words_dir: Path, tmp_path: Path, scale: Scale
) -> None:
    shards, worker = open_shards(augmented(), scale), SoloWorker(tmp_path)
    orders, arrays = {}, {}
    for training in (True, False):
        stream = open_stream(augmented(), shards, "train", worker, scale, training=training)
        batches = [batch for [batch] in stream.steps(0, stream.plan.steps_per_epoch)]
        orders[training] = [key for batch in batches for key in batch.keys]
        for batch in batches:
            ends = batch.inputs["audio"].lengths_B.cumsum(0)[:-1].tolist()
            for key, values in zip(batch.keys, batch.inputs["audio"].values.numpy().tolist(), strict=False):
                arrays[training, key] = values
            assert len(ends) == len(batch.keys) - 1
    assert sorted(orders[True]) == sorted(orders[False]) and orders[True] != orders[False]
    assert orders[False] == [f"train_{index}_{row}" for index, size in enumerate((23, 17, 24)) for row in range(size)]
    assert any(arrays[True, key] != arrays[False, key] for key in orders[True])


def test_another_seed_is_another_order(tmp_path: Path, scale: Scale) -> None:
    def order(seed: int) -> list[str]:
        experiment = words({"seed": seed})
        stream = open_stream(
            experiment, open_shards(experiment, scale), "train", SoloWorker(tmp_path), scale, training=True
        )
        return [key for [batch] in stream.steps(0, 4) for key in batch.keys]

    assert order(0) == order(0) != order(1)
