"""The model in training, as objectives ask it: drawn answers, and how likely it found them before.

Knows the trainer's model and a copy of its trained weights; nothing of losses. Answers are drawn
from torch's global generator, which every stage seeds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clmm.answering import Answerer
from clmm.benchmark import Examples
from clmm.gradients import copies, logits_with
from clmm.objective import Drawn


class TrainedActor:
    """Made when a stage begins. `model` is the trainer's (`clmm.trainer.TokenLogits`).

    Keeps a copy of the trained weights until the stage is over: as many bytes as they have.
    """

    def __init__(self, model: Any, *, autocast: torch.dtype | None) -> None:
        self._model, self._autocast = model, autocast
        self._old = copies(model)

    def draw(
        self, examples: Examples, *, count: int, temperature: float, max_new_tokens: int
    ) -> list[list[Drawn]]:
        answerer = Answerer(self._model.model, examples.batcher, autocast=self._autocast)
        return answerer.draw(
            examples.samples, count=count, temperature=temperature, max_new_tokens=max_new_tokens
        )

    def earlier(self, rows: Examples) -> Tensor:
        return logits_with(self._old, self._model, rows)
