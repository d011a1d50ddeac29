"""Gradient-based sample selection: replay from a memory whose gradients point different ways.

Batches are mixed as in replay; which samples are kept is the greedy variant of Aljundi et al. 2019
(arXiv 1903.08671, algorithm 2): with g a sample's gradient of the loss by the trained weights and
G_j those of a few samples drawn from the memory, c = 1 + max_j g·G_j / (‖g‖ ‖G_j‖). While slots
are free all are kept; then a sample with c < 1 replaces sample i, drawn with probability
C_i / Σ C, with probability C_i / (C_i + c). So a full memory only takes in samples that oppose
all they are compared with, and one that fills up in the first stage may stay with the first task.

Other than in the paper, samples are offered after each stage, in random order, with gradients at
the weights that it ended with, in eval mode, and gradients are random projections. Costs a pass
forward and back for each sample in the memory and each candidate, once a stage.

Stores one adapter (or the changed weights), and the memory's samples with a number each. One
process only; no sharded parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clmm.memory import check_budget, check_share, slots
from clmm.strategy import Context, Tuned
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class Gss(Tuned):
    """Replay whose memory is chosen by gradients."""

    budget: float = 0.05
    """Memory: a share of all training samples of the stream if below 1, else how many samples."""
    share: float = 0.5
    """Part of each batch that is drawn from the memory once it holds something (stage 2 on)."""
    compared: int = 10
    """Samples drawn from the memory to compare a new one with."""
    candidates: int | None = 256
    """Samples of a stage that are offered to the memory, drawn at random; None: all of them."""
    dimensions: int = 1024
    """Length of projected gradients; their cosines are wrong by about 1/√dimensions."""

    def __post_init__(self) -> None:
        check_budget("gss.budget", self.budget)
        check_share("gss.share", self.share)
        for name in ("compared", "candidates", "dimensions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"gss.{name}: must be at least 1; got {value}")

    def parts(self, context: Context) -> list[Any]:
        from clmm.gradient_memory import GradientMemory

        return [
            GradientMemory(
                size=slots(self.budget, context.stream),
                share=self.share,
                seed=context.seed,
                compared=self.compared,
                candidates=self.candidates,
                dimensions=self.dimensions,
            )
        ]
