"""No training: the base model on every task, the lower bound.

Stores nothing; any model and any sharding will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clmm.strategy import Context, Method, Stages


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """The untouched model. It has no stages, so its scores are the base's."""

    def stages(self, tasks: Sequence[str]) -> Stages:
        return ()

    def build(self, context: Context) -> Method:
        from clmm.adapters import Frozen

        return Method(weights=Frozen())
