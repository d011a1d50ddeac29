"""Preference pairs from any stream: to each training sample a wrong answer that is liked less.

`stream: {name: preferences, of: default, objective: {name: dpo, beta: 0.1}}`. The rejected answer
is what a sample of the same task has for a reference: to the same question where there is one,
else to one of its kind, that begins with the same two words; for yes it is no. It is never an
answer that the sample's scorer takes for right. Test sets stay as they are.

So the pairs teach what is true of a picture, as pairs for hallucination do, not what people like;
for those, bring records with a `rejected` key (`streams/sources/llava_json.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import NonNegativeInt

from streams.loading import load_stream
from streams.sample import Sample, Text
from streams.sources._answers import Answers
from streams.sources._drawn import Drawn, generator
from streams.stream import Task


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """A sample that has a rejected answer keeps it."""

    of: Any
    """The stream: a name, a path, a mapping or a list, as `stream` of a study takes."""
    objective: str | Mapping[str, Any] = "dpo"
    """How pairs are learnt: a file of `clmm/objectives`, or its name and settings."""
    seed: NonNegativeInt = 0
    """Draws the rejected answers."""

    def tasks(self) -> tuple[Task, ...]:
        return tuple(
            replace(
                task,
                train=Drawn(
                    len(task.train),
                    partial(_paired, task, Answers(task.name, task.train), self.seed),
                ),
                objective=self.objective,
            )
            for task in load_stream(self.of, where="preferences.of").tasks
        )


def _paired(task: Task, answers: Answers, seed: int, index: int) -> Sample:
    sample = task.train[index]
    if sample.rejected:
        return sample
    rng = generator(f"preferences/{task.name}", "train", seed, index)
    return replace(sample, rejected=(Text(text=answers.wrong(sample, rng)[0]),))
