"""Feedback in words: a wrong answer, what is wrong with it and what to do, then the right answer.

`stream: {name: feedback, of: default}`. A share of the training samples gets two more turns. First
an earlier answer of the assistant: its rejected one, else one drawn as `preferences` draws them.
Then the user's reply, a critique (`No, "six" is wrong.`) with a refinement (`Look again and answer
the question.`). The reference is the right answer, learnt as any other; the wrong one is context
that is not taught.

After DRESS (Chen et al. 2023, arXiv 2311.10081), which splits feedback into critique, to align
with, and refinement, to improve an answer with, and which trains by conditional reinforcement: the
likelihood of an answer given the feedback. Our reading: of that we take the turn that answers
after feedback. There a language model judges the model's own answers in words and figures; here
the answers are other samples' and the words templates, so that all feedback is true. Where wrong
and right answer share words at the beginning, the refinement says which to keep.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt

from streams.loading import load_stream
from streams.phrasings import pick
from streams.sample import Message, Sample, Text
from streams.sources._answers import Answers
from streams.sources._drawn import Drawn, chosen, generator
from streams.sources._llava_records import StreamError
from streams.stream import Task

CRITIQUES = (
    'No, "{wrong}" is wrong.',
    'The answer "{wrong}" is not right.',
    "That answer is not right.",
    "No, that is wrong.",
)
REFINEMENTS = (
    "Look again and answer the question.",
    "Please give the right answer.",
    "Say what is right.",
)
_KEEP = 'Keep "{words}" and change the rest.'


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Test sets stay as they are: questions, without feedback."""

    of: Any
    """The stream: a name, a path, a mapping or a list, as `stream` of a study takes."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each task's training samples that get feedback; the others stay as they are."""
    seed: NonNegativeInt = 0
    """Draws the samples, the wrong answers and the wording."""

    def tasks(self) -> tuple[Task, ...]:
        made = []
        for task in load_stream(self.of, where="feedback.of").tasks:
            some = chosen(f"feedback/{task.name}", len(task.train), self.share, self.seed)
            draw = partial(_sample, task, some, Answers(task.name, task.train), self.seed)
            made.append(replace(task, train=Drawn(len(task.train), draw), objective="sft"))
        return tuple(made)


def _sample(task: Task, some: Collection[int], answers: Answers, seed: int, index: int) -> Sample:
    sample = task.train[index]
    if index not in some:
        return sample
    if sample.plain:
        raise StreamError(f"feedback.of: task {task.name}: plain text has no turns to reply to")
    rng = generator(f"feedback/{task.name}", "train", seed, index)
    wrong = sample.rejected or (Text(text=answers.wrong(sample, rng)[0]),)
    said = Message(role="assistant", parts=wrong)
    reply = _reply(said.text, sample.reference_text, rng)
    return replace(
        sample,
        messages=(*sample.messages, said, Message(role="user", parts=(Text(text=reply),))),
    )


def _reply(wrong: str, right: str, rng: np.random.Generator) -> str:
    critique = pick(CRITIQUES, rng).format(wrong=wrong.strip().rstrip("."))
    refinement = pick(REFINEMENTS, rng)
    pairs = zip(wrong.split(), right.split(), strict=False)
    if kept := [word for word, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]:
        refinement = _KEEP.format(words=" ".join(kept))
    return f"{critique} {refinement}"
