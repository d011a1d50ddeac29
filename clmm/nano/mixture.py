"""More of what nano was last taught: its own mixture of lessons, as a task that any loop can train.

Knows the lessons and the proportions of the build's last stage; knows no training. Every question
of a lesson is a sample, so that questions come in the proportions in which the build asked them.
Nothing here is new to nano: training on it further should drift nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from clmm.nano.build import STAGES, next_lesson
from streams.sample import Image, Provenance, Sample, ask
from streams.stream import Task

LAST = tuple(STAGES)[-1]
TAG = 0x4D495854
"""First entry of every seed here ("MIXT" in ASCII); a build's seeds have other first entries."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Lessons drawn as in the last stage of `clmm build nano`, by seeds that no build has."""

    lessons: PositiveInt = 480
    """Pictures or texts to train on; each brings some seven questions."""
    test_lessons: PositiveInt = 16
    seed: NonNegativeInt = 0

    def tasks(self) -> tuple[Task, ...]:
        return (
            Task(
                name="mixture",
                train=self._samples("train", self.lessons),
                test=self._samples("test", self.test_lessons),
                description="What nano was taught last, in the same proportions.",
            ),
        )

    def _samples(self, split: str, count: int) -> list[Sample]:
        return [sample for index in range(count) for sample in self._lesson(split, index)]

    def _lesson(self, split: str, index: int) -> list[Sample]:
        number = ("train", "test").index(split)
        lesson = next_lesson(LAST, np.random.default_rng([TAG, self.seed, number, index]))
        image = None if lesson.picture is None else Image(source=lesson.picture)
        name = f"mixture/{split}/{self.seed}/{index:05d}"
        return [
            ask(
                id=f"{name}-{turn}",
                question=lesson.text + question,
                answer=answer,
                image=image,
                scorer="yes_no" if answer in ("Yes.", "No.") else "exact",
                cluster=name,
                provenance=Provenance(
                    source=f"nano's curriculum, {LAST}, seed {self.seed}",
                    split=split,
                    item=f"lesson {index}, question {turn}",
                    licence="MIT",
                ),
            )
            for turn, (question, answer) in enumerate(lesson.turns)
        ]
