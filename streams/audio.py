"""Opens recordings that nobody has vouched for: WAV files of plain PCM.

Knows files and arrays. What is not a MediaError when it comes here is one when it leaves. Nothing
is resampled: a model's processor says which rate it hears.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from streams.media import MediaError, reason
from streams.sample import Audio

MOST_SAMPLES = 28_800_000
"""Of all channels together: ten minutes of one at 48 kHz."""
_AT_ONCE = 2**16


def open_audio(audio: Audio | Path) -> tuple[np.ndarray, int]:
    """A recording's wave, float32 [samples] in [−1, 1], its channels averaged, and its rate in Hz.

    Raises MediaError for a file that is missing, unreadable, too long or not WAV.
    """
    source = audio.source if isinstance(audio, Audio) else audio
    if isinstance(source, np.ndarray):
        assert isinstance(audio, Audio)
        assert audio.sampling_rate is not None
        _check_wave(source)
        return source, audio.sampling_rate
    with _recording(source) as read:
        data, parameters = read.readframes(read.getnframes()), read.getparams()
    levels = _levels(data, parameters.sampwidth).reshape(-1, parameters.nchannels)
    return levels.mean(axis=1).astype(np.float32), parameters.framerate


def check_audio(audio: Audio | Path) -> None:
    """Raises MediaError exactly when `open_audio` would; any bytes are levels."""
    source = audio.source if isinstance(audio, Audio) else audio
    if isinstance(source, np.ndarray):
        _check_wave(source)
        return
    with _recording(source):
        pass


@contextmanager
def _recording(path: Path) -> Iterator[wave.Wave_read]:
    try:
        with path.open("rb") as file, wave.open(file) as read:
            count, channels, rate = read.getnframes(), read.getnchannels(), read.getframerate()
            if count * channels > MOST_SAMPLES:
                why = f"{count:,} samples of {channels} channels, more than the {MOST_SAMPLES:,}"
                raise MediaError(f"{path}: {why} allowed")
            if rate < 1 or channels < 1 or read.getsampwidth() not in (1, 2, 3, 4):
                bits = 8 * read.getsampwidth()
                raise MediaError(f"{path}: says {rate} Hz, {channels} channels and {bits} bits")
            if not count:
                raise MediaError(f"{path}: holds no sound")
            there = sum(len(read.readframes(_AT_ONCE)) for _ in range(0, count, _AT_ONCE)) // (
                channels * read.getsampwidth()
            )
            if there != count:
                raise MediaError(f"{path}: is cut short, {there:,} of {count:,} samples")
            read.rewind()
            yield read
    except MediaError:
        raise
    except (wave.Error, EOFError) as error:
        why = f"is not a WAV file of plain PCM ({error or 'it ends too early'})"
        raise MediaError(
            f"{path}: {why}; convert it: ffmpeg -i IN -c:a pcm_s16le OUT.wav"
        ) from None
    except Exception as error:
        raise MediaError(f"{path}: {reason(error)}") from None


def _levels(data: bytes, width: int) -> np.ndarray:
    """Levels in [−1, 1) of little-endian PCM; that of 8 bits is unsigned."""
    if width == 1:
        return (np.frombuffer(data, np.uint8) - 128.0) / 128.0
    if width == 3:
        # As the upper three bytes of four, the sign is where it belongs.
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width = wide.tobytes(), 4
    return np.frombuffer(data, f"<i{width}") / float(2 ** (8 * width - 1))


def _check_wave(levels: np.ndarray) -> None:
    highest = float(np.abs(levels).max())
    if not highest <= 1:
        raise MediaError(f"audio: a wave must lie in [−1, 1]; its highest level is {highest:g}")
