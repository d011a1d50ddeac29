"""What a study found: read from its run folder, shown as a table, turned into a report.

Knows how results are shown on a terminal; `reports` says what is in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from clmm.workers import Failure
from reports import export
from reports import table as tables
from reports.records import Scores
from reports.run_folder import RunFolder
from reports.table import Estimate


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
        base, folder = self.folder.base().read_scores(), self.folder
        return {
            strategy: {
                seed: [
                    base,
                    *(
                        folder.stage(strategy, seed, number).read_scores()
                        for number in folder.finished(strategy, seed)
                    ),
                ]
                for seed in folder.seeds(strategy)
            }
            for strategy in folder.strategies()
        }

    def table(self) -> str:
        """The summary as aligned plain text: accuracy, transfer, drift and cost a strategy."""
        return export.text(tables.read([self.folder.path]))

    def markdown(self) -> str:
        """The summary as a GitHub table."""
        return export.markdown(tables.read([self.folder.path]))

    def record(self) -> dict[str, Any]:
        """The summary with all figures a seed and stage, from which it can be made again."""
        return export.record(tables.read([self.folder.path]))

    def print(self) -> None:
        """The summary on the terminal."""
        print_results(tables.read([self.folder.path]))

    def report(self, path: Path | str | None = None) -> Path:
        """Writes the HTML report to `path`, or into the run folder, and says where it is."""
        from reports.html import write_report

        return write_report([self.folder.path], path or self.folder.report)

    def estimates(self, strategy: str) -> dict[str, Estimate]:
        """The table's numbers of a strategy, by the names of its columns.

        Intervals are over seeds and items; with one seed they are over items and say nothing
        about other seeds.
        """
        found = tables.read([self.folder.path])
        row = next(row for row in found.rows if row.label == strategy)
        return {column.name: found.cell(row, column) for column in found.columns}


class Terminal(Console):
    """A console to which a reader that has left, such as head, is no failure: the command ends."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def print_results(found: tables.Table) -> None:
    """On the terminal; where it is narrow, as several tables."""
    console = Terminal()
    print(export.text(found, console.width) if console.is_terminal else export.text(found))


def figures_table(figures: Mapping[str, Any]) -> Table:
    """Figures of one model: value, interval, items; a constant, as a blind floor, has no items."""
    table = plain_table("figure", "value", "low", "high", "items")
    for name, figure in figures.items():
        numbers = (figure.value, figure.low, figure.high)
        cells = ["" if number is None else f"{number:.3f}" for number in numbers]
        cells[0] = cells[0] or figure.state.upper()
        table.add_row(name, *cells, str(figure.n or ""))
    return table


def effect_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Figures without and with decoding options, as `clmm.effect.effect` has them."""
    columns = ("without", "with", "change", "low", "high", "verdict")
    table = plain_table("figure", *columns)
    for name, row in rows.items():
        cells = [row.get(column) for column in columns]
        signs = ("", "", "+", "+", "+", "")
        numbers = zip(cells[:-1], signs, strict=False)
        shown = ["" if number is None else f"{number:{sign}.3f}" for number, sign in numbers]
        table.add_row(name, *shown, cells[-1] or "")
    return table


def plain_table(*columns: str) -> Table:
    """A table without frame; the first column is text, the others numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """On a terminal in its width; in a pipe unbroken."""
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=200)
    console.print(table)
