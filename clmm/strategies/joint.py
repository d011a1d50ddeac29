"""All tasks at once, in one stage: the upper bound that no stream allows.

Takes the updates of all stages together. Stores one adapter or the changed weights. No sharded
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clmm.strategy import Context, Method, Stages


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Shuffled samples of every task; it has one stage, after which it has seen them all."""

    tuning: Literal["lora", "full"] = "lora"
    """What is trained: a LoRA adapter, or projector and language model themselves."""
    rank: int = 8
    """Rank of each LoRA update."""
    alpha: int = 16
    """LoRA's scale is alpha / rank."""
    learning_rate: float | None = None
    """In place of train.learning_rate."""

    def stages(self, tasks: Sequence[str]) -> Stages:
        return (tuple(tasks),)

    def build(self, context: Context) -> Method:
        from clmm.adapters import weights

        return Method(weights=weights(self.tuning, context, rank=self.rank, alpha=self.alpha))
