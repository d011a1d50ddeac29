"""GEM: the nearest update that, to first order, raises the loss on no earlier task's memory.

g ← the g̃ nearest to g with g̃·g_k ≥ 0 for the gradient g_k of every earlier task k (Lopez-Paz &
Ranzato 2017, arXiv 1706.08840). In the dual: g̃ = Gᵀv + g, v the minimum of ½ vᵀGGᵀv + vᵀGg over
v ≥ γ; only where some g·g_k < 0. g is the whole batch's gradient before clipping; g_k that of the
mean loss over all that is kept of task k. The memory has equally many slots for every task of the
stream. Its samples are never trained on. Combined with a penalty, name the penalty first: g then
includes it.

Stores the trained weights and the memory's samples; holds a gradient for each earlier task while
training. Costs one more forward and backward pass over the whole memory an update. One process;
no sharded parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clmm.memory import TaskMemory, check_budget, shuffled, slots
from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Gem(Tuned):
    """Sequential tuning whose gradient opposes that of no earlier task."""

    budget: float = 0.05
    """Memory: a share of all training samples of the stream if below 1, else how many samples."""
    margin: float = 0.0
    """γ: above 0, a violated constraint also steps towards lower losses of earlier tasks."""

    def __post_init__(self) -> None:
        check_budget("gem.budget", self.budget)
        if not 0 <= self.margin < math.inf:
            raise SettingError(f"gem.margin: must be 0 or more, finite; got {self.margin}")

    def parts(self, context: Context) -> list[Any]:
        from clmm.gradients import EpisodicProjection

        memory = TaskMemory(
            size=slots(self.budget, context.stream),
            share=0.0,
            seed=context.seed,
            rank=shuffled,
            tasks=len(context.stream.tasks),
        )
        return [memory, EpisodicProjection(memory, margin=self.margin)]
