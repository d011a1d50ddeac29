"""The handwritten digits that scikit-learn ships: read, split once and for all, enlarged.

1,797 digits of 8 × 8 pixels (Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten
Digits). The split depends on the pictures alone: every task and every seed has the same test
digits, so none is ever trained on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from streams.settings import SettingError
from streams.sources._drawn import Split
from streams.world import SIZE

TEST_PER_DIGIT = 36
LICENCE = "CC BY 4.0"
SOURCE = "scikit-learn digits (UCI optdigits)"


@functools.cache
def handwriting() -> tuple[np.ndarray, np.ndarray]:
    """Pictures, float [1797, 8, 8] in [0, 1], and their labels, int [1797].

    Reads the file beside scikit-learn's code: importing scikit-learn would take seconds.
    """
    spec = importlib.util.find_spec("sklearn")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("sklearn")
    path = folder / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise SettingError(f"digits: {path} is missing; install scikit-learn")
    table = np.loadtxt(path, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8) / 16, table[:, -1].astype(int)


@functools.cache
def pool(split: Split) -> tuple[tuple[int, ...], ...]:
    """For each digit the rows of its pictures in `split`; 36 of each digit are for the test."""
    pictures, labels = handwriting()
    pools = []
    for digit in range(10):
        rows = [int(row) for row in np.flatnonzero(labels == digit)]
        rows.sort(key=lambda row: hashlib.sha256(pictures[row].tobytes()).digest())
        chosen = rows[:TEST_PER_DIGIT] if split == "test" else rows[TEST_PER_DIGIT:]
        pools.append(tuple(chosen))
    return tuple(pools)


def deal(
    groups: Sequence[Sequence[int]], count: int, phrasings: int, split: Split, seed: int, where: str
) -> list[tuple[int, int]]:
    """`count` different pairs (row, phrasing), the groups by turns so that they stay balanced.

    A test picture is asked about once; a train picture comes back with another phrasing.
    """
    rng = np.random.default_rng([seed, split == "test", len(groups)])
    pairs = []
    for again in range(phrasings if split == "train" else 1):
        shuffled = [rng.permutation(group).tolist() for group in groups]
        rows = (row for turn in zip(*shuffled, strict=False) for row in turn)
        pairs += [(row, (row + again) % phrasings) for row in rows]
    if count > len(pairs):
        have = f"the source has enough for {len(pairs)}"
        raise SettingError(f"{where}.{split}_items: got {count}; {have}")
    return pairs[:count]


def enlarge(picture: np.ndarray) -> np.ndarray:
    """[8, 8] in [0, 1] → [72, 72] in [0, 1], smoothly."""
    image = Pillow.fromarray(np.rint(picture * 255).astype(np.uint8))
    large = image.resize((SIZE, SIZE), Pillow.Resampling.BICUBIC)
    return np.asarray(large, dtype=np.float32) / 255
