"""Feature extractors that make sounds of one fixed size, on top of those of transformers.

Knows waveforms; knows no encoder. Works without torchaudio.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import numpy as np
from transformers import (
    BatchFeature,
    ClapFeatureExtractor,
    SequenceFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

FLOOR = 1.192092955078125e-07  # a float's epsilon, the least power that Kaldi takes the log of


def waves(sounds: Any) -> list[np.ndarray]:
    """One wave or several as float arrays [samples]."""
    if isinstance(sounds, (list, tuple)) and len(sounds) and np.ndim(sounds[0]):
        return [np.asarray(sound, np.float32).squeeze() for sound in sounds]
    array = np.asarray(sounds, np.float32)
    return [array] if array.ndim == 1 else [wave.squeeze() for wave in array]


def frames(seconds: float, *, sampling_rate: int = 16000) -> int:
    """Whole frames of 25 ms, one every 10 ms, in so many seconds; as Kaldi counts them."""
    samples = int(seconds * sampling_rate)
    return 1 + (samples - sampling_rate // 40) // (sampling_rate // 100)


@functools.lru_cache(maxsize=8)
def _filters(bins: int, sampling_rate: int, size: int) -> np.ndarray:
    """Kaldi's triangles [size / 2 + 1, bins], drawn on the mel scale."""
    with warnings.catch_warnings():
        # 128 bins of 512 samples leave the lowest one empty, in published models too.
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        return mel_filter_bank(
            num_frequency_bins=size // 2 + 1,
            num_mel_filters=bins,
            min_frequency=20,
            max_frequency=sampling_rate // 2,
            sampling_rate=sampling_rate,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )


class FilterBanks(SequenceFeatureExtractor):
    """Kaldi's log mel filter banks: waves → `input_features` [N, frames, bins].

    25 ms windows every 10 ms, pre-emphasis 0.97, each frame without its mean, mel from 20 Hz. Waves
    in [−1, 1] are first multiplied by `scale`. Then (x − mean) / (2 · std), AST's convention; with
    `mean` left out each bin gets mean 0 and deviation 1 over the recording. Missing frames are
    `padding_value` before the normalisation.

    With `clips`, as many clips of `clip_seconds` start at even distances, the last one ends with
    the recording: [N, clips, frames, bins] (ImageBind's rule).
    """

    model_input_names = ["input_features"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 16000,
        padding_value: float = math.log(FLOOR),
        *,
        frames: int = 998,
        mean: float | None = None,
        std: float = 1.0,
        scale: float = 1.0,
        window_name: str = "hann",
        clips: int = 0,
        clip_seconds: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.frames = frames
        self.mean = mean
        self.std = std
        self.scale = scale
        self.window_name = window_name
        self.clips = clips
        self.clip_seconds = clip_seconds

    @property
    def samples(self) -> int | None:
        """Of a longer recording a whole frame would be lost; None where clips are of all of it."""
        hop, length = self.sampling_rate // 100, self.sampling_rate // 40
        return None if self.clips else self.frames * hop + length - 1

    def __call__(
        self,
        raw_speech: Any,
        *,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Raises ValueError for another sampling rate, with both."""
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"these filter banks are of {self.sampling_rate} Hz; got a sound of {sampling_rate}"
            )
        made = [self._clips(w) if self.clips else self._banks(w) for w in waves(raw_speech)]
        return BatchFeature({"input_features": made}, tensor_type=return_tensors)

    def _clips(self, wave: np.ndarray) -> np.ndarray:
        length = int(self.clip_seconds * self.sampling_rate)
        last = max(len(wave) - length, 0)
        starts = [int(last * i / max(self.clips - 1, 1)) for i in range(self.clips)]
        return np.stack([self._banks(wave[start : start + length]) for start in starts])

    def _banks(self, wave: np.ndarray) -> np.ndarray:
        length, hop = self.sampling_rate // 40, self.sampling_rate // 100
        size = 2 ** math.ceil(math.log2(length))
        wave = wave[: (self.frames - 1) * hop + length]
        banks = spectrogram(
            np.pad(wave, (0, max(length - len(wave), 0))) * self.scale,
            window_function(length, self.window_name, periodic=False),
            frame_length=length,
            hop_length=hop,
            fft_length=size,
            power=2.0,
            center=False,
            preemphasis=0.97,
            mel_filters=_filters(self.feature_size, self.sampling_rate, size),
            log_mel="log",
            mel_floor=FLOOR,
            remove_dc_offset=True,
        ).T
        if self.mean is None:
            banks = (banks - banks.mean(0)) / np.maximum(banks.std(0), 1e-5)
            missing = 0.0
        else:
            banks = (banks - self.mean) / (2 * self.std)
            missing = (self.padding_value - self.mean) / (2 * self.std)
        more = self.frames - len(banks)
        return np.pad(banks, ((0, more), (0, 0)), constant_values=missing).astype(np.float32)


class Waveforms(Wav2Vec2FeatureExtractor):
    """Waves cut or filled with silence to `samples`: `input_features` [N, samples]."""

    def __init__(self, *args: Any, samples: int = 160000, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.samples = samples

    def __call__(  # type: ignore[override]
        self, raw_speech: Any, **kwargs: Any
    ) -> BatchFeature:
        fixed = {"padding": "max_length", "max_length": self.samples, "truncation": True}
        made = super().__call__(waves(raw_speech), **{**kwargs, **fixed})
        return BatchFeature({"input_features": made["input_values"]})


class ClapBanks(ClapFeatureExtractor):
    """CLAP's mel spectrogram of the first seconds: `input_features` [N, 1, frames, bins].

    transformers' own cuts a long sound at a random place, so that features would differ from call
    to call.
    """

    def __call__(  # type: ignore[override]
        self, raw_speech: Any, **kwargs: Any
    ) -> BatchFeature:
        cut = [wave[: self.nb_max_samples] for wave in waves(raw_speech)]
        made = super().__call__(cut, **kwargs)
        return BatchFeature({"input_features": made["input_features"]})
