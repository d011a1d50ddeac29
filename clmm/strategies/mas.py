"""MAS: a penalty for moving weights to which the outputs of earlier tasks are sensitive.

loss + λ · Σ_i Ω_i (θ_i − θ*_i)² (Aljundi et al. 2018, arXiv 1711.09601), θ* the weights after the
latest stage. Each stage adds to Ω_i the mean over up to `importance_samples` training samples of
|∂‖z‖²/∂θ_i|, in eval mode; ‖z‖² is the squared length of the logits, a mean over the answer's
tokens. No loss enters, so neither do labels. Avalanche's MASPlugin averages Ω over stages instead
of adding, and takes batches for samples; until the second stage ends, with micro-batches of one
sample, it is the same.

Stores the trained weights and 8 bytes for each trained parameter, whatever the number of tasks.
Costs a forward and backward pass for every importance sample. Supports several processes. No
sharded parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Mas(Tuned):
    """Sequential tuning that holds the weights which the outputs hang on."""

    strength: float = 1e-4
    """λ. ‖z‖² grows with the vocabulary, so a classifier's usual 1 is far too much."""
    importance_samples: int = 200
    """How many of a task's training samples the importance is measured on."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise SettingError(f"mas.strength: must be 0 or more, finite; got {self.strength}")
        if self.importance_samples < 1:
            raise SettingError(
                f"mas.importance_samples: must be above 0; got {self.importance_samples}"
            )

    def parts(self, context: Context) -> list[Any]:
        from clmm.importance import Sampled, sensitivity

        return [Sampled(sensitivity, samples=self.importance_samples, scale=self.strength)]
