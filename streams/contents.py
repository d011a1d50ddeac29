"""What a medium of any kind holds: whether it can be opened, as a hash, as a thumbnail, in words.

Knows the files that open each kind; knows no sample format and no model.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Hashable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from streams.audio import check_audio, open_audio
from streams.media import check_image, open_image
from streams.points import open_points
from streams.sample import Audio, Image, Medium, Points, Video
from streams.video import check_video, open_video

THUMBNAIL_SIDE = 224
_WAVE = (224, 56)
"""Width and height of a drawn wave."""
_CLOUD = 112


def check(medium: Medium) -> None:
    """Raises MediaError exactly when opening the medium would."""
    source = medium.source
    if isinstance(medium, Audio):
        check_audio(medium)
    elif isinstance(medium, Points):
        open_points(medium)
    elif isinstance(source, Path):
        (check_image if isinstance(medium, Image) else check_video)(source)


def content_hash(medium: Medium) -> str:
    """SHA-256 of what is held and its shape: the same for a file, its copy and its array."""
    array, head = _opened(medium)
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def thumbnail(medium: Medium, side: int = THUMBNAIL_SIDE) -> bytes:
    """A PNG: the picture or a video's middle frame, no larger than `side` pixels either way (small
    ones keep their size); a recording's wave; a cloud seen from the front."""
    if isinstance(medium, Audio):
        picture = _wave(open_audio(medium)[0])
    elif isinstance(medium, Points):
        picture = _cloud(open_points(medium))
    else:
        array = _opened(medium)[0]
        picture = Pillow.fromarray(array[len(array) // 2] if array.ndim == 4 else array)
    picture.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def in_words(medium: Medium) -> str:
    """Its kind and its size, such as `audio, 1.50 s at 16,000 Hz`; nothing of what it shows."""
    if isinstance(medium, Audio):
        wave, rate = open_audio(medium)
        return f"audio, {len(wave) / rate:.2f} s at {rate:,} Hz"
    shape = _opened(medium)[0].shape
    if isinstance(medium, Points):
        return f"points, {shape[0]:,}{' with colours' if shape[1] == 6 else ''}"
    frames = f"{shape[0]} frames of " if len(shape) == 4 else ""
    return f"{medium.kind}, {frames}{shape[-2]} × {shape[-3]} pixels"


def identity(medium: Medium) -> Hashable:
    """The same for media of one kind that name the same array or file; nothing is opened."""
    source, rate = medium.source, getattr(medium, "sampling_rate", None)
    return medium.kind, id(source) if isinstance(source, np.ndarray) else source, rate


def files(medium: Medium) -> Iterator[Path]:
    """The files that hold it: none of an array, each frame's of a folder."""
    if isinstance(medium.source, Path):
        whole = medium.source.is_dir()
        yield from sorted(medium.source.iterdir()) if whole else (medium.source,)


def stored_bytes(medium: Medium) -> int:
    """What it takes where it is."""
    if isinstance(medium.source, np.ndarray):
        return medium.source.nbytes
    return sum(file.stat().st_size for file in files(medium))


def _opened(medium: Medium) -> tuple[np.ndarray, str]:
    """A medium as an array, and what tells it from one of other kind or shape."""
    if isinstance(medium, Image):
        pixels = open_image(medium)
        return pixels, f"{pixels.shape[0]}x{pixels.shape[1]}:"
    if isinstance(medium, Audio):
        wave, rate = open_audio(medium)
        return wave, f"audio {rate}:"
    array = open_video(medium) if isinstance(medium, Video) else open_points(medium)
    return array, f"{medium.kind} {'x'.join(map(str, array.shape))}:"


def _wave(levels: np.ndarray) -> Pillow.Image:
    """Each column is from the lowest to the highest of its levels, dark on white."""
    width, height = _WAVE
    edges = np.linspace(0, len(levels), width + 1).astype(int)
    picture = np.full((height, width), 255, np.uint8)
    for column, start in enumerate(edges[:-1].clip(max=len(levels) - 1)):
        piece = levels[start : max(edges[column + 1], start + 1)]
        top, bottom = ((1 - piece.max()) / 2, (1 - piece.min()) / 2)
        picture[round(top * (height - 1)) : round(bottom * (height - 1)) + 1, column] = 40
    return Pillow.fromarray(picture)


def _cloud(cloud: np.ndarray) -> Pillow.Image:
    """x to the right and y up, the nearer the darker; z points to the viewer."""
    # In 64 bits no difference of two 32-bit numbers overflows.
    places = cloud[:, :3].astype(np.float64)
    places -= (places.max(axis=0) + places.min(axis=0)) / 2
    places /= max(float(np.abs(places).max()), 1e-300)
    order = np.argsort(places[:, 2], kind="stable")
    x, y, z = places[order].T
    side = _CLOUD - 1
    picture = np.full((_CLOUD, _CLOUD), 255, np.uint8)
    rows, columns = (
        ((1 - y) / 2 * side).round().astype(int),
        ((1 + x) / 2 * side).round().astype(int),
    )
    picture[rows, columns] = (140 - 100 * (z + 1) / 2).astype(np.uint8)
    return Pillow.fromarray(picture)
