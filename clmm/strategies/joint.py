"""All tasks at once, in one stage: the upper bound that no stream allows.

Takes the updates of all stages together. Stores one adapter or the changed weights. No sharded
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clmm.strategy import Stages, Tuned


@dataclass(frozen=True, kw_only=True)
class Joint(Tuned):
    """Shuffled samples of every task; it has one stage, after which it has seen them all."""

    def stages(self, tasks: Sequence[str]) -> Stages:
        return (tuple(tasks),)
