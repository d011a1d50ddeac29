"""The table of a study: one row a strategy, each number with its interval over seeds and items.

Knows run folders and how seeds become one number; `reports.measures` says what is measured, and
`reports.export` writes the table down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from reports import measures
from reports.measures import CONFIDENCE, Lane, Measured, Stage
from reports.records import RunFolderError, Scores
from reports.run_folder import RunFolder
from safety.statistics import over_seeds

ONE_SEED, UNFINISHED, NONE = "†", "‡", "–"
INDIVIDUAL = "individual"
"""The strategy whose stages begin from the base, so that rows of its matrix do not compare."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval; `low` and `high` are NaN when none can be given."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def within(self, least: float, most: float) -> Estimate:
        """With no end of the interval outside what the number can be."""
        return replace(self, low=max(self.low, least), high=min(self.high, most))


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number of a strategy: where it stands, how it is measured in a seed, how it is shown."""

    name: str
    group: Literal["tasks", "drift", "cost"]
    measure: Callable[[Lane], Measured]
    bounds: tuple[float, float]
    meaning: str
    figure: str = ""
    """The probe's figure that it compares; a study without it has no such column."""
    scale: float = 100.0
    digits: int = 1
    signed: bool = False

    @property
    def title(self) -> str:
        return self.name[0].upper() + self.name[1:]

    def estimate(self, seeds: Iterable[Measured]) -> Estimate:
        """Of one seed: over items. Without a spread, as a cost of one seed, it has no interval."""
        found = list(seeds)
        if not found:
            return Estimate()
        values, errors = [one.value for one in found], [one.error for one in found]
        mean, low, high = over_seeds(values, errors, confidence=CONFIDENCE)
        if not low < high:
            return Estimate(value=mean)
        return Estimate(value=mean, low=low, high=high).within(*self.bounds)

    def number(self, value: float) -> str:
        if math.isnan(value):
            return NONE
        value = round(value * self.scale, self.digits) + 0.0  # and no minus before a zero
        return f"{value:{'+' if self.signed else ''},.{self.digits}f}"


def _share(name: str, measure: Callable[[Lane], Measured], meaning: str) -> Column:
    return Column(name=name, group="tasks", measure=measure, bounds=(0, 1), meaning=meaning)


def _transfer(name: str, measure: Callable[[Lane], Measured], meaning: str) -> Column:
    return replace(_share(name, measure, meaning), bounds=(-1, 1), signed=True)


def _drift(name: str, figure: str) -> Column:
    meaning = f"{figure} after the last stage less the base's"
    column = _transfer(name, measures.drift(figure), meaning)
    return replace(column, group="drift", figure=figure)


def _cost(name: str, key: str, over_stages: Any, meaning: str, **shown: Any) -> Column:
    measure = measures.cost(key, over_stages)
    bounds = (0.0, math.inf)
    return Column(name=name, group="cost", measure=measure, bounds=bounds, meaning=meaning, **shown)


COLUMNS = (
    _share("last accuracy", measures.last_accuracy, "mean over all tasks of R[T][j]"),
    _transfer(
        "backward transfer",
        measures.backward_transfer,
        "mean over the tasks taught before the last stage of R[T][j] - R[j][j]",
    ),
    _transfer(
        "unseen transfer",
        measures.unseen_transfer,
        "mean over the stages that leave tasks unseen of the mean over these of R[i][u] - R0[u]; "
        "below 0 is negative transfer",
    ),
    _share("learning accuracy", measures.learning_accuracy, "mean over stages of R[i][i]"),
    _drift("refusal drift", "refusal.rate"),
    _drift("existence drift", "existence.accuracy"),
    _drift("CHAIRi drift", "captions.chair_i"),
    _cost("training, s", "seconds", sum, "seconds of training, all stages", scale=1),
    _cost(
        "stored, MiB",
        "stored_bytes",
        lambda values: values[-1],
        "bytes kept after the last stage to go on or to answer",
        scale=2**-20,
        digits=2,
    ),
    _cost(
        "trainable parameters",
        "trainable_parameters",
        max,
        "the most parameters that were trained at once",
        scale=1,
        digits=0,
    ),
)
ACCURACY = COLUMNS[0]
GAIN = next(column for column in COLUMNS if column.name == "unseen transfer")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One strategy of one run."""

    run: str
    label: str
    spec: Mapping[str, Any]
    """The strategy's name and settings."""
    seeds: Mapping[int, Mapping[str, Measured]]
    """Seed → column → what it reached; the seeds that got furthest."""
    stages: Mapping[int, Sequence[Scores]] = field(repr=False)
    """Seed → scores of its finished stages."""
    gains: Mapping[int, Sequence[Measured]] = field(repr=False)
    """Seed → after each stage, the mean change of the tasks not seen yet (NaN: none is left)."""
    cells: Mapping[str, Estimate]
    behind: str = ""
    """What is not finished yet."""

    @property
    def done(self) -> int:
        return len(next(iter(self.stages.values()), ()))

    @property
    def marked(self) -> str:
        """The number of seeds, with what is to be said of it."""
        if not self.done:
            return ""
        one = ONE_SEED if len(self.seeds) == 1 else ""
        return f"{len(self.seeds)}{one}{UNFINISHED if self.behind else ''}"

    def gain(self, stage: int) -> Estimate:
        """Over seeds, after a stage counted from 1."""
        return GAIN.estimate([one[stage - 1] for one in self.gains.values()])


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one or more runs of the same base."""

    runs: Mapping[str, RunFolder]
    base: Scores = field(repr=False)
    rows: tuple[Row, ...]
    waiting: tuple[str, ...] = ()
    """Strategies of the study of which no stage is done."""

    @property
    def columns(self) -> list[Column]:
        """Tasks and costs always, a drift if its figure was measured at the base."""
        measured = self.base["figures"]
        return [c for c in COLUMNS if not c.figure or measured.get(c.figure) is not None]

    def cell(self, row: Row, column: Column) -> Estimate:
        return row.cells.get(column.name, Estimate())

    @property
    def notes(self) -> Iterator[str]:
        """What the numbers are and are not."""
        many = max((len(row.seeds) for row in self.rows if row.done), default=1) > 1
        over = "seeds and items" if many else "items"
        yield f"In points of 100; brackets are {CONFIDENCE:.0%} intervals over {over}."
        if any(ONE_SEED in row.marked for row in self.rows):
            over = "; its intervals are over items alone" if many else ""
            yield f"{ONE_SEED} one seed: no claim{over}."
        behind = dict.fromkeys(row.behind for row in self.rows if row.behind)
        if behind:
            those = {b: ", ".join(r.label for r in self.rows if r.behind == b) for b in behind}
            listed = "; ".join(f"{labels} ({b})" for b, labels in those.items())
            yield f"{UNFINISHED} unfinished, as it stands now: {listed}."
        if any(math.isnan(self.cell(row, c).value) for row in self.rows for c in self.columns):
            yield f"{NONE} not defined for the strategy, or without an item to measure it on."
        if self.waiting:
            yield f"No stage is done yet: {', '.join(self.waiting)}."
        alone = [row.label for row in self.rows if row.spec.get("name") == INDIVIDUAL]
        if alone:
            yield (
                f"{', '.join(alone)}: each stage begins from the base, so only the learning "
                "accuracy is a bound, and there is no backward transfer."
            )


def read(paths: Sequence[Path | str]) -> Table:
    """The table of the run folders; raises RunFolderError when their bases differ."""
    places = [Path(path).resolve() for path in paths]
    if twice := next((p for p, q in zip(paths, places, strict=True) if places.count(q) > 1), None):
        raise RunFolderError(f"{twice}: this run folder is given twice")
    tables = [_read(RunFolder(path)) for path in paths]
    first, *others = tables
    for other in others:
        _check_base(first, other)
    names = _names(paths)
    pairs = [(name, row) for name, table in zip(names, tables, strict=True) for row in table.rows]
    labels = [row.label for _, row in pairs]
    rows = [replace(row, run=run, label=_apart(run, row.label, labels)) for run, row in pairs]
    return Table(
        runs={name: RunFolder(path) for name, path in zip(names, paths, strict=True)},
        base=first.base,
        rows=tuple(rows),
        waiting=tuple(label for table in tables for label in table.waiting),
    )


def _apart(run: str, label: str, labels: Sequence[str]) -> str:
    return f"{run}/{label}" if labels.count(label) > 1 else label


def _names(paths: Sequence[Path | str]) -> list[str]:
    stems = [Path(path).resolve().name for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem} ({i})" for i, stem in enumerate(stems, 1)]


def _read(folder: RunFolder) -> Table:
    folder.config_text()  # raises if this is no run folder
    if not folder.base().done:
        raise RunFolderError(f"{folder.path}: the base is not scored yet; finish the run first")
    rows = rows_of(folder)
    shown = {row.label for row in rows}
    return Table(
        runs={folder.path.name: folder},
        base=folder.base().read_scores(),
        rows=tuple(rows),
        waiting=tuple(label for label in folder.studied() if label not in shown),
    )


def rows_of(folder: RunFolder) -> list[Row]:
    """The strategies in the study's order: those with a finished stage, and those without any."""
    base, studied, untrained = Stage.read(folder.base()), folder.studied(), folder.untrained()
    planned = folder.config().get("seeds")
    seeds = len(planned) if isinstance(planned, list) else 0
    rows = [_row(folder, label, studied.get(label, {}), base, seeds) for label in folder.listed()]
    return [row for row in rows if row.done or row.label in untrained]


def _row(folder: RunFolder, label: str, spec: Mapping[str, Any], base: Stage, planned: int) -> Row:
    """One strategy over its seeds; those that got furthest count."""
    done = {seed: folder.finished(label, seed) for seed in folder.seeds(label)}
    most = max(map(len, done.values()), default=0)
    found: dict[int, dict[str, Measured]] = {}
    stages: dict[int, list[Scores]] = {}
    gains: dict[int, list[Measured]] = {}
    behind = ""
    for seed, numbers in done.items():
        if len(numbers) < most or not most:
            continue
        lane = [base, *(Stage.read(folder.stage(label, seed, n)) for n in numbers)]
        found[seed] = {column.name: column.measure(lane) for column in COLUMNS}
        if spec.get("name") == INDIVIDUAL:
            found[seed]["backward transfer"] = Measured()
        stages[seed] = [stage.scores for stage in lane[1:]]
        gains[seed] = [measures.unseen_transfer([base, stage]) for stage in lane[1:]]
        if lane[-1].unseen:
            behind = f"stage {most} of {len(lane[-1].scores.get('tasks', {}))}"
    if found and not behind and len(found) < planned:
        behind = f"{len(found)} of {planned} seeds"
    cells = {c.name: c.estimate(one[c.name] for one in found.values()) for c in COLUMNS}
    return Row(
        run=folder.path.name,
        label=label,
        spec=spec,
        seeds=found,
        stages=stages,
        gains=gains,
        cells=cells if found else {ACCURACY.name: accuracy_of(base)},
        behind=behind,
    )


def accuracy_of(base: Stage) -> Estimate:
    """Of the model as it comes, whose accuracy is the last it has."""
    return ACCURACY.estimate([ACCURACY.measure([base])])


def _check_base(first: Table, other: Table) -> None:
    """The same model that is asked the same items has the same figures."""
    (one,), (folder,) = first.runs, other.runs.values()
    for name in dict.fromkeys([*first.base["figures"], *other.base["figures"]]):
        here, there = _known(other.base, name), _known(first.base, name)
        if here != there:
            raise RunFolderError(
                f"{folder.path}: its base is not that of {one}: {name} is {here} here, {there} "
                "there; one table needs the same model, tasks and probe items"
            )


def _known(scores: Scores, figure: str) -> str:
    value = scores["figures"].get(figure)
    items = scores.get("intervals", {}).get(figure, (None, None, 0))[2]
    return "not there" if value is None else f"{value:.6f} on {items} items"
