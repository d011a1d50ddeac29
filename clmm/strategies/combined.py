"""Several strategies at once: the weights and the router of the first, the parts of all.

`{name: combined, of: [isolated_lora, {name: replay, budget: 0.05}]}` is replay into isolated
adapters. Stores what each of them stores. No sharded parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clmm.strategy import Context, LoraTuned, Method, Stages, Tuned
from streams.settings import SettingError, from_spec


@dataclass(frozen=True, kw_only=True)
class Combined:
    """The first of `of` decides what is trained and who answers; the others add their parts.

    Rank, learning rate and stock plugins are the first one's too.
    """

    of: tuple[Any, ...]
    """Two strategies or more, by name and settings."""

    def __post_init__(self) -> None:
        given = enumerate(self.of)
        found = tuple(from_spec("clmm.strategies", s, where=f"combined.of[{i}]") for i, s in given)
        object.__setattr__(self, "of", found)
        if len(found) < 2:
            raise SettingError(f"combined.of: name two strategies or more; got {len(found)}")
        for place, strategy in enumerate(found):
            if not hasattr(strategy, "parts"):
                raise SettingError(
                    f"combined.of[{place}]: {type(strategy).__name__} has no parts to combine"
                )
            changes_weights = type(strategy).build not in _PLAIN
            if place and changes_weights:
                raise SettingError(
                    f"combined.of[{place}]: {type(strategy).__name__} brings weights of its own; "
                    "only the first can, so name it first"
                )

    @property
    def learning_rate(self) -> float | None:
        return getattr(self.of[0], "learning_rate", None)

    @property
    def plugins(self) -> tuple[Any, ...]:
        return tuple(getattr(self.of[0], "plugins", ()))

    def stages(self, tasks: Sequence[str]) -> Stages:
        stages: Stages = self.of[0].stages(tasks)
        return stages

    def build(self, context: Context) -> Method:
        method: Method = self.of[0].build(context)
        for strategy in self.of[1:]:
            method.plugins += strategy.parts(context)
        return method


_PLAIN = (LoraTuned.build, Tuned.build)
