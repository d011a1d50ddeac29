"""What a study would do, before it does it: tasks, strategies, stages, items, steps.

Knows sizes and arithmetic; trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console

from clmm.result import plain_table, print_table
from clmm.study import Study
from streams.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a study."""

    study: Study
    stream: Stream
    items: Mapping[str, int]
    """Task or probe → items asked after every stage."""
    trainable: Mapping[str, int]
    """Strategy's label → parameters it trains."""
    total: int
    """The model's parameters."""

    @property
    def steps(self) -> int:
        """Optimiser steps of all strategies and seeds."""
        sizes = {task.name: len(task.train) for task in self.stream.tasks}
        each = sum(
            self.study.train.updates(sum(sizes[name] for name in names), len(names))
            for strategy in self.study.strategies
            for names in strategy.stages(list(sizes))
        )
        return each * len(self.study.seeds)

    def print(self) -> None:
        console = Console(highlight=False)
        study, tasks = self.study, {task.name for task in self.stream.tasks}
        seeds = ", ".join(map(str, study.seeds))
        console.print(f"model {study.model}, stream {self.stream.name}, seeds {seeds}\n")
        table = plain_table("stage", "train", "test", "steps")
        for stage, task in enumerate(self.stream.tasks, 1):
            steps = str(study.train.updates(len(task.train)))
            table.add_row(f"{stage}  {task.name}", str(len(task.train)), str(len(task.test)), steps)
        print_table(table)
        console.print()
        table = plain_table("strategy", "trainable parameters", "share")
        for label, count in self.trainable.items():
            table.add_row(label, f"{count:,}", f"{count / self.total:.1%}")
        print_table(table)
        console.print()
        table = plain_table("probe", "items")
        for name, count in self.items.items():
            if name not in tasks:
                table.add_row(name, str(count))
        print_table(table)
        runs = len(study.strategies) * len(study.seeds)
        answers = sum(self.items.values()) * (1 + runs * len(tasks))
        console.print(
            f"\n{runs} runs of {len(tasks)} stages after the base: "
            f"about {self.steps:,} steps and {answers:,} answers"
        )
