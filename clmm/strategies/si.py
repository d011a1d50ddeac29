"""Synaptic intelligence: a penalty for moving weights whose moving made the loss fall.

loss + c · Σ_i Ω_i (θ_i − θ*_i)² (Zenke et al. 2017, arXiv 1703.04200), θ* the weights after the
latest stage. Each stage adds ω_i / (Δ_i² + ξ) to Ω_i: ω_i is the sum over its updates of −g_i·δ_i,
where g is the batch's gradient without the penalty and before clipping, δ how far the update
moved the weight, and Δ how far the stage did. Negative ω count as 0. Measured while training, so no
sample is looked at again; batches that mix in other samples count as they are.

Stores the trained weights and 8 bytes for each trained parameter, whatever the number of tasks;
holds 16 more while a stage trains. Supports several processes. No sharded parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Si(Tuned):
    """Sequential tuning that holds the weights which earned most."""

    strength: float = 0.1
    """c."""
    damping: float = 1e-3
    """ξ, which bounds the importance of weights that hardly moved."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise SettingError(f"si.strength: must be 0 or more, finite; got {self.strength}")
        if not 0 < self.damping < math.inf:
            raise SettingError(f"si.damping: must be above 0, finite; got {self.damping}")

    def parts(self, context: Context) -> list[Any]:
        from clmm.importance import PathIntegral

        return [PathIntegral(scale=self.strength, damping=self.damping)]
