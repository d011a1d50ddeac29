"""EWC: a penalty for moving weights that the Fisher information of earlier tasks calls important.

loss + λ/2 · Σ_t Σ_i F_{t,i} (θ_i − θ*_{t,i})² (Kirkpatrick et al. 2017, arXiv 1612.00796), a term
for each earlier task t with the weights θ*_t it ended with. F_t is the mean over up to
`fisher_samples` training samples of ∇ℓ², ℓ one sample's loss (the mean over its answer's tokens, as
in training), in eval mode: the empirical Fisher, from per-sample gradients. Avalanche's EWCPlugin
squares batch gradients and has no ½; with micro-batches of one sample and half of λ it is the same.

`online` keeps one term instead: F ← γ·F + F_t around the latest weights (Schwarz et al. 2018,
Progress & Compress, arXiv 1805.06370).

Stores the trained weights and 8 bytes for each trained parameter, whatever the number of tasks: a
sum of quadratics is one quadratic around their weighted mean. Costs a forward and backward pass
for every Fisher sample. Supports several processes. No sharded parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Ewc(Tuned):
    """Sequential tuning, tied by a quadratic to where earlier tasks ended."""

    strength: float = 1000.0
    """λ."""
    fisher_samples: int = 200
    """How many of a task's training samples the Fisher information is measured on."""
    online: bool = False
    """One running Fisher and the latest weights, instead of a term for each task."""
    decay: float = 1.0
    """γ, how much of the running Fisher each stage keeps; only with online."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise SettingError(f"ewc.strength: must be 0 or more, finite; got {self.strength}")
        if self.fisher_samples < 1:
            raise SettingError(f"ewc.fisher_samples: must be above 0; got {self.fisher_samples}")
        if not 0 <= self.decay <= 1:
            raise SettingError(f"ewc.decay: must be from 0 to 1; got {self.decay}")
        if self.decay != 1 and not self.online:
            raise SettingError(
                f"ewc.decay: without online nothing decays, set online: true; got {self.decay}"
            )

    def parts(self, context: Context) -> list[Any]:
        from clmm.importance import Sampled, fisher

        return [
            Sampled(
                fisher,
                samples=self.fisher_samples,
                scale=self.strength / 2,
                decay=self.decay,
                centred=not self.online,
            )
        ]
