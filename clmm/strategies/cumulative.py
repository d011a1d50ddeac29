"""Cumulative tuning: every stage trains on all tasks so far; a bound with unlimited memory.

Stage k goes on from the weights of stage k − 1, on the shuffled training samples of tasks 1 to k.
With train.steps it takes k · steps updates, else as many as `epochs` passes over those samples
take: T tasks cost about (T + 1) / 2 times the updates of a strategy that trains each task once.
Tasks are drawn in proportion to their samples.

Stores one adapter or the changed weights; the samples of all tasks have to stay available and are
not counted. Supports several processes; no sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clmm.strategy import Stages, Tuned


@dataclass(frozen=True, kw_only=True)
class Cumulative(Tuned):
    """Joint training of the tasks seen so far, once more at each stage."""

    def stages(self, tasks: Sequence[str]) -> Stages:
        return tuple(tuple(tasks[: k + 1]) for k in range(len(tasks)))
