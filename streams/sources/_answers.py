"""Wrong answers that could have been right: the other answers of a task, to the like of a question.

Read from a task's training samples when the first one is asked for, since that draws them all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

from streams.sample import Answer, Sample, Text
from streams.scoring import normalise, score, yes_or_no
from streams.sources._llava_records import StreamError

_TRIED = 64
"""Answers looked at in each group; whole sets of captions would take long."""


class Answers:
    """The references of a task, each once, by question and by kind of question.

    Two questions are of one kind when their scorer and their first two words are the same.
    """

    def __init__(self, task: str, samples: Sequence[Sample]) -> None:
        self._task = task
        self._samples = samples

    def wrong(self, sample: Sample, rng: np.random.Generator, count: int = 1) -> tuple[str, ...]:
        """Up to `count` different answers that the sample's rule can read and finds wrong.

        The other of yes and no; else what the same question was answered elsewhere, then one of
        its kind, then any of the task. Raises StreamError when there is none.
        """
        found: dict[str, str] = {}
        for text in self._offered(sample, rng):
            made = score(sample, Answer(sample_id=sample.id, parts=(Text(text=text),)))
            if made.value < 1 and made.outcome != "invalid":
                found.setdefault(normalise(text), text)
            if len(found) == count:
                break
        if not found:
            raise StreamError(
                f"task {self._task}: sample {sample.id}: no other answer of the task is wrong "
                "here, so there is none to reject"
            )
        return tuple(found.values())

    def _offered(self, sample: Sample, rng: np.random.Generator) -> Iterator[str]:
        if not all(isinstance(part, Text) for part in sample.reference):
            raise StreamError(f"task {self._task}: sample {sample.id}: its reference holds media")
        said = sample.reference_text
        if (word := yes_or_no(said)) and normalise(said) == word:
            yield said.replace(*(("Yes", "No") if word == "yes" else ("No", "Yes"))).replace(
                *(("yes", "no") if word == "yes" else ("no", "yes"))
            )
            return
        for group in (*_keys(sample), None):
            answers = self._groups.get(group, ())
            size = min(len(answers), _TRIED)
            yield from (answers[i] for i in rng.choice(len(answers), size, replace=False) if size)

    @cached_property
    def _groups(self) -> dict[object, tuple[str, ...]]:
        """The whole task's under None."""
        groups: defaultdict[object, dict[str, None]] = defaultdict(dict)
        for sample in self._samples:
            for key in (*_keys(sample), None):
                groups[key][sample.reference_text] = None
        return {key: tuple(texts) for key, texts in groups.items()}


def _keys(sample: Sample) -> Iterable[tuple[str, ...]]:
    question = normalise(sample.question)
    return ("question", question), ("kind", sample.scorer, *question.split()[:2])
