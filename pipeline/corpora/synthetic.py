"""Synthetic: small spoken-like "words", made here, so that every recipe of sound runs without a download.

In: nothing. Out: 16-bit wav files `ai_s3_07.wav` (word, speaker, take) under `path`, read as Folder reads them, with
the groups label, speaker and take. A word is a sequence of two to four vowels, and words come in pairs (`ai`, `ia`)
which hold the same sounds in another order: no single frame, and no average over frames, tells them apart.

Sounds are made by the source-filter theory (Fant 1960, Acoustic Theory of Speech Production): harmonics of a glottal
pulse train, falling by 6 dB an octave (12 for the source, less 6 for the lips), weighted by the gain of three
resonators at the formants of the vowel, which glide from vowel to vowel. Formant frequencies: Peterson & Barney 1952,
"Control methods used in a study of the vowels" (men). The harmonics are summed as sinusoids (McAulay & Quatieri 1986).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic

from pipeline.choices import settings
from pipeline.contracts import Hole, InputError, Part, Sample
from pipeline.corpora.folder import Folder
from pipeline.experiment import Split, difference

VOWELS_HZ = {"a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240)}
BANDWIDTHS_HZ = (60, 90, 150)
WORDS = sorted(
    (
        "".join(vowels)
        for count in (2, 3, 4)
        for vowels in itertools.product(VOWELS_HZ, repeat=count)
        if all(one != other for one, other in itertools.pairwise(vowels))
    ),
    key=lambda word: (len(word), min(word, word[::-1]), word),
)
PATTERN = r"(?P<label>[aiu]+)_(?P<speaker>s\d+)_(?P<take>\d+)\.wav"
MARKER = ".synthetic.json"
RECIPE = 1  # raised when the same settings come to mean other sounds


@settings
class Synthetic:
    """`labels` words, each spoken by `speakers` in `takes` takes.

    Speakers differ in pitch, size of the vocal tract and tempo; takes in pitch, timing, loudness, noise and silence
    around the word. The files are made where `parts` or `read` does not find them, and are the same bytes every time.
    """

    path: str
    labels: Annotated[int, pydantic.Field(ge=2, le=len(WORDS))] = 4
    speakers: Annotated[int, pydantic.Field(ge=1)] = 6
    takes: Annotated[int, pydantic.Field(ge=1)] = 10
    sample_rate_hz: Annotated[int, pydantic.Field(ge=8000, le=48000)] = 8000
    seed: Annotated[int, pydantic.Field(ge=0)] = 0

    @property
    def fields(self) -> frozenset[str]:
        return Folder(path=self.path).fields

    def parts(self, split: Split, part_bytes: int) -> Iterator[Part]:
        """Makes the files, then as Folder. Raises InputError where `path` holds anything but this corpus."""
        return self._folder().parts(split, part_bytes)

    def read(self, part: Part) -> Iterator[Sample | Hole]:
        return self._folder().read(part)

    def _folder(self) -> Folder:
        root, marker = Path(self.path), Path(self.path, MARKER)
        wanted = {name: getattr(self, name) for name in ("labels", "speakers", "takes", "sample_rate_hz", "seed")}
        wanted["recipe"] = RECIPE
        try:
            root.mkdir(parents=True, exist_ok=True)
            there = {entry.name for entry in root.iterdir()}
            if MARKER not in there:
                if any(not name.startswith(".") for name in there):
                    raise InputError(f"folder {self.path!r} holds files of something else; give another path")
                _write_whole(marker, json.dumps(wanted).encode())
            if (found := json.loads(marker.read_bytes())) != wanted:
                changes = ", ".join(difference(wanted, found))
                raise InputError(f"folder {self.path!r} holds a synthetic corpus of other settings ({changes})")
            takes = itertools.product(WORDS[: self.labels], range(self.speakers), range(self.takes))
            for word, speaker, take in takes:
                name = f"{word}_s{speaker}_{take:02d}.wav"
                if name not in there:
                    _write_whole(root / name, self._wav(word, speaker, take))
        except OSError as error:
            raise InputError(f"synthetic corpus in {self.path!r}: {error}") from error
        return Folder(path=self.path, pattern=PATTERN)

    def _wav(self, word: str, speaker: int, take: int) -> bytes:
        speaker_rng, take_rng = _draws(self.seed, speaker), _draws(self.seed, word, speaker, take)
        samples = speak(word, speaker_rng, take_rng, self.sample_rate_hz)
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(self.sample_rate_hz)
            writer.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
        return file.getvalue()


def speak(word: str, speaker: np.random.Generator, take: np.random.Generator, sample_rate_hz: int) -> np.ndarray:
    """One take of one word: (N,) float64 within [-1, 1]."""
    pitch, size, tempo = speaker.random(3)
    pitch_shift, loudness, noise, before, after, *timing = take.random(5 + len(word))
    lengths = (0.09 + 0.05 * tempo) * (0.85 + 0.3 * np.array(timing))  # seconds
    ends = np.cumsum(lengths)
    times_N = np.arange(int(ends[-1] * sample_rate_hz)) / sample_rate_hz
    pitch_hz = 90 * 2 ** (1.4 * pitch) * (0.92 + 0.16 * pitch_shift)
    pitch_N = pitch_hz * (1.08 - 0.16 * times_N / ends[-1])  # falls, as in a statement

    # each vowel is held for the middle 60 % of its length
    anchors = np.stack([ends - 0.8 * lengths, ends - 0.2 * lengths], axis=1).reshape(-1)
    targets = np.repeat([VOWELS_HZ[vowel] for vowel in word], 2, axis=0) * (0.88 + 0.3 * size)

    highest_hz = min(5000.0, 0.48 * sample_rate_hz)
    ranks_K1 = np.arange(1, int(highest_hz / pitch_N.min()) + 1)[:, None]
    harmonics_KN = ranks_K1 * pitch_N
    gain_KN = (harmonics_KN < highest_hz) / ranks_K1
    for track, bandwidth in zip(targets.T, BANDWIDTHS_HZ, strict=True):
        formant_N = np.interp(times_N, anchors, track)
        gain_KN *= formant_N**2 / np.hypot(formant_N**2 - harmonics_KN**2, bandwidth * harmonics_KN)
    phase_N = 2 * np.pi * np.cumsum(pitch_N) / sample_rate_hz
    voice_N = (gain_KN * np.sin(ranks_K1 * phase_N)).sum(axis=0)
    voice_N *= np.minimum(1, np.minimum(times_N, ends[-1] - times_N) / 0.015)
    voice_N *= (0.3 + 0.5 * loudness) / np.abs(voice_N).max()

    silences = [np.zeros(int(seconds * sample_rate_hz)) for seconds in (0.02 + 0.13 * before, 0.02 + 0.08 * after)]
    sound: np.ndarray = np.concatenate([silences[0], voice_N, silences[1]])
    sound += (0.001 + 0.006 * noise) * (2 * take.random(len(sound)) - 1)
    return sound


def _draws(*names: str | int) -> np.random.Generator:
    """Only `.random()` may be drawn: the other distributions of numpy may change with its version (NEP 19)."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(names).encode()).digest()))


def _write_whole(path: Path, payload: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(payload)
    aside.replace(path)
