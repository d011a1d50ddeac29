"""One LoRA adapter a task; a router chooses which one answers, or that the base does.

Nothing is overwritten, so only routing can forget. After each stage the router learns the task's
prototype from its training samples (`clmm.routing.PrototypeRouter`); oracle routing is reported
beside it. Stores for each task an adapter, 4·r·Σ(in + out) bytes, and a prototype, about 136·D
bytes. No sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clmm.strategy import BASE, Context, LoraTuned, Method, Stages, one_by_one


@dataclass(frozen=True, kw_only=True)
class IsolatedLora(LoraTuned):
    """Every task has its own adapter of this rank, so each stage trains as much as one LoRA."""

    router: Literal["prototype"] = "prototype"
    """How samples find their adapter. The oracle is no choice: it is always reported beside."""
    quantile: float = 0.99
    """Samples farther from a task than this share of its training samples (and a tenth more) are
    answered by another adapter, or by the base."""

    def stages(self, tasks: Sequence[str]) -> Stages:
        for name in tasks:
            if "." in name or name == BASE:
                raise ValueError(
                    f"task {name!r}: an adapter cannot bear this name; rename the task"
                )
        return one_by_one(tasks)

    def build(self, context: Context) -> Method:
        from clmm.adapters import Lora
        from clmm.routing import PrototypeRouter

        lora = Lora(
            context.model, rank=self.rank, alpha=self.alpha, seed=context.seed, one_per_task=True
        )
        router = PrototypeRouter(context.model, context.batcher, lora, quantile=self.quantile)
        parts = self.parts(context)
        return Method(weights=lora, router=router, plugins=parts, routes_stay=True)
