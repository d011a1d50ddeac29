"""A-GEM: updates that would raise the loss on a memory of earlier tasks are turned aside.

g ← g − (g·r / r·r) · r where g·r < 0, else g (Chaudhry et al. 2019, arXiv 1812.00420). g is the
whole batch's gradient before clipping; r is the gradient of the loss on `reference_batch` samples
of the memory, drawn afresh for every update, without replacement until all have been seen. The
memory is a reservoir: every training sample seen so far is in it with the same probability. Its
samples are never trained on. Combined with a penalty, name the penalty first: g then includes it.

Stores the trained weights and the memory's samples. Costs one more forward and backward pass an
update. One process; no sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clmm.memory import Reservoir, check_budget, slots
from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class AGem(Tuned):
    """Sequential tuning whose gradient never opposes that of the memory."""

    budget: float = 0.05
    """Memory: a share of all training samples of the stream if below 1, else how many samples."""
    reference_batch: int | None = None
    """Samples that r is taken on; None: as many as in a training batch."""

    def __post_init__(self) -> None:
        check_budget("a_gem.budget", self.budget)
        if self.reference_batch is not None and self.reference_batch < 1:
            raise SettingError(
                f"a_gem.reference_batch: must be above 0; got {self.reference_batch}"
            )

    def parts(self, context: Context) -> list[Any]:
        from clmm.gradients import AverageProjection

        size = slots(self.budget, context.stream)
        memory = Reservoir(size=size, share=0.0, seed=context.seed)
        return [memory, AverageProjection(memory, batch_size=self.reference_batch)]
