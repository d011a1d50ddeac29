"""Distillation from the model as it was before the stage.

Knows logits at supervised tokens, a snapshot of the trained weights and the trainer's callbacks.
Depends on the batch, so it is added in `after_forward`, to every micro-batch its share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clmm.gradients import Named, copies, logits_with


def divergence(logits: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(logits / T)), the mean over tokens; both are [tokens, V].

    Its gradient is that of the cross-entropy with softened targets; unlike it, it is 0 when both
    agree. What the teacher rules out counts nothing, even at logits of −∞.
    """
    old, new = ((z / temperature).log_softmax(dim=1) for z in (teacher, logits))
    known = old.exp()
    return torch.where(known > 0, known * (old - new), 0.0).sum(dim=1).mean()


class Distillation:
    """An Avalanche plugin: strength · `divergence` from the weights that the stage began with."""

    supports_distributed = True
    supervised_only = True

    def __init__(self, *, strength: float, temperature: float, from_base: bool) -> None:
        self._strength, self._temperature, self._from_base = strength, temperature, from_base
        self.plain_first_stage = not from_base
        self._old: Named = {}
        self._tokens = 0.0

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        wanted = self._strength and (strategy.stage > 1 or self._from_base)
        self._old = copies(strategy.model) if wanted else {}

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        if self._old:
            own = torch.tensor(float(strategy.mb_x.tokens), device=strategy.device)
            self._tokens = float(strategy.accelerator.reduce(own, "sum"))

    def after_forward(self, strategy: Any, **_: Any) -> None:
        if not self._old:
            return
        teacher = logits_with(self._old, strategy.model, strategy.mb_x)
        loss = divergence(strategy.mb_output, teacher, temperature=self._temperature)
        # As the trainer weighs its own loss: micro-batches add up, processes average.
        share = strategy.mb_x.tokens / self._tokens * strategy.world
        strategy.loss = strategy.loss + self._strength * share * loss

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        self._old = {}
