"""Riemannian walk: a penalty by Fisher information and by what each weight's moving earned.

loss + λ · Σ_i (F_i + s_i) (θ_i − θ*_i)² (Chaudhry et al. 2018, arXiv 1801.10112), θ* the weights
after the latest stage, F and s each divided by its largest value. F is a moving average over all
updates, F ← α·g² + (1 − α)·F, with the batch's gradient g (without the penalty, before clipping).
s_i adds up, over intervals of updates, how much the loss fell along weight i in proportion to
½·F_i·Δθ_i² + ε; negative scores count as 0, and a new stage's are averaged with those before. The
paper adds a memory of samples to this: combine it with replay. Like Avalanche's RWalkPlugin, less
one forward and backward pass an update.

Stores the trained weights and 16 bytes for each trained parameter, whatever the number of tasks;
holds 20 more while a stage trains. Supports several processes. No sharded parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Rwalk(Tuned):
    """Sequential tuning that holds weights which matter now and weights which earned most."""

    strength: float = 0.1
    """λ."""
    mix: float = 0.9
    """α, the newest batch's part of the moving Fisher."""
    interval: int = 10
    """Updates between two scores; what is left at a stage's end makes one more."""
    damping: float = 1e-7
    """ε, which bounds the score of weights that hardly moved."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise SettingError(f"rwalk.strength: must be 0 or more, finite; got {self.strength}")
        if not 0 < self.mix <= 1:
            raise SettingError(f"rwalk.mix: must be above 0, at most 1; got {self.mix}")
        if self.interval < 1:
            raise SettingError(f"rwalk.interval: must be above 0; got {self.interval}")
        if not 0 < self.damping < math.inf:
            raise SettingError(f"rwalk.damping: must be above 0, finite; got {self.damping}")

    def parts(self, context: Context) -> list[Any]:
        from clmm.importance import Walk

        return [
            Walk(scale=self.strength, mix=self.mix, interval=self.interval, damping=self.damping)
        ]
