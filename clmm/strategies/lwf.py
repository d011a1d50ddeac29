"""Learning without forgetting: the model before the stage teaches its answers' likelihoods.

loss + λ · KL(softmax(z_old / T) ‖ softmax(z / T)), a mean over the supervised tokens of the
stage's own batches (Li & Hoiem 2016, arXiv 1606.09282; their cross-entropy has the same gradient).
No sample of earlier tasks is needed. There is no factor T², which Hinton et al. 2015 put before
it: λ stands for both. z_old are logits of the weights that the stage began with, in eval mode.

Stores the trained weights, nothing more between stages; holds them twice while one trains. Costs
one more forward pass a batch. Supports several processes. No sharded parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Lwf(Tuned):
    """Sequential tuning that also imitates its former self on the new samples."""

    strength: float = 1.0
    """λ."""
    temperature: float = 2.0
    """T: higher ones make unlikely tokens count more."""
    from_base: bool = False
    """The first stage imitates the base model; otherwise it trains freely."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise SettingError(f"lwf.strength: must be 0 or more, finite; got {self.strength}")
        if not 0 < self.temperature < math.inf:
            raise SettingError(f"lwf.temperature: must be above 0, finite; got {self.temperature}")

    def parts(self, context: Context) -> list[Any]:
        from clmm.distillation import Distillation

        return [
            Distillation(
                strength=self.strength, temperature=self.temperature, from_base=self.from_base
            )
        ]
