from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline.choices import make
from pipeline.contracts import FieldInfo, InputError, Ragged
from pipeline.modalities._statistics import Moments, pack, unpack
from pipeline.modalities.audio import Audio, AudioFeed

ROOT = Path(__file__).parents[3]
CORPORA = ROOT.parent / "shared" / "corpora"
RATE_HZ = 16000


def tone(seconds: float = 0.5, rate_hz: int = RATE_HZ, pitch_hz: float = 440.0, channels: int = 1) -> np.ndarray:
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.repeat(0.3 * np.sin(2 * np.pi * pitch_hz * times)[:, None], channels, axis=1)


def sound(samples: np.ndarray, rate_hz: int = RATE_HZ, form: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=form, subtype=subtype)
    return file.getvalue()


def features(raw: bytes, audio: Audio | None = None) -> np.ndarray:
    audio = audio or Audio()
    return audio.array(audio.encode(raw))


def ragged(*arrays: np.ndarray) -> Ragged:
    lengths = torch.tensor([len(array) for array in arrays])
    return Ragged(values=torch.from_numpy(np.concatenate(arrays)), lengths_B=lengths)


def noise(steps: int, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, width)).astype(np.float32)


def test_a_second_of_sound_becomes_a_hundred_frames() -> None:
    array = features(sound(tone(1.0)))
    assert array.shape == (100, 40)
    assert array.dtype == np.float32
    assert Audio().rate_hz == 100
    assert features(sound(tone(1.0)), Audio(mels=80, shift_ms=20.0)).shape == (50, 80)


def test_the_loudest_band_is_the_one_of_the_tone() -> None:
    peaks = [int(features(sound(tone(pitch_hz=pitch))).mean(axis=0).argmax()) for pitch in (200, 800, 3000)]
    assert peaks == sorted({*peaks})
    mel = 1127 * np.log(1 + np.array([20, 200, 800, 3000, 8000]) / 700)
    assert peaks == pytest.approx((mel[1:4] - mel[0]) / (mel[4] - mel[0]) * 41 - 1, abs=1)


def test_equal_bytes_give_equal_features() -> None:
    raw = sound(noise(8000, 1, seed=3) * 0.1)
    assert Audio().encode(raw) == Audio().encode(raw)


def test_stored_bytes_are_raw_little_endian_numbers_behind_an_npy_header() -> None:
    stored = Audio().encode(sound(tone()))
    assert stored[:8] == b"\x93NUMPY\x01\x00"
    np.testing.assert_array_equal(np.frombuffer(stored[-50 * 40 * 4 :], "<f4").reshape(50, 40), unpack(stored))
    assert Audio.suffix == "npy"


@pytest.mark.parametrize(("form", "subtype"), [("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_compressed_formats_sound_like_the_wav(form: str, subtype: str | None) -> None:
    samples = tone() + 0.05 * np.random.default_rng(0).standard_normal((8000, 1))
    compressed = features(sound(samples, form=form, subtype=subtype))
    assert compressed.shape == (50, 40)
    assert np.abs(compressed - features(sound(samples)))[5:45, 2:25].mean() < 1.0


def test_stereo_at_another_rate_is_mixed_and_resampled() -> None:
    raw = sound(tone(rate_hz=44100, channels=2), rate_hz=44100)
    array, wanted = features(raw), features(sound(tone()))
    assert array.shape == wanted.shape
    assert np.abs(array - wanted)[3:47, :12].max() < 0.5


def test_louder_sound_has_larger_features_by_the_logarithm_of_its_energy() -> None:
    quiet, loud = features(sound(noise(8000, 1) * 0.01)), features(sound(noise(8000, 1) * 0.1))
    assert (loud - quiet).mean() == pytest.approx(np.log(100), abs=0.05)


def test_digital_silence_is_finite() -> None:
    np.testing.assert_allclose(features(sound(np.zeros(8000))), np.log(1.1920929e-07), rtol=1e-5)


WAV, FLAC, MP3 = (sound(tone(), form=form) for form in ("WAV", "FLAC", "MP3"))
HOSTILE = {
    "zero bytes": (b"", "the file is empty"),
    "one byte": (b"R", "not a sound"),
    "text": (b"This is no sound.\n" * 50, "not a sound"),
    "nulls": (bytes(5000), "not a sound"),
    "random": (np.random.default_rng(1).bytes(5000), "not a sound"),
    "header alone": (WAV[:44], "holds no samples|cut off"),
    "half a header": (WAV[:30], "not a sound"),
    "half a wav": (WAV[: len(WAV) // 2], "cut off: it holds 7978 of 16000 bytes"),
    "half an aiff": (sound(tone(), form="AIFF")[:8000], "cut off"),
    "some bytes of aiff": (sound(tone(), form="AIFF")[:30], "not a sound"),
    "half a flac": (FLAC[: len(FLAC) // 2], "not a sound|cut off"),
    "some bytes of flac": (FLAC[:60], "not a sound"),
    "half an mp3": (MP3[: len(MP3) // 2], "cut off: it decodes to"),
    "one sample": (sound(np.ones(1)), "too short: 6.25e-05 s, min_seconds is 0.02"),
    "no samples": (sound(np.zeros(0)), "holds no samples"),
    "an hour": (sound(np.zeros(60 * 8000 + 1), rate_hz=8000, subtype="PCM_U8"), "too long: 60 s, max_seconds is 60"),
    "NaN": (sound(np.full(8000, np.nan), subtype="FLOAT"), "NaN or infinity"),
    "infinity": (sound(np.full(8000, -np.inf), subtype="FLOAT"), "NaN or infinity"),
    "a huge number": (sound(noise(8000, 1) * 1e30, subtype="FLOAT"), "too large"),
    "one bad channel": (sound(np.stack([np.zeros(8000), np.full(8000, np.nan)], 1), subtype="FLOAT"), "NaN"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_usable_sound_is_refused_with_a_reason(name: str) -> None:
    raw, reason = HOSTILE[name]
    with pytest.raises(ValueError, match=reason):
        Audio().encode(raw)


def test_a_wav_written_into_a_pipe_says_no_length_and_is_read_to_its_end() -> None:
    for unknown in (b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"):
        raw = WAV.replace(b"data" + (16000).to_bytes(4, "little"), b"data" + unknown)
        assert raw != WAV
        np.testing.assert_array_equal(features(raw), features(WAV))


def test_a_sound_too_short_for_one_frame_is_refused_whatever_the_limit() -> None:
    with pytest.raises(ValueError, match="too few for one frame"):
        Audio(min_seconds=0.0).encode(sound(np.ones(40)))


def test_a_header_that_promises_hours_costs_no_memory() -> None:
    raw = bytearray(FLAC)
    raw[21:26] = bytes([raw[21] | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # 36 bits of STREAMINFO: samples in total
    with pytest.raises(ValueError, match="too long"):
        Audio().encode(bytes(raw))


def test_statistics_are_those_of_all_frames_however_they_are_merged() -> None:
    arrays = [noise(steps, 3, seed) * [1, 5, 0.001] + [1e4, -3, 0] for seed, steps in enumerate((1, 7, 30, 400))]
    audio, parts = Audio(mels=3), []
    for pair in (arrays[:2], arrays[2:]):
        part = audio.statistics()
        for array in pair:
            part.add(pack(array.astype(np.float64)))
        parts.append(json.loads(json.dumps(part.to_dict())))
    total = audio.statistics()
    for plain in parts:
        total.merge(audio.statistics(plain))
    frames = np.concatenate(arrays)
    info = audio.info(total)
    assert info.mean == pytest.approx(frames.mean(axis=0))
    assert info.std == pytest.approx([*frames.std(axis=0)[:2], 0.01], rel=1e-9)
    assert (info.dtype, info.shape, info.rate_hz) == ("float32", (3,), 100.0)


def test_statistics_of_nothing_normalise_nothing() -> None:
    empty = Audio().statistics()
    empty.merge(Moments())
    assert Audio().info(empty) == FieldInfo(dtype="float32", shape=(40,), rate_hz=100.0)


def test_stored_bytes_that_are_no_array_are_refused_and_never_unpickled() -> None:
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    good = pack(noise(5))
    for stored in (b"", b"\x93NUMPY", good[:-1], good + b"\0", objects.getvalue()):
        with pytest.raises(ValueError, match=r"npy|magic"):
            unpack(stored)


def test_a_feed_without_settings_changes_nothing() -> None:
    array = noise(50)
    np.testing.assert_array_equal(AudioFeed().augment(array, np.random.default_rng(0)), array)


def test_augmenting_depends_on_the_generator_alone_and_leaves_the_array_as_it_was() -> None:
    feed, array = AudioFeed(speed=0.1, freq_masks=2, time_masks=2), noise(80)
    before = array.copy()
    one, again, other = (feed.augment(array, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert one.shape != other.shape or not np.array_equal(one, other)
    np.testing.assert_array_equal(array, before)
    assert one.dtype == np.float32


def test_speed_changes_the_duration_by_up_to_its_share_and_keeps_both_ends() -> None:
    feed, array = AudioFeed(speed=0.2), np.linspace(0, 1, 100, dtype=np.float32)[:, None]
    lengths = []
    for seed in range(200):
        changed = feed.augment(array, np.random.default_rng(seed))
        lengths.append(len(changed))
        np.testing.assert_allclose(changed[:, 0], np.linspace(0, 1, len(changed)), atol=1e-6)
    assert 80 <= min(lengths) < 85
    assert 115 < max(lengths) <= 120


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_the_shortest_sequences_survive_every_augmentation(steps: int) -> None:
    feed = AudioFeed(speed=0.5, freq_masks=3, freq_width=99, time_masks=3, time_width=99)
    for seed in range(50):
        array = feed.augment(noise(steps), np.random.default_rng(seed))
        assert array.shape[1] == 40
        assert len(array) >= min(steps, 1)


def test_masks_blank_whole_bands_and_at_most_a_fifth_of_the_time() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        blank_bands = (AudioFeed(freq_masks=1, freq_width=8).augment(noise(100), rng) == 0).all(axis=0)
        blank_frames = (AudioFeed(time_masks=1, time_width=90).augment(noise(100), rng) == 0).all(axis=1)
        assert blank_bands.sum() <= 8
        assert blank_frames.sum() <= 20
        assert np.abs(np.diff(blank_frames.astype(int))).sum() <= 2


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (5, 1), (5, 2), (3, 4)])
def test_padding_changes_nothing_in_the_frontend(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    frontend = AudioFeed(kernel=kernel, stride=stride).frontend(FieldInfo(dtype="float32", shape=(40,)), 16)
    arrays = [noise(steps, seed=steps) for steps in (1, 7, 20, 33)]
    x_BTD, lengths_B = frontend(ragged(*arrays))
    assert lengths_B.tolist() == [-(-len(array) // stride) for array in arrays]
    for row, array in enumerate(arrays):
        (alone_TD,), (length,) = frontend(ragged(array))
        assert alone_TD.shape == (length, 16)
        torch.testing.assert_close(x_BTD[row, :length], alone_TD)
        assert not x_BTD[row, length:].any()


def test_the_frontend_takes_half_precision() -> None:
    frontend = AudioFeed().frontend(FieldInfo(dtype="float32", shape=(40,)), 16).bfloat16()
    x_BTD, _ = frontend(ragged(noise(9)))
    assert x_BTD.dtype == torch.bfloat16


def test_a_kernel_without_a_middle_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel = 4 must be odd"):
        AudioFeed(kernel=4)
    with pytest.raises(InputError, match="mels = 0"):
        make("modalities", "audio", {"mels": 0})
    assert Audio.Feed is AudioFeed


def test_ingest_of_sound_imports_no_torch() -> None:
    program = "import sys, pipeline.modalities.audio, pipeline.modalities.events; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_real_recordings_become_features() -> None:
    if not CORPORA.is_dir():
        pytest.skip(f"the real corpora are not at {CORPORA}")
    audio = Audio(sample_rate_hz=8000)
    moments = audio.statistics()
    paths = sorted((CORPORA / "fsdd" / "recordings").glob("*_0.wav")) + sorted(
        (CORPORA / "speech_fixtures").glob("*.*a*")
    )
    for path in paths:
        moments.add(audio.encode(path.read_bytes()))
    assert len(paths) > 60
    info = audio.info(moments)
    assert all(-16 < mean < 5 for mean in info.mean)
    assert all(1 < std < 6 for std in info.std)
