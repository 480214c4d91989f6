from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipeline.choices import make
from pipeline.contracts import InputError, Sample
from pipeline.corpora.synthetic import MARKER, WORDS, Synthetic
from pipeline.experiment import Split

TWO_SPEAKERS_HELD_OUT = Split(rules={"test": {"speaker": "s[01]"}})


def samples(corpus: Synthetic, split: Split | None = None) -> list[tuple[str, Sample]]:
    found = [(part.split, sample) for part in corpus.parts(split or Split(), 200_000) for sample in corpus.read(part)]
    return [(name, sample) for name, sample in found if isinstance(sample, Sample)]


def digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(root.glob("*.wav")):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def small(path: Path, **settings: Any) -> Synthetic:
    corpus: Synthetic = make(
        "corpora", "synthetic", {"path": str(path), "labels": 2, "speakers": 2, "takes": 2, **settings}
    )
    return corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    made = Synthetic(path=str(tmp_path_factory.mktemp("synthetic")))
    started = time.process_time()
    list(made.parts(Split(), 10**6))
    assert time.process_time() - started < 6  # about 1 s on an idle core
    return made


def test_each_speaker_says_each_word_in_each_take(corpus: Synthetic) -> None:
    found = samples(corpus, TWO_SPEAKERS_HELD_OUT)
    assert len(found) == 4 * 6 * 10
    assert {sample.key for _, sample in found} >= {"ai_s0_00", "ua_s5_09"}
    assert {sample.fields["label"] for _, sample in found} == {b"ai", b"ia", b"au", b"ua"}
    assert {sample.key.split("_")[1] for split, sample in found if split == "test"} == {"s0", "s1"}


def test_files_are_mono_16_bit_sounds_of_about_half_a_second(corpus: Synthetic) -> None:
    for _, sample in samples(corpus):
        with soundfile.SoundFile(io.BytesIO(sample.fields["audio"])) as file:
            assert (file.format, file.subtype, file.channels, file.samplerate) == ("WAV", "PCM_16", 1, 8000)
            assert 0.15 < file.frames / file.samplerate < 0.8
            assert 0.2 < np.abs(file.read()).max() < 1


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        samples(small(tmp_path / name))
    samples(small(tmp_path / "seeded", seed=1))
    assert digest(tmp_path / "one") == digest(tmp_path / "other") != digest(tmp_path / "seeded")


def test_more_takes_leave_the_first_ones_as_they_were(tmp_path: Path) -> None:
    few, more = small(tmp_path / "few"), small(tmp_path / "more", takes=3)
    payloads = {sample.key: sample.fields for _, sample in samples(more)}
    assert all(payloads[sample.key] == sample.fields for _, sample in samples(few))


def test_a_missing_file_is_made_again_and_the_others_are_left_alone(tmp_path: Path) -> None:
    corpus = small(tmp_path / "x")
    before = samples(corpus)
    (tmp_path / "x" / "ai_s0_00.wav").unlink()
    kept = (tmp_path / "x" / "ia_s1_01.wav").stat().st_mtime_ns
    assert samples(corpus) == before
    assert (tmp_path / "x" / "ia_s1_01.wav").stat().st_mtime_ns == kept


def test_a_part_can_be_read_on_a_machine_that_has_no_files_yet(tmp_path: Path) -> None:
    (part,) = small(tmp_path / "here").parts(Split(), 10**9)
    assert list(small(tmp_path / "there").read(part)) == list(small(tmp_path / "here").read(part))


def test_a_folder_of_other_settings_or_of_other_files_is_refused(tmp_path: Path) -> None:
    samples(small(tmp_path / "x"))
    with pytest.raises(InputError, match=r"other settings \(takes: 3, was 2\)"):
        samples(small(tmp_path / "x", takes=3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "song.wav").write_bytes(b"mine")
    with pytest.raises(InputError, match="holds files of something else"):
        samples(small(tmp_path / "mine"))
    assert not (tmp_path / "mine" / MARKER).exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file"):
        samples(small(tmp_path / "file"))
    with pytest.raises(InputError, match="labels = 99"):
        small(tmp_path / "y", labels=99)


def test_words_come_in_pairs_of_the_same_vowels_in_another_order() -> None:
    assert WORDS[:6] == ["ai", "ia", "au", "ua", "iu", "ui"]
    assert len({*WORDS}) == len(WORDS)
    assert {len(word) for word in WORDS} == {2, 3, 4}


def test_the_average_of_frames_does_not_tell_a_word_from_its_reverse_but_their_order_does(corpus: Synthetic) -> None:
    from pipeline.modalities.audio import Audio

    audio = Audio(sample_rate_hz=8000)
    found = [(split, sample) for split, sample in samples(corpus, TWO_SPEAKERS_HELD_OUT)]
    found = [(split, sample) for split, sample in found if sample.fields["label"] in {b"au", b"ua"}]
    arrays = [audio.array(audio.encode(sample.fields["audio"])) for _, sample in found]
    labels = np.array([sample.fields["label"] == b"au" for _, sample in found])
    testing = np.array([split == "test" for split, _ in found])

    def accuracy(pieces: int) -> float:
        rows = np.stack([[cut.mean(axis=0) for cut in np.array_split(array, pieces)] for array in arrays])
        means = [rows[~testing & (labels == label)].mean(axis=0) for label in (False, True)]
        distances = np.stack([((rows[testing] - mean) ** 2).sum(axis=(1, 2)) for mean in means])
        return float((distances.argmin(axis=0) == labels[testing]).mean())

    assert accuracy(pieces=1) < 0.7
    assert accuracy(pieces=2) > 0.9
