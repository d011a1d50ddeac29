"""TIES-Merging: each task tunes its own LoRA; trimmed changes of one sign are averaged and answer.

θ = θ₀ + λ·τ (Yadav et al. 2023, arXiv 2306.01708). Trim: of each task vector, (α/r)·B_t A_t of all
layers together, the `keep` largest entries stay, the others become zero. Elect: the sign of the
sum of what stayed (plus if it is zero). Merge: τ is the mean of the entries that have that sign.

Stores for each task an adapter, 4·r·Σ(in + out) bytes; while the merged model answers, also a copy
of the touched base weights on the CPU. Sets `supports_distributed = True`. No sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from clmm.strategy import Context, LoraTuned, Method
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Ties(LoraTuned):
    """Small changes and those of the losing sign do not blur the merge."""

    keep: float = 0.2
    """Share of each task's entries that is kept, the largest; the authors' k = 20 %."""
    scale: float = 1.0
    """λ; the authors' 1 without validation."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise SettingError(f"ties.keep: must be above 0 and at most 1; got {self.keep}")
        if not 0 < self.scale < float("inf"):
            raise SettingError(f"ties.scale: must be above 0; got {self.scale}")

    def build(self, context: Context) -> Method:
        from clmm import merging
        from clmm.adapters_merged import method

        return method(self, context, partial(merging.ties, keep=self.keep, scale=self.scale))
