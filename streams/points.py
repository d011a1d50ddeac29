"""Opens point clouds that nobody has vouched for: .npy files of floating point numbers.

Knows files and arrays. What is not a MediaError when it comes here is one when it leaves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streams.media import MediaError, mapped, reason
from streams.sample import Points

MOST_POINTS = 2_000_000


def open_points(points: Points | Path | np.ndarray) -> np.ndarray:
    """A cloud: float32 [points, 3] of x, y, z, or [points, 6] with red, green, blue in [0, 1].

    Raises MediaError for a file that is missing, unreadable, too large or no such array, and for
    numbers that are not finite.
    """
    source = points.source if isinstance(points, Points) else points
    if isinstance(source, np.ndarray):
        return _checked("points", Points(source=source).source)  # type: ignore[arg-type]
    try:
        if source.suffix.lower() != ".npy":
            raise MediaError(f"{source}: is no .npy file of shape [points, 3] or [points, 6]")
        cloud = mapped(source)
        if cloud.dtype.kind != "f" or cloud.ndim != 2 or cloud.shape[1] not in (3, 6):
            held = f"{list(cloud.shape)} of {cloud.dtype}"
            raise MediaError(
                f"{source}: must hold [points, 3] or [points, 6] of float32, not {held}"
            )
        if len(cloud) > MOST_POINTS:
            raise MediaError(
                f"{source}: {len(cloud):,} points, more than the {MOST_POINTS:,} allowed"
            )
        with np.errstate(over="ignore"):  # what is too large for 32 bits is not finite, see below
            return _checked(str(source), np.array(cloud, dtype=np.float32))
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{source}: {reason(error)}") from None


def _checked(where: str, cloud: np.ndarray) -> np.ndarray:
    if not len(cloud):
        raise MediaError(f"{where}: holds no point")
    if not np.isfinite(cloud).all():
        raise MediaError(f"{where}: holds numbers that are not finite")
    colours = cloud[:, 3:]
    if colours.size and not 0 <= colours.min() <= colours.max() <= 1:
        found = f"{colours.min():g} to {colours.max():g}"
        raise MediaError(f"{where}: colours must lie in [0, 1], not {found}; divide bytes by 255")
    return cloud
