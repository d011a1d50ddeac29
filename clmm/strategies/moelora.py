"""MoELoRA: one LoRA split into experts that a learnt gate mixes for every token.

y = Wx + (α/r)·Σ_e softmax(Gx)_e B_e A_e x, E experts of rank r/E and a gate G in each layer, tuned
on task after task (CoIN, Chen et al. 2024, arXiv 2403.08350). All experts see all tokens; nothing
balances their load. Trains one LoRA of rank r and the gates, E·Σ in parameters more.

Stores the experts, 4·(r·Σ(in + out) + E·Σ in) bytes, whatever the number of tasks. Supports
several processes; no sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from clmm.strategy import Context, LoraTuned, Method
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class MoeLora(LoraTuned):
    """Tokens of different tasks may be served by different experts."""

    experts: int = 4
    """E, the experts of each layer; divides the rank."""

    def __post_init__(self) -> None:
        if not 0 < self.experts <= self.rank or self.rank % self.experts:
            raise SettingError(
                f"moelora.experts: must divide the rank, {self.rank}; got {self.experts}"
            )

    def build(self, context: Context) -> Method:
        from clmm.experts import ExpertLora

        weights = ExpertLora(
            context.model,
            rank=self.rank,
            alpha=self.alpha,
            experts=self.experts,
            seed=context.seed,
        )
        return Method(weights=weights, plugins=self.parts(context))
