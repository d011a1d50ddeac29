"""Individual tuning: every task alone, from the base; the bound that no other task can spoil.

Each stage puts the base back and begins anew, with the same initial adapter, so nothing passes
from one task to the next. After stage i all tasks are answered by the weights that were trained
on task i alone. Of the accuracy matrix R[i][j] only the diagonal is a bound: R[i][i] is what task
i reaches by itself. What lies off it tells how one task's weights do on another, and backward
transfer and forgetting, which compare rows, mean nothing here.

Stores one adapter (or the changed weights) at a time; to have the bound, one a task would be
needed. No sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clmm.strategy import Context, Method, Tuned


@dataclass(frozen=True, kw_only=True)
class Individual(Tuned):
    """One task a stage, each from the base."""

    def build(self, context: Context) -> Method:
        method = super().build(context)
        afresh: Any = _Afresh(method.weights)
        return Method(weights=afresh, plugins=method.plugins)


class _Afresh:
    """Weights that every stage begins from the base."""

    def __init__(self, weights: Any) -> None:
        self._weights = weights
        # Attributes of its own: a protocol does not see what `__getattr__` finds.
        self.as_trained, self.trains, self.take = weights.as_trained, weights.trains, weights.take

    def begin(self, task: str) -> None:
        self._weights.restore()
        self._weights.begin(task)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)
