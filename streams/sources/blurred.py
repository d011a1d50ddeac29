"""A stream whose tasks blend at their borders: some training samples move to the neighbours.

`stream: {name: blurred, of: default, share: 0.2}`. Two neighbouring tasks of n and m training
samples exchange ⌊share / 2 · min(n, m)⌋ of them, drawn by the seed. So of a task between two others
`share` comes from them, of the first and the last half as much; every task keeps its size, every
sample stays in the stream once, and the test sets stay as they are. What moves is trained, and
counted, as a sample of the task it moves to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt

from streams.loading import load_stream
from streams.sample import Sample
from streams.settings import SettingError
from streams.sources._drawn import Drawn
from streams.stream import Task


@dataclass(frozen=True, kw_only=True)
class Blurred:
    """Needs a stream of two tasks or more."""

    of: Any
    """The stream: a name, a path, a mapping or a list, as `stream` of a study takes."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of a task's training samples that its neighbours exchange, half with each."""
    seed: NonNegativeInt = 0
    """Draws the samples that move."""

    def tasks(self) -> tuple[Task, ...]:
        tasks = load_stream(self.of, where="blurred.of").tasks
        if len(tasks) < 2:
            raise SettingError(f"blurred.of: needs two tasks or more; got {tasks[0].name} alone")
        rng = np.random.default_rng(self.seed)
        orders = [rng.permutation(len(task.train)).tolist() for task in tasks]
        # Where each task's i-th training sample comes from: a task and a place in it.
        origins = [
            [(number, i) for i in range(len(task.train))] for number, task in enumerate(tasks)
        ]
        for left in range(len(tasks) - 1):
            here, there = orders[left], orders[left + 1]
            count = int(self.share / 2 * min(len(here), len(there)) + 1e-9)
            # To the right goes the end of the order, to the left its beginning: they never meet.
            for i, j in zip(here[len(here) - count :], there[:count], strict=True):
                origins[left][i], origins[left + 1][j] = (left + 1, j), (left, i)
        sets = [task.train for task in tasks]
        return tuple(
            replace(task, train=Drawn(len(task.train), partial(_sample, sets, origin)))
            for task, origin in zip(tasks, origins, strict=True)
        )


def _sample(sets: list[Sequence[Sample]], origin: list[tuple[int, int]], index: int) -> Sample:
    task, place = origin[index]
    return sets[task][place]
