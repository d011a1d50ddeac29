"""One LoRA adapter, trained on task after task with nothing done against forgetting.

Stores the adapter: 4·r·Σ(in + out) bytes, whatever the number of tasks. No sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clmm.strategy import Context, Method, Stages, one_by_one


@dataclass(frozen=True, kw_only=True)
class SequentialLora:
    """The baseline of continual LoRA tuning; the base weights stay as they are."""

    rank: int = 8
    """Rank of each LoRA update; equal ranks train equally many parameters in all strategies."""
    alpha: int = 16
    """LoRA's scale is alpha / rank."""
    learning_rate: float | None = None
    """In place of train.learning_rate."""
    plugins: tuple[Any, ...] = ()
    """Stock Avalanche plugins by name and settings, e.g. {name: EWCPlugin, ewc_lambda: 1.0}."""

    def stages(self, tasks: Sequence[str]) -> Stages:
        return one_by_one(tasks)

    def build(self, context: Context) -> Method:
        from clmm.adapters import weights

        return Method(weights=weights("lora", context, rank=self.rank, alpha=self.alpha))
