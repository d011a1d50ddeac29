"""DARE: each task tunes its own LoRA; most of each change is dropped, the rest rescaled and merged.

τ̂_t = m ⊙ τ_t / (1 − p) with m Bernoulli(1 − p) entry by entry and τ_t = (α/r)·B_t A_t of each
layer, then θ = θ₀ + λ Σ_t τ̂_t, or λ times TIES' elected mean (Yu et al. 2024, arXiv 2311.03099).
The dropping takes the place of TIES' trimming, as in peft's `dare_ties`. Masks derive from the
seed, the task and the layer, so a task's mask never changes.

Stores for each task an adapter, 4·r·Σ(in + out) bytes; while the merged model answers, also a copy
of the touched base weights on the CPU. Sets `supports_distributed = True`. No sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from clmm.strategy import Context, LoraTuned, Method
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Dare(LoraTuned):
    """Sparse task vectors get less into each other's way."""

    drop: float = 0.9
    """p, the share of each task's entries that is dropped."""
    then: Literal["sum", "ties"] = "sum"
    """How the rest is merged: task arithmetic, or the mean of the entries of the elected sign."""
    scale: float = 0.4
    """λ; 1 suits `then: ties`, whose mean does not grow with the tasks."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise SettingError(f"dare.drop: must be from 0 to below 1; got {self.drop}")
        if not 0 < self.scale < float("inf"):
            raise SettingError(f"dare.scale: must be above 0; got {self.scale}")

    def build(self, context: Context) -> Method:
        from clmm import merging
        from clmm.adapters_merged import method

        return method(
            self,
            context,
            partial(
                merging.dare, share=self.drop, scale=self.scale, then=self.then, seed=context.seed
            ),
        )
