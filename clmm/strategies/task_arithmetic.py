"""Task arithmetic: each task tunes its own LoRA on the base, and the sum of all changes answers.

θ = θ₀ + λ Σ_t τ_t with the task vectors τ_t = (α/r)·B_t A_t of each layer (Ilharco et al. 2023,
arXiv 2212.04089). With `rule: max` each entry comes from the task that changed it most (Marczak et
al. 2024, arXiv 2407.06322, who tune one task after another instead).

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
class TaskArithmetic(LoraTuned):
    """Tasks do not see each other in training, only in the merge."""

    scale: float = 0.4
    """λ. With many tasks 0.3 to 0.5 served the authors; 1 keeps a single task's change whole."""
    rule: Literal["sum", "max"] = "sum"
    """Whether entries are summed over the tasks, or the largest is taken."""

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise SettingError(f"task_arithmetic.scale: must be above 0; got {self.scale}")

    def build(self, context: Context) -> Method:
        from clmm import merging
        from clmm.adapters_merged import method

        rule = merging.max_merged if self.rule == "max" else merging.summed
        return method(self, context, partial(rule, scale=self.scale))
