"""Another order of a stream's tasks, by name or by seed, the same for all strategies.

`stream: {name: ordered, of: default, order_seed: 1}`. What a strategy forgets depends on the
order, so a comparison should be made over several. Train and test sets stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import NonNegativeInt

from streams.catalog import nearest
from streams.loading import load_stream
from streams.settings import SettingError
from streams.stream import Task


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """Takes one of `order` and `order_seed`."""

    of: Any
    """The stream: a name, a path, a mapping or a list, as `stream` of a study takes."""
    order: tuple[str, ...] | None = None
    """The tasks' names. A task that is not named is left out."""
    order_seed: NonNegativeInt | None = None
    """Draws a permutation of all tasks."""

    def __post_init__(self) -> None:
        if (self.order is None) == (self.order_seed is None):
            got = f"order {self.order!r} and order_seed {self.order_seed!r}"
            raise SettingError(f"ordered.order: give it or order_seed, one of the two; got {got}")
        if self.order is not None and len(set(self.order)) != max(len(self.order), 1):
            got = f"got {list(self.order)}"
            raise SettingError(f"ordered.order: name each task once, at least one; {got}")

    def tasks(self) -> tuple[Task, ...]:
        tasks = load_stream(self.of, where="ordered.of").tasks
        if self.order is None:
            permutation = np.random.default_rng(self.order_seed).permutation(len(tasks))
            return tuple(tasks[index] for index in permutation)
        by_name = {task.name: task for task in tasks}
        for name in self.order:
            if name not in by_name:
                hint = nearest(name, list(by_name))
                raise SettingError(f"ordered.order: the stream has no task {name!r}{hint}")
        return tuple(by_name[name] for name in self.order)
