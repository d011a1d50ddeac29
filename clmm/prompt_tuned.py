"""What strategies that learn soft prompts have in common: their settings, in place of LoRA's.

Imports no torch; the weights are `clmm.prompt_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clmm.strategy import Context, Stages, one_by_one
from streams.settings import SettingError


@dataclass(frozen=True, kw_only=True)
class PromptTuned:
    """Learns prompts on task after task; a base for others."""

    length: int = 10
    """Soft tokens of one prompt."""
    learning_rate: float | None = 1e-2
    """In place of train.learning_rate when not None: prompts want far more than LoRA."""
    plugins: tuple[Any, ...] = ()
    """Stock Avalanche plugins by name and settings."""

    def stages(self, tasks: Sequence[str]) -> Stages:
        return one_by_one(tasks)

    def parts(self, context: Context) -> list[Any]:
        """Nothing; so that others may add theirs (`clmm/strategies/combined.py`)."""
        return []


def check_counts(where: str, **counts: int) -> None:
    """Raises SettingError unless each is 1 or more."""
    for name, count in counts.items():
        if count < 1:
            raise SettingError(f"{where}.{name}: must be 1 or more; got {count}")


def check_strength(where: str, **strengths: float) -> None:
    """Raises SettingError unless each is 0 or above, and finite."""
    for name, strength in strengths.items():
        if not 0 <= strength < float("inf"):
            raise SettingError(f"{where}.{name}: must be 0 or above; got {strength}")
