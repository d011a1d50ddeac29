"""Random numbers of the probes: never those of a training set, the same for every model.

Every item draws from its own generator, so the first 50 items of a probe of 400 are the 50 items
of a probe of 50.
"""

from __future__ import annotations

import zlib

import numpy as np

PROBE_TAG = 0x50524F4245
"""First entry of every probe's seed ("PROBE" in ASCII). Training code seeds with other entries,
so no seed of a user's can make a probe repeat a training set."""


def probe_rng(probe: str, seed: int, *path: str | int) -> np.random.Generator:
    """The generator of one item: the probe's name, the probe's seed, and where the item stands."""
    entries = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    return np.random.default_rng([PROBE_TAG, zlib.crc32(probe.encode()), seed, *entries])
