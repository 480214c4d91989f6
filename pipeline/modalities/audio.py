"""Audio: the bytes of a sound file -> log-mel filterbank features (T, mels) float32, one row every `shift_ms`.

Any format that libsndfile reads (wav, flac, mp3, ogg, opus, aiff, ...), any rate, any number of channels. Features are
those of Kaldi (`compute-fbank-feats`; pre-emphasis, Povey window, natural logarithm of mel energies) without dither, so
that equal bytes give equal features. Samples lie in [-1, 1], not in Kaldi's 16-bit range: its floor of 1.2e-7 under the
logarithm then lies near the noise of 16-bit sound, and digital silence stands out of a mean by few deviations.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import kaldi_native_fbank
import numpy as np
import pydantic
import soundfile
import soxr

from pipeline.choices import settings
from pipeline.contracts import FieldInfo
from pipeline.modalities._statistics import Moments, pack, unpack

if TYPE_CHECKING:
    from torch import nn

BLOCK = 65536  # frames decoded at once: memory follows what is in a file, not what its header claims
MISSING_SECONDS = 0.1  # a stream may end so much before its header's count; mp3 headers are no more exact
UNKNOWN_BYTES = 0x7FFFF000  # from here on a chunk size means "not known yet": what sox and ffmpeg write into a pipe
SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
STD_FLOOR = 0.01  # of a natural logarithm: 1 % in energy
TIME_SHARE = 0.2  # of a sequence, at most, behind one time mask


@settings
class AudioFeed:
    """How stored features are fed to training.

    Augmentation, of training samples alone. `speed`: the duration is multiplied by a factor drawn from
    [1 - speed, 1 + speed], by linear interpolation between frames; it approximates speed perturbation (Ko et al. 2015,
    "Audio augmentation for speech recognition") but leaves the pitch alone. `freq_masks` and `time_masks`: so many
    bands of up to `freq_width` features and stretches of up to `time_width` frames (and at most a fifth of the
    sequence) are set to the mean (SpecAugment, Park et al. 2019, without time warping).

    Frontend: a convolution over `kernel` frames, of which every `stride`-th output is kept.
    """

    speed: Annotated[float, pydantic.Field(ge=0, le=0.5)] = 0.0
    freq_masks: Annotated[int, pydantic.Field(ge=0)] = 0
    freq_width: Annotated[int, pydantic.Field(ge=0)] = 8
    time_masks: Annotated[int, pydantic.Field(ge=0)] = 0
    time_width: Annotated[int, pydantic.Field(ge=0)] = 25
    kernel: Annotated[int, pydantic.Field(ge=1)] = 5
    stride: Annotated[int, pydantic.Field(ge=1)] = 1

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel} must be odd, so that it has a middle")

    def augment(self, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(T, F) normalised float32 -> (T', F) float32, T' >= 1. The given array is left as it is."""
        if self.speed and len(array):
            steps = max(1, round(len(array) * rng.uniform(1 - self.speed, 1 + self.speed)))
            places = np.linspace(0, len(array) - 1, steps)
            before = places.astype(np.int64)
            after = np.minimum(before + 1, len(array) - 1)
            share = (places - before).astype(np.float32)[:, None]
            array = array[before] * (1 - share) + array[after] * share
        if self.freq_masks or self.time_masks:
            array = array.copy()
        for _ in range(self.freq_masks):
            start, stop = _stretch(array.shape[1], self.freq_width, rng)
            array[:, start:stop] = 0
        for _ in range(self.time_masks):
            start, stop = _stretch(len(array), min(self.time_width, int(TIME_SHARE * len(array))), rng)
            array[start:stop] = 0
        return array

    def frontend(self, info: FieldInfo, width: int) -> nn.Module:
        """Ragged of (F,) frames -> (x_BTD, lengths_B), lengths ceil(T / stride)."""
        from pipeline.modalities._frontends import Convolution

        return Convolution(info.shape[0], width, self.kernel, self.stride)


@settings
class Audio:
    """Sounds shorter than `min_seconds` or longer than `max_seconds` cannot be used."""

    suffix: ClassVar[str] = "npy"
    Feed: ClassVar[type[AudioFeed]] = AudioFeed

    sample_rate_hz: Annotated[int, pydantic.Field(ge=1000, le=192000)] = 16000
    mels: Annotated[int, pydantic.Field(ge=1, le=256)] = 40
    shift_ms: Annotated[float, pydantic.Field(ge=1)] = 10.0
    window_ms: Annotated[float, pydantic.Field(ge=5)] = 25.0
    min_seconds: Annotated[float, pydantic.Field(ge=0)] = 0.02
    max_seconds: Annotated[float, pydantic.Field(gt=0)] = 60.0

    @property
    def rate_hz(self) -> float:
        """Frames a second."""
        return 1000 / self.shift_ms

    def encode(self, raw: bytes) -> bytes:
        """A sound file -> .npy of (T, mels) float32. Raises ValueError, with the reason, where it cannot be used."""
        wave, rate = self._decode(raw)
        if rate != self.sample_rate_hz:
            wave = soxr.resample(wave, rate, self.sample_rate_hz)
        features = self._features(wave)
        if not len(features):
            raise ValueError(f"{len(wave)} samples are too few for one frame of {self.shift_ms} ms")
        if not np.isfinite(features).all():
            raise ValueError("the samples are too large: their energy is no finite number")
        return pack(features)

    def array(self, stored: bytes, info: FieldInfo | None = None) -> np.ndarray:
        """(T, mels) float32, not normalised."""
        return unpack(stored)

    def statistics(self, plain: Mapping[str, Any] | None = None) -> Moments:
        """An empty summary to add stored bytes to, or the one whose `to_dict` is given."""
        return Moments(plain)

    def info(self, statistics: Moments) -> FieldInfo:
        mean, std = statistics.mean(), statistics.std(STD_FLOOR)
        return FieldInfo(dtype="float32", shape=(self.mels,), rate_hz=self.rate_hz, mean=mean, std=std)

    def _decode(self, raw: bytes) -> tuple[np.ndarray, int]:
        """Mono samples (N,) float32 and their rate."""
        if not raw:
            raise ValueError("the file is empty")
        try:
            with soundfile.SoundFile(_Bytes(raw)) as file:
                self._check_length(file.frames / file.samplerate)
                _check_chunk(file.extra_info)
                blocks = []
                while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                    blocks.append(block.mean(axis=1))
                announced, rate = file.frames, file.samplerate
        except soundfile.LibsndfileError as error:
            raise ValueError(f"not a sound that can be decoded: {error.error_string}") from error
        wave = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        if len(wave) < announced - MISSING_SECONDS * rate:
            raise ValueError(f"the file is cut off: it decodes to {len(wave)} of {announced} samples")
        if not np.isfinite(wave).all():
            raise ValueError("the samples hold NaN or infinity")
        return wave, rate

    def _check_length(self, seconds: float) -> None:
        if not seconds:
            raise ValueError("the file holds no samples")
        if seconds < self.min_seconds:
            raise ValueError(f"too short: {seconds:.4g} s, min_seconds is {self.min_seconds:g}")
        if seconds > self.max_seconds:
            raise ValueError(f"too long: {seconds:.4g} s, max_seconds is {self.max_seconds:g}")

    def _features(self, wave: np.ndarray) -> np.ndarray:
        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.samp_freq = self.sample_rate_hz
        options.frame_opts.frame_shift_ms = self.shift_ms
        options.frame_opts.frame_length_ms = self.window_ms
        options.frame_opts.dither = 0.0
        options.frame_opts.snip_edges = False
        options.mel_opts.num_bins = self.mels
        fbank = kaldi_native_fbank.OnlineFbank(options)
        fbank.accept_waveform(self.sample_rate_hz, wave)
        fbank.input_finished()
        frames = [fbank.get_frame(index) for index in range(fbank.num_frames_ready)]
        return np.stack(frames) if frames else np.zeros((0, self.mels), np.float32)


class _Bytes(io.BytesIO):
    """libsndfile seeks before the start of some broken files; an exception there would be printed, not raised."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return super().seek(max(offset, 0) if whence == io.SEEK_SET else offset, whence)


def _check_chunk(log: str) -> None:
    """libsndfile reads a wav or aiff that was cut off as if it were shorter, and says so in its log alone."""
    for promised, found in SHORT_CHUNK.findall(log):
        if int(found) < int(promised) < UNKNOWN_BYTES:
            raise ValueError(f"the file is cut off: it holds {found} of {promised} bytes of sound")


def _stretch(length: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
    """Start and stop of a mask of up to `width`, drawn uniformly."""
    size = int(rng.integers(0, min(width, length) + 1))
    start = int(rng.integers(0, length - size + 1))
    return start, start + size
