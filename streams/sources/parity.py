"""Handwritten digits in dark ink on coloured paper: "Is this digit even?" → "yes"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from streams.sample import Image, Provenance, Sample, ask
from streams.sources import _handwriting as source
from streams.sources._drawn import Drawn, Split
from streams.stream import Task

PHRASINGS = (
    "Is this digit even?",
    "Is the digit even?",
    "Is this an even digit?",
    "Is this number even?",
    "Is the number in the image even?",
    "Yes or no: is this digit even?",
)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Real handwriting, asked for yes or no, both equally often.

    The test digits are those of `digits`, so no task trains on a picture that another tests.
    """

    train_items: PositiveInt = 2000
    """At most about 8,000; beyond some 1,400 pictures come back with another phrasing."""
    test_items: PositiveInt = 300
    """At most 360."""
    seed: NonNegativeInt = 0
    """Chooses items and phrasings. The split does not depend on it."""

    def tasks(self) -> tuple[Task, ...]:
        return (
            Task(
                name="parity",
                train=self._samples("train", self.train_items),
                test=self._samples("test", self.test_items),
                description="Is the handwritten digit even?",
            ),
        )

    def _samples(self, split: Split, count: int) -> Drawn:
        pools = source.pool(split)
        halves = [sum(pools[first::2], ()) for first in (0, 1)]
        dealt = source.deal(halves, count, len(PHRASINGS), split, self.seed, "parity")
        return Drawn(count, partial(_sample, split, dealt))


def _sample(split: Split, dealt: list[tuple[int, int]], index: int) -> Sample:
    row, phrasing = dealt[index]
    pictures, labels = source.handwriting()
    return ask(
        id=f"parity/{split}/{row:04d}/{phrasing}",
        question=PHRASINGS[phrasing],
        answer="no" if labels[row] % 2 else "yes",
        image=Image(source=_ink_on_paper(pictures[row], row)),
        provenance=Provenance(
            source=source.SOURCE, split=split, item=f"row {row}", licence=source.LICENCE
        ),
        scorer="yes_no",
        cluster=f"handwriting/{row:04d}",
    )


def _ink_on_paper(picture: np.ndarray, row: int) -> np.ndarray:
    rng = np.random.default_rng([row, 2])
    paper, ink = rng.integers(185, 246, size=3), rng.integers(0, 91, size=3)
    cover = source.enlarge(picture)[:, :, None]
    return np.rint(paper + cover * (ink - paper)).astype(np.uint8)
