"""What a study would do, before it does it: tasks, strategies, stages, items, steps.

Knows sizes and arithmetic; trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from clmm.result import Terminal, plain_table, print_table
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
    leaks: str = ""
    """What was found of test items in training data; empty when it was not looked for."""

    @property
    def each(self) -> dict[str, int]:
        """Strategy's label → optimiser steps of one seed."""
        sizes = {task.name: len(task.train) for task in self.stream.tasks}
        return {
            label: sum(
                self.study.train.updates(sum(sizes[name] for name in names), len(names))
                for names in strategy.stages(list(sizes))
            )
            for label, strategy in zip(self.study.labels, self.study.strategies, strict=True)
        }

    @property
    def steps(self) -> int:
        """Optimiser steps of all strategies and seeds."""
        return sum(self.each.values()) * len(self.study.seeds)

    @property
    def stages(self) -> int:
        """Stages that are trained, and scored, in all runs."""
        names = [task.name for task in self.stream.tasks]
        each = sum(len(strategy.stages(names)) for strategy in self.study.strategies)
        return each * len(self.study.seeds)

    @cached_property
    def held_out(self) -> dict[str, int]:
        """Probe → how many of its items are in slices held out of any training."""
        found = {}
        for probe in self.study.probes:
            slices = getattr(probe, "slices", ()) if getattr(probe, "held_out", False) else ()
            drawn = probe.samples(self.study.probe_seed) if slices else []
            name = type(probe).__name__.lower()
            found[name] = sum(sample.metadata.get("slice") in slices for sample in drawn)
        return found

    def print(self) -> None:
        console = Terminal(highlight=False)
        study, tasks = self.study, {task.name for task in self.stream.tasks}
        seeds = ", ".join(map(str, study.seeds))
        console.print(f"model {study.model}, stream {self.stream.name}, seeds {seeds}\n")
        table = plain_table("stage", "train", "test", "steps")
        for stage, task in enumerate(self.stream.tasks, 1):
            steps = str(study.train.updates(len(task.train)))
            table.add_row(f"{stage}  {task.name}", str(len(task.train)), str(len(task.test)), steps)
        print_table(table)
        console.print()
        table = plain_table("strategy", "trainable parameters", "share", "steps")
        for label, count in self.trainable.items():
            share, steps = f"{count / self.total:.1%}", f"{self.each[label]:,}"
            table.add_row(label, f"{count:,}", share, steps)
        print_table(table)
        console.print()
        table = plain_table("probe", "items", "held out")
        for name, count in self.items.items():
            if name not in tasks:
                table.add_row(name, str(count), str(self.held_out.get(name) or "–"))
        print_table(table)
        held_out, asked = sum(self.held_out.values()), sum(self.items.values())
        if held_out:
            console.print(
                f"{held_out} items are in held-out slices, whose pairs and phrasings nano was not "
                "built with; held_out: false leaves them out",
                soft_wrap=True,
            )
        if self.leaks:
            console.print(f"\n{self.leaks}", markup=False, soft_wrap=True)
        runs = len(study.strategies) * len(study.seeds)
        console.print(
            f"\n{_count(runs, 'run')}, {_count(self.stages, 'stage')} after the base: "
            f"about {self.steps:,} steps and {asked * (1 + self.stages):,} answers",
            soft_wrap=True,
        )


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
