"""Five visibly different tasks, three of them on real sources, new to the embedded model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from streams.sources.counting import Counting
from streams.sources.digits import Digits
from streams.sources.easy_vqa import EasyVqa
from streams.sources.parity import Parity
from streams.sources.position import Position
from streams.stream import Task


@dataclass(frozen=True, kw_only=True)
class Default:
    """digits (a number word), position (a sentence), easy_vqa_color (a colour), parity (yes or
    no), counting (a number word). Neighbours differ in what they ask and in how it is answered,
    so that each stage pulls the model's habits another way.
    """

    train_items: PositiveInt = 2000
    """Train items of each task."""
    test_items: PositiveInt = 300
    """Test items of each task; at most 360."""
    seed: NonNegativeInt = 0
    """Chooses scenes, items and phrasings of every task."""

    def tasks(self) -> tuple[Task, ...]:
        same: dict[str, Any] = {
            "train_items": self.train_items,
            "test_items": self.test_items,
            "seed": self.seed,
        }
        sources = (
            Digits(**same),
            Position(most_things=1, **same),
            EasyVqa(questions="color", **same),
            Parity(**same),
            Counting(**same),
        )
        return tuple(task for source in sources for task in source.tasks())
