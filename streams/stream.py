"""A stream: an ordered list of tasks, each with its own train and test samples.

Knows no model. Loading a stream by name, path or list is `streams.loading`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streams.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Task:
    """One experience: what is trained on and what is tested on. Train and test are disjoint.

    `objective` says how its samples are learnt: the name of a file in `clmm/objectives`, or a
    mapping of that name and its settings.
    """

    name: str
    train: Sequence[Sample]
    test: Sequence[Sample]
    description: str = ""
    objective: str | Mapping[str, Any] = "sft"


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Tasks in the order in which a model meets them."""

    name: str
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names:
            raise ValueError(f"stream {self.name}: it has no task")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stream {self.name}: two tasks are named {twice[0]}")
