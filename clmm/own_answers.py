"""Prompts of earlier tasks, replayed with the model's own answers in place of the references.

An Avalanche plugin for `clmm.trainer`. Knows samples and how a model answers them.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from clmm.answering import Answerer
from clmm.batching import content
from clmm.memory import Reservoir, prompt_bytes
from clmm.strategy import Context
from streams.sample import Sample, Text


class OwnAnswers(Reservoir):
    """A reservoir of prompts; each is answered once, by the model that has just learnt its task.

    Only training samples of the stage are taken, and none whose prompt (words and media) a
    test item of any task of the stream has. An empty answer, or one with a word that stands
    for a medium, is not replayed: nothing could be learnt from it. Withheld samples are not
    taken: their answers would be saved.
    """

    def __init__(self, context: Context, *, size: int, share: float, max_new_tokens: int) -> None:
        super().__init__(size=size, share=share, seed=context.seed)
        self._batcher, self._max_new_tokens = context.batcher, max_new_tokens
        self._tasks = context.stream.tasks
        self.answers: dict[str, str] = {}
        """Sample id → what the model answered."""

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        from clmm.benchmark import ALIGNMENT, dataset

        rows = [self.buffer[i] for i in range(len(self.buffer))]
        usable = [row for row in rows if self._usable(self.answers[row[0].id])]
        if rows and not usable:
            warnings.warn("no answer of the model can be replayed: all are empty", stacklevel=2)
        samples = [self._answered(row[0]) for row in usable]
        # Whatever their task's objective, own answers are imitated.
        data = dataset(samples, [ALIGNMENT] * len(samples), self._batcher)
        strategy.dataloader = strategy.dataloader.mixed_with(data, self._share)

    def update(self, data: Any, strategy: Any) -> None:
        free = [i for i in range(len(data)) if not data[i][0].withheld]
        fresh = [i for i in free if content(data[i][0]) not in self._asked]
        super().update(data.subset(fresh), strategy)
        known = self.answers
        new = [sample for sample in self.samples if sample.id not in known]
        autocast = torch.bfloat16 if strategy.settings.precision == "bf16" else None
        answerer = Answerer(strategy.model.model, self._batcher, autocast=autocast)
        found = answerer.answer(new, max_new_tokens=self._max_new_tokens)
        known = known | {answer.sample_id: answer.text for answer in found}
        self.answers = {sample.id: known[sample.id] for sample in self.samples}

    @cached_property
    def _asked(self) -> set[Hashable]:
        """What test items ask."""
        return {content(sample) for task in self._tasks for sample in task.test}

    def _usable(self, text: str) -> bool:
        tokens = self._batcher.inputs.tokens.values()
        return bool(text.strip()) and not any(token in text for token in tokens)

    def _answered(self, sample: Sample) -> Sample:
        return replace(sample, reference=(Text(text=self.answers[sample.id]),))

    @property
    def stored_bytes(self) -> int:
        answers = sum(len(text.encode()) for text in self.answers.values())
        return answers + sum(prompt_bytes(sample) for sample in self.samples)

    def state(self) -> dict[str, Any]:
        """The reservoir's, and the answers by sample id."""
        return {**super().state(), "answers": self.answers}

    def load_state(self, state: Mapping[str, Any], pool: Any) -> None:
        super().load_state(state, pool)
        self.answers = dict(state["answers"])
