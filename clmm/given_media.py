"""Media as a caller gives them to a processor: by keyword, in lists at any depth, as arrays.

Knows how each input's media may look; what becomes of them, their preprocessors say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as Pillow

LAYOUTS = {
    "video": (4, "[frames, height, width, 3]"),
    "audio": (1, "[samples]"),
    "points": (2, "[points, 3 or 6]"),
    "depth": (2, "[height, width]"),
    "thermal": (2, "[height, width]"),
    "imu": (2, "[6, samples]"),
}
"""Input → axes of one medium as an array; an image's are its own preprocessor's affair."""

_KEYWORDS = {"image": "images", "video": "videos"}
_PLURALS = {
    "audio": "recordings",
    "points": "clouds",
    "depth": "depth maps",
    "thermal": "thermal maps",
    "imu": "readings",
}


def keyword(name: str) -> str:
    """Under which an input's media are given: images, videos; another's come under its name."""
    return _KEYWORDS.get(name, name)


def plural(name: str) -> str:
    """Several media of an input, in words."""
    return _PLURALS.get(name, f"{name}s")


def by_input(given: Mapping[str, Any], inputs: Sequence[str]) -> dict[str, list[Any]]:
    """Each input's media as one list; ValueError for media of what is no input."""
    for name in ("image", *LAYOUTS):
        if name not in inputs and flat(given.get(keyword(name)), name):
            raise ValueError(
                f"{keyword(name)}: the model has no such input; inputs: "
                f"{', '.join(inputs) or 'text alone'}"
            )
    return {name: flat(given.get(keyword(name)), name) for name in inputs}


def flat(media: Any, name: str) -> list[Any]:
    """One medium, or media in lists at any depth, as one list in reading order."""
    if media is None:
        return []
    if isinstance(media, (list, tuple)) and not (name == "video" and _is_pictures(media)):
        return [one for item in media for one in flat(item, name)]
    return [media]


def _is_pictures(media: Sequence[Any]) -> bool:
    """Whether a list is a video: one of pictures, not of videos."""
    return bool(media) and (isinstance(media[0], Pillow.Image) or getattr(media[0], "ndim", 0) == 3)


def checked(medium: Any, kind: str, where: str, *, longest: int | None = None) -> Any:
    """The medium, as an array where it has a layout.

    Raises ValueError for what a preprocessor would cut, or fail on without saying why.
    """
    if kind not in LAYOUTS or isinstance(medium, (list, tuple)):
        return medium
    axes, layout = LAYOUTS[kind]
    values = np.asarray(medium)
    if values.ndim != axes or not values.size:
        raise ValueError(f"{where}: give an array {layout}; got one of {[*values.shape]}")
    if kind == "video":
        return np.ascontiguousarray(values)
    if kind == "audio" and values.dtype.kind != "f":
        raise ValueError(f"{where}: give floats in [−1, 1]; got {values.dtype}")
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: it holds values that are no numbers")
    if longest is not None and values.shape[-1] > longest:
        raise ValueError(
            f"{where}: {values.shape[-1]} samples, but the encoder takes {longest}; cut it first"
        )
    return np.ascontiguousarray(values)
