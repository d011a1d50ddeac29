"""Experience replay: part of every batch comes from a small memory of earlier tasks.

Batches: `share` of each is drawn from the memory, without replacement until all have been seen,
and `alignment_share` from samples of wanted behaviour; the stage's own samples fill the rest. The
number and size of updates do not change, so replayed samples take the place of new ones and cost
no time. Memory, after each stage, by `policy`:

- reservoir (Vitter 1985; Avalanche's ReservoirSamplingBuffer): every training sample seen so far
  is in it with the same probability, so large tasks hold more of it.
- random: the slots are shared equally among all tasks of the stream in advance, and each task's
  are filled once by a uniform draw. It knows how many tasks will come.
- balanced: the slots are shared equally among the tasks seen so far, uniform within each.
- herding (iCaRL, Rebuffi et al. 2017, arXiv 1611.07725): shared as in balanced; the k-th sample
  kept of a task is argmin_x ‖μ − (φ(x) + Σ_{j<k} φ(p_j))/k‖, μ the mean of φ over its training
  samples. φ are features of the frozen base (`clmm.herding`), so it wants `tuning: lora`.

Stores one adapter (or the changed weights) and the memory's samples: their images and text.
Supports several processes; no sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from clmm.memory import (
    Alignment,
    Reservoir,
    TaskMemory,
    check_budget,
    check_share,
    shuffled,
    slots,
)
from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Replay(Tuned):
    """Sequential tuning that revisits stored samples, and alignment samples if asked."""

    budget: float = 0.05
    """Memory: a share of all training samples of the stream if below 1, else how many samples."""
    policy: Literal["reservoir", "random", "balanced", "herding"] = "reservoir"
    """Which samples are kept."""
    share: float = 0.5
    """Part of each batch that is drawn from the memory once it holds something (stage 2 on)."""
    alignment_share: float = 0.0
    """Part of each batch, from stage 1 on, that is drawn from the study's alignment samples."""

    def __post_init__(self) -> None:
        check_budget("replay.budget", self.budget)
        if self.policy not in ("reservoir", "random", "balanced", "herding"):
            raise SettingError(
                "replay.policy: must be reservoir, random, balanced or herding; "
                f"got {self.policy!r}"
            )
        check_share("replay.share", self.share)
        check_share("replay.alignment_share", self.alignment_share)
        if self.share + self.alignment_share >= 1:
            raise SettingError(
                f"replay.alignment_share: with share {self.share} and alignment_share "
                f"{self.alignment_share} no room is left for new samples"
            )

    def parts(self, context: Context) -> list[Any]:
        alignment = Alignment(
            context, share=self.alignment_share, field="replay.alignment_share", mode="during"
        )
        size, share, seed = slots(self.budget, context.stream), self.share, context.seed
        if self.policy == "reservoir":
            return [Reservoir(size=size, share=share, seed=seed), alignment]
        if self.policy == "herding":
            from clmm.herding import Herding

            rank = Herding(context)
            return [TaskMemory(size=size, share=share, seed=seed, rank=rank), alignment, rank]
        tasks = len(context.stream.tasks) if self.policy == "random" else None
        memory = TaskMemory(size=size, share=share, seed=seed, rank=shuffled, tasks=tasks)
        return [memory, alignment]
