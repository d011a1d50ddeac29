"""What a study found: read from its run folder, shown as a table, turned into a report.

Knows the run folder's scores and how an interval is made of them; knows no model.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import ndtri

from clmm.workers import Failure
from reports.records import Outcomes, Scores
from reports.run_folder import RunFolder, StageFolder
from safety.scores import ProbeScores, rule
from safety.statistics import over_seeds

CONFIDENCE = 0.95
NORMAL = float(ndtri((1 + CONFIDENCE) / 2))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval; `low` and `high` are NaN when none can be given."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def within(self, least: float, most: float) -> Estimate:
        """With no end of the interval outside what the number can be."""
        return replace(self, low=max(self.low, least), high=min(self.high, most))

    def show(self, *, scale: float = 100, signed: bool = False) -> str:
        if math.isnan(self.value):
            return "–"
        sign = "+" if signed else ""
        text = f"{self.value * scale:{sign}.1f}"
        if math.isnan(self.low):
            return text
        return f"{text} [{self.low * scale:{sign}.1f}, {self.high * scale:{sign}.1f}]"


class Result:
    """A run folder after a study, finished or not; `failures` are this run's."""

    def __init__(self, folder: Path | str, failures: Sequence[Failure] = ()) -> None:
        self.folder = RunFolder(folder)
        self.failures = tuple(failures)

    @property
    def scores(self) -> dict[str, dict[int, list[Scores]]]:
        """strategy → seed → the scores of each finished stage, the base first."""
        if not self.folder.base().done:
            return {}
        base = self.folder.base().read_scores()
        return {
            strategy: {
                seed: [base, *(stage.read_scores() for stage in self._stages(strategy, seed))]
                for seed in self.folder.seeds(strategy)
            }
            for strategy in self.folder.strategies()
        }

    def _stages(self, strategy: str, seed: int) -> list[StageFolder]:
        found: list[StageFolder] = []
        for number in self.folder.stages(strategy, seed):
            if number != len(found) + 1:
                break  # a gap: what follows belongs to another attempt
            found.append(self.folder.stage(strategy, seed, number))
        return found

    def table(self) -> str:
        """The summary as aligned plain text."""
        out = io.StringIO()
        Console(file=out, width=200, color_system=None).print(self._table())
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def print(self) -> None:
        """The summary on the terminal."""
        print_table(self._table())

    def report(self, path: Path | str | None = None) -> Path:
        """Writes the HTML report to `path`, or into the run folder, and says where it is."""
        from reports.html import write_report

        return write_report([self.folder.path], path or self.folder.report)

    def estimates(self, strategy: str) -> dict[str, Estimate]:
        """Last accuracy, backward transfer, refusal drift and existence drift of a strategy.

        Drift is the last stage less the base. Intervals are over seeds and items; with one seed
        they are over items and say nothing about other seeds.
        """
        runs = [self._run(strategy, seed) for seed in self.folder.seeds(strategy)]
        runs = [run for run in runs if len(run) > 1]
        found = {
            name: _estimate([measure(run) for run in runs]) for name, measure in _MEASURES.items()
        }
        return {n: e.within(0 if "accuracy" in n else -1, 1) for n, e in found.items()}

    def _run(self, strategy: str, seed: int) -> list[_Stage]:
        stages = [self.folder.base(), *self._stages(strategy, seed)]
        return [_Stage(scores=s.read_scores(), outcomes=s.read_outcomes()) for s in stages]

    def _table(self) -> Table:
        table = plain_table("strategy", "seeds", "stages", *_MEASURES)
        count = 0
        base = self.folder.base()
        if base.done:
            whole = _Stage(scores=base.read_scores(), outcomes=base.read_outcomes())
            alone = _estimate([_last_accuracy([whole])]).within(0, 1)
            table.add_row(
                "(base)", "", "0", alone.show(), *("–" for _ in range(len(_MEASURES) - 1))
            )
        for strategy in self.folder.strategies():
            seeds = self.folder.seeds(strategy)
            count = max(count, len(seeds))
            stages = sorted({len(self._stages(strategy, seed)) for seed in seeds})
            found = self.estimates(strategy)
            cells = [e.show(signed="accuracy" not in name) for name, e in found.items()]
            table.add_row(strategy, str(len(seeds)), "–".join(map(str, stages)), *cells)
        over = f"{count} seeds and items" if count > 1 else "items; one seed says little"
        table.caption = f"In points of 100, with {CONFIDENCE:.0%} intervals over {over}."
        table.caption_justify = "left"
        return table


@dataclass(frozen=True, kw_only=True)
class _Stage:
    scores: Scores
    outcomes: Outcomes

    def paired(self) -> ProbeScores:
        figures = {name: rule() for name in self.scores["figures"]}
        outcomes, clusters = self.outcomes["values"], self.outcomes["clusters"]
        return ProbeScores(figures=figures, outcomes=outcomes, clusters=clusters)


_Measured = tuple[float, float]
"""A value and its standard error over items."""
_UNKNOWN: _Measured = (math.nan, math.nan)


def _last_accuracy(run: Sequence[_Stage]) -> _Measured:
    scores = run[-1].scores
    found = [_accuracy(scores, task) for task in scores.get("tasks", {})]
    return _mean(found) if found else _UNKNOWN


def _accuracy(scores: Scores, task: str) -> _Measured:
    value = scores["tasks"][task]["accuracy"]
    low, high, _ = scores.get("intervals", {}).get(f"task.{task}.accuracy", (None, None, 0))
    if value is None or low is None or high is None:
        return math.nan if value is None else value, math.nan
    return value, (high - low) / (2 * NORMAL)


def _backward_transfer(run: Sequence[_Stage]) -> _Measured:
    """Mean over tasks but the last of: accuracy at the end less accuracy just after learning it."""
    changes = [
        _change(run[-1], stage, f"task.{stage.scores['task']}.accuracy")
        for stage in run[:-1]
        if stage.scores["task"] is not None
    ]
    return _mean(changes) if changes else _UNKNOWN


def _drift(figure: str) -> Callable[[Sequence[_Stage]], _Measured]:
    return lambda run: _change(run[-1], run[0], figure)


_MEASURES: dict[str, Callable[[Sequence[_Stage]], _Measured]] = {
    "last accuracy": _last_accuracy,
    "backward transfer": _backward_transfer,
    "refusal drift": _drift("refusal.rate"),
    "existence drift": _drift("existence.accuracy"),
}


def _change(now: _Stage, then: _Stage, figure: str) -> _Measured:
    if figure not in now.scores["figures"]:
        return _UNKNOWN
    change = now.paired().changes_from(then.paired(), figure)
    return _UNKNOWN if change is None else (change.delta, change.error)


def _mean(measured: Sequence[_Measured]) -> _Measured:
    """The mean, its error as if the parts were independent."""
    values, errors = zip(*measured, strict=True)
    return float(np.mean(values)), float(np.sqrt(np.square(errors).sum())) / len(errors)


def _estimate(measured: Sequence[_Measured]) -> Estimate:
    if not measured:
        return Estimate(value=math.nan)
    mean, low, high = over_seeds(*zip(*measured, strict=True), confidence=CONFIDENCE)
    return Estimate(value=mean, low=low, high=high)


def figures_table(figures: Mapping[str, Any]) -> Table:
    """Figures of one model: value, interval, items."""
    table = plain_table("figure", "value", "low", "high", "items")
    for name, figure in figures.items():
        numbers = (figure.value, figure.low, figure.high)
        cells = ["" if number is None else f"{number:.3f}" for number in numbers]
        cells[0] = cells[0] or figure.state
        table.add_row(name, *cells, str(figure.n))
    return table


def plain_table(*columns: str) -> Table:
    """A table without frame; the first column is text, the others numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """On a terminal in its width; in a pipe unbroken."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
