"""Opens videos that nobody has vouched for: animated pictures, folders of frames, arrays, films.

Knows files and arrays. What is not a MediaError when it comes here is one when it leaves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from streams.media import MediaError, inside, mapped, opened, reason, upright
from streams.sample import Video

MOST_PIXELS = 200_000_000
"""Of all frames together: 600 MB, or 20 seconds of 640 × 480 at 30 frames a second."""
ANIMATED = (".gif", ".webp", ".png", ".apng")
FILMS = {
    ".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska",
    ".avi": "avi",
}  # fmt: skip
"""Suffix → the one format that it is read as: others lead to further files and addresses."""
KNOWN = "an animated GIF, WEBP or PNG, a folder of numbered pictures, or .npy of uint8"


def open_video(video: Video | Path | np.ndarray) -> np.ndarray:
    """The frames of a video: uint8 [frames, height, width, 3], all of them, upright.

    Raises MediaError for a file that is missing, unreadable, too large or no video.
    """
    source = video.source if isinstance(video, Video) else video
    if isinstance(source, np.ndarray):
        return Video(source=source).source  # type: ignore[return-value]  # checks the array
    return np.stack(list(_frames(source)))


def check_video(path: Path) -> None:
    """Raises MediaError exactly when `open_video` would; keeps one frame at a time."""
    for _ in _frames(path):
        pass


def _frames(path: Path) -> Iterator[np.ndarray]:
    suffix, size = path.suffix.lower(), None
    try:
        if path.is_dir():
            found = _numbered(path)
        elif suffix == ".npy":
            found = _array(path)
        elif suffix in ANIMATED:
            found = _animated(path)
        elif suffix in FILMS:
            found = _film(path)
        else:
            raise MediaError(f"{path}: is no video in a known form; give {KNOWN}")
        for frame in found:
            size = size or frame.shape
            if frame.shape != size:
                sizes = [f"{width} × {height}" for height, width, _ in (size, frame.shape)]
                raise MediaError(f"{path}: has frames of {sizes[0]} and {sizes[1]} pixels")
            yield frame
    except MediaError:
        raise
    except Exception as error:  # decoders raise almost anything on a broken file
        raise MediaError(f"{path}: {reason(error)}") from None
    if size is None:
        raise MediaError(f"{path}: holds no frame")


def _animated(path: Path) -> Iterator[np.ndarray]:
    with opened(path) as picture:
        count = getattr(picture, "n_frames", 1)
        if count < 2:
            raise MediaError(f"{path}: is a still picture; name it as image")
        _check_size(path, count * picture.width * picture.height)
        # A picture for viewers that know no animation is no frame of it.
        for index in range(bool(picture.info.get("default_image")), count):
            picture.seek(index)
            yield upright(picture, path)


def _numbered(folder: Path) -> Iterator[np.ndarray]:
    """Pictures in the order of the numbers that their names end with; hidden files are left."""
    by_number: dict[int, Path] = {}
    pixels = 0
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        found = re.search(r"[0-9]+$", entry.stem)
        if not found:
            raise MediaError(f"{entry}: has no number; a folder of frames holds nothing else")
        number = int(found[0])
        if number in by_number:
            raise MediaError(f"{entry}: has the number of {by_number[number].name}")
        by_number[number] = inside(folder, entry.name)
        with opened(by_number[number]) as picture:
            pixels += picture.width * picture.height
        _check_size(folder, pixels)
    for number in sorted(by_number):
        with opened(by_number[number]) as picture:
            yield upright(picture, by_number[number])


def _array(path: Path) -> Iterator[np.ndarray]:
    frames = mapped(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        held = f"{list(frames.shape)} of {frames.dtype}"
        raise MediaError(f"{path}: must hold [frames, height, width, 3] of uint8, not {held}")
    _check_size(path, frames.size // 3)
    for frame in frames if frames.size else ():
        yield np.array(frame)


def _film(path: Path) -> Iterator[np.ndarray]:
    try:
        import av
    except ImportError:
        why = f"a {path.suffix} file is read by PyAV, which is not installed: pip install av"
        raise MediaError(f"{path}: {why}; or give {KNOWN}") from None
    # From an open file, in a format that is named: the file cannot make the reader open others.
    with (
        path.open("rb") as file,
        av.open(file, format=FILMS[path.suffix.lower()]) as container,
    ):
        if not container.streams.video:
            raise MediaError(f"{path}: holds no pictures")
        stream, pixels = container.streams.video[0], 0
        _check_size(path, stream.width * stream.height)
        for frame in container.decode(stream):
            pixels += frame.width * frame.height
            _check_size(path, pixels)
            if frame.rotation % 90:
                raise MediaError(f"{path}: is turned by {frame.rotation}°; turn it to the full")
            yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def _check_size(path: Path, pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise MediaError(
            f"{path}: {pixels:,} pixels in its frames, more than the {MOST_PIXELS:,} allowed; "
            "give fewer or smaller frames"
        )
