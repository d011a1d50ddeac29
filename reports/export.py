"""The table of a study written down: aligned text, GitHub Markdown, and JSON to redo it from.

Knows `reports.table`; measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from reports import records
from reports.measures import CONFIDENCE, DRIFTS, Stage
from reports.records import Scores
from reports.table import ACCURACY, Column, Estimate, Row, Table, accuracy_of

SCHEMA = 1
BASE = "(base)"

INTERVAL = (
    "mean +- q * sqrt(a + b): a = s^2 / S, where s^2 is the variance of the S seeds' values with "
    "divisor S - 1 (0 for one seed); b = mean(error^2), where error is each seed's standard error "
    "over items; q is the 0.975 quantile of Student's t with (S - 1) * ((a + b) / a)^2 degrees of "
    "freedom, of the normal where a is 0. Ends are cut at the column's bounds. An interval without "
    "width is none."
)


def text(table: Table, width: int = 200) -> str:
    """The table in blocks of columns that fit the width, then the notes."""
    labels, seeds, _ = zip(*_lines(table), strict=True)
    stub = [_padded(["strategy", *labels]), _padded(["seeds", *seeds], right=True)]
    blocks: list[list[list[str]]] = []
    for _, group in groupby(_columns(table), key=lambda pair: pair[0].group):
        columns = [_padded([column.name, *_aligned(cells)]) for column, cells in group]
        whole = _width([*stub, *columns]) <= width  # else the group itself is broken
        for part in [columns] if whole else [[column] for column in columns]:
            if blocks and _width([*stub, *blocks[-1], *part]) <= width:
                blocks[-1] += part
            else:
                blocks.append(part)
    shown = [
        "\n".join("  ".join(cells).rstrip() for cells in zip(*stub, *block, strict=True))
        for block in blocks
    ]
    return "\n\n".join([*shown, "\n".join(table.notes)])


def markdown(table: Table) -> str:
    """A GitHub table with the notes below it."""
    labels, seeds, _ = zip(*_lines(table), strict=True)
    columns = [
        ["strategy", "---", *(f"`{label}`" for label in labels)],
        ["seeds", "---:", *seeds],
        *([column.name, "---:", *map(_joined, cells)] for column, cells in _columns(table)),
    ]
    rows = zip(*(_padded(column) for column in columns), strict=True)
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([*lines, "", "  \n".join(table.notes)]) + "\n"


def record(table: Table) -> dict[str, Any]:
    """All figures a seed and stage, from which every cell of the table can be made again."""
    made: dict[str, Any] = records.plain(
        {
            "schema": SCHEMA,
            "confidence": CONFIDENCE,
            "interval": INTERVAL,
            "columns": {
                column.name: {"meaning": column.meaning, "bounds": column.bounds}
                for column in table.columns
            },
            "runs": {name: folder.config() for name, folder in table.runs.items()},
            "base": _stage(table.base),
            "strategies": [_strategy(table, row) for row in table.rows],
        }
    )
    return made


def _strategy(table: Table, row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "run": row.run,
        "settings": row.spec,
        "unfinished": row.behind or None,
        "cells": {c.name: vars(table.cell(row, c)) for c in table.columns},
        "seeds": {
            seed: {
                "measures": {c.name: vars(measured[c.name]) for c in table.columns},
                "stages": [
                    _stage(scores) | {"unseen_gain": vars(gain), "cost": scores.get("cost", {})}
                    for scores, gain in zip(row.stages[seed], row.gains[seed], strict=True)
                ],
            }
            for seed, measured in row.seeds.items()
        },
    }


def _stage(scores: Scores) -> dict[str, Any]:
    """A row of R, and the probes' figures that the table compares."""
    stage = Stage(scores=scores, outcomes=None)
    return {
        "stage": scores["stage"],
        "task": scores["task"],
        "accuracy": {
            task: {**vars(stage.accuracy(task)), "n": found["n"], "seen": found["seen"]}
            for task, found in scores.get("tasks", {}).items()
        },
        "figures": {
            name: vars(stage.figure(name)) | {"n": scores.get("intervals", {}).get(name, (0,))[-1]}
            for name in DRIFTS
            if name in scores["figures"]
        },
    }


def _lines(table: Table) -> list[tuple[str, str, Mapping[str, Estimate]]]:
    """Label, seeds and cells; the base first, unless a strategy of the study is the base."""
    rows = [(row.label, row.marked, row.cells) for row in table.rows]
    if all(row.done for row in table.rows):
        base = Stage(scores=table.base, outcomes=None)
        rows.insert(0, (BASE, "", {ACCURACY.name: accuracy_of(base)}))
    return rows


_Cell = tuple[str, str, str]
"""Value, low and high; the ends are empty where there is no interval."""


def _columns(table: Table) -> list[tuple[Column, list[_Cell]]]:
    estimates = [cells for _, _, cells in _lines(table)]
    return [
        (column, [_cell(column, cells.get(column.name, Estimate())) for cells in estimates])
        for column in table.columns
    ]


def _cell(column: Column, found: Estimate) -> _Cell:
    ends = [] if math.isnan(found.low) else [found.low, found.high]
    low, high = map(column.number, ends) if ends else ("", "")
    return column.number(found.value), low, high


def _joined(cell: _Cell) -> str:
    value, low, high = cell
    return f"{value} [{low}, {high}]" if low else value


def _aligned(cells: Sequence[_Cell]) -> list[str]:
    """Values stand below values and ends below ends."""
    columns = [_padded(parts, right=True) for parts in zip(*cells, strict=True)]
    padded = zip(cells, zip(*columns, strict=True), strict=True)
    return [_joined((v, low, high)) if cell[1] else v for cell, (v, low, high) in padded]


def _padded(cells: Sequence[str], *, right: bool = False) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(len(column[0]) + 2 for column in columns) - 2
