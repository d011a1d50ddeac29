"""Projector and language model tuned on task after task; the encoder stays frozen.

Stores the changed weights, whatever the number of tasks. No sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clmm.strategy import Context, Method, Stages, one_by_one


@dataclass(frozen=True, kw_only=True)
class SequentialFull:
    """The baseline that forgets most; it trains far more parameters than LoRA strategies."""

    learning_rate: float | None = None
    """In place of train.learning_rate; full tuning usually wants a tenth of LoRA's."""
    plugins: tuple[Any, ...] = ()
    """Stock Avalanche plugins by name and settings, e.g. {name: EWCPlugin, ewc_lambda: 1.0}."""

    def stages(self, tasks: Sequence[str]) -> Stages:
        return one_by_one(tasks)

    def build(self, context: Context) -> Method:
        from clmm.adapters import Full

        return Method(weights=Full(context.model))
