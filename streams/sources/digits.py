"""Handwritten digits from scikit-learn: "What digit is this?" → "seven"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from streams.sample import Image, Provenance, Sample, ask
from streams.sources import _handwriting as source
from streams.sources._drawn import Drawn, Split
from streams.stream import Task

PHRASINGS = (
    "What digit is this?",
    "Which digit is shown?",
    "Which digit do you see?",
    "What number is in the image?",
    "What number is written here?",
    "Name the digit.",
)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMERALS = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Real handwriting, white on black; all digits equally often."""

    train_items: PositiveInt = 2000
    """At most about 8,000; beyond some 1,380 pictures come back with another phrasing."""
    test_items: PositiveInt = 300
    """At most 360."""
    seed: NonNegativeInt = 0
    """Chooses items and phrasings. The split does not depend on it."""
    answers: Literal["word", "numeral"] = "word"
    """`seven` or `7`."""

    def tasks(self) -> tuple[Task, ...]:
        return (
            Task(
                name="digits",
                train=self._samples("train", self.train_items),
                test=self._samples("test", self.test_items),
                description="Which handwritten digit is it?",
            ),
        )

    def _samples(self, split: Split, count: int) -> Drawn:
        dealt = source.deal(source.pool(split), count, len(PHRASINGS), split, self.seed, "digits")
        words = WORDS if self.answers == "word" else NUMERALS
        return Drawn(count, partial(_sample, split, dealt, words))


def _sample(
    split: Split, dealt: list[tuple[int, int]], words: tuple[str, ...], index: int
) -> Sample:
    row, phrasing = dealt[index]
    pictures, labels = source.handwriting()
    return ask(
        id=f"digits/{split}/{row:04d}/{phrasing}",
        question=PHRASINGS[phrasing],
        answer=words[int(labels[row])],
        image=Image(source=_white_on_black(pictures[row])),
        provenance=Provenance(
            source=source.SOURCE, split=split, item=f"row {row}", licence=source.LICENCE
        ),
        cluster=f"handwriting/{row:04d}",
    )


def _white_on_black(picture: np.ndarray) -> np.ndarray:
    ink = np.rint(source.enlarge(picture) * 255).astype(np.uint8)
    return np.repeat(ink[:, :, None], 3, axis=2)
