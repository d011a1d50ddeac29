"""A stream whose tasks are learnt by another objective: preferences, reinforcement.

`stream: {name: staged, of: digits, objective: {name: rloo, samples: 4}}`. In a list it stands for
one stage among others: `stream: [digits, {name: staged, of: counting, objective: grpo}]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from streams.catalog import nearest
from streams.loading import load_stream
from streams.settings import SettingError
from streams.stream import Task


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Train and test sets stay as they are."""

    of: Any
    """The stream: a name, a path, a mapping or a list, as `stream` of a study takes."""
    objective: str | Mapping[str, Any]
    """How it is learnt: a file of `clmm/objectives`, or its name and settings."""
    only: tuple[str, ...] | None = None
    """The tasks that are; left out, all of them. The others keep their objective."""

    def tasks(self) -> tuple[Task, ...]:
        tasks = load_stream(self.of, where="staged.of").tasks
        names = [task.name for task in tasks]
        for name in self.only or ():
            if name not in names:
                hint = nearest(name, names)
                raise SettingError(f"staged.only: the stream has no task {name!r}{hint}")
        return tuple(
            replace(task, objective=self.objective)
            if self.only is None or task.name in self.only
            else task
            for task in tasks
        )
