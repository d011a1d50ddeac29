"""What a report reads: run folders as strategies over stages, seeds brought together.

Knows how figures of several seeds become one point. Draws nothing and words nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from reports.records import AnswerRecord, Outcomes, RunFolderError, Scores, VerdictRecord
from reports.run_folder import RunFolder
from reports.table import Column, Estimate, Row, rows_of
from reports.wording import bounds
from safety import statistics

SHARE, CHANGE = (0.0, 1.0), (-1.0, 1.0)
"""What a share and a difference of two can be."""
NORMAL = 1.959964
"""Half the width of a 95 % interval in standard errors."""

SEVERITY = ("REGRESSED", "FORMAT", "NOT MEASURABLE", "INCONCLUSIVE", "EQUIVALENT", "IMPROVED")
"""States of a verdict, worst first. FORMAT is a REGRESSED that likelihood does not confirm."""


def state_of(verdict: VerdictRecord) -> str:
    state = verdict["state"].upper().replace("_", " ")
    return "FORMAT" if state == "REGRESSED" and verdict.get("format_only") else state


def severity(verdict: VerdictRecord) -> int:
    """0 is worst; a state this version does not know counts as not measurable."""
    state = state_of(verdict)
    return SEVERITY.index(state if state in SEVERITY else "NOT MEASURABLE")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A figure at a stage. One seed: its interval over items. More: over seeds and items."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    """Items of one seed."""
    seeds: int = 1


def over_seeds(
    values: Sequence[Point | float | None], limits: tuple[float, float] = (-math.inf, math.inf)
) -> Point | None:
    """One point of each seed's; a lone seed keeps its own, None if nothing was measured.

    Few seeds give wide intervals: their ends are cut at what the number can be.
    """
    points = [Point(value=v) if isinstance(v, int | float) else v for v in values]
    found = [point for point in points if point is not None]
    if len(found) < 2:
        return found[0] if found else None
    errors = [
        0.0 if p.low is None or p.high is None else (p.high - p.low) / (2 * NORMAL) for p in found
    ]
    mean, low, high = statistics.over_seeds([point.value for point in found], errors)
    if all(limits[0] <= point.value <= limits[1] for point in found):
        low, high = max(low, limits[0]), min(high, limits[1])
    return Point(value=mean, low=low, high=high, n=found[0].n, seeds=len(found))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on a figure at a stage: the worst of the seeds."""

    stage: int
    record: VerdictRecord
    seed: int

    @property
    def state(self) -> str:
        return state_of(self.record)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One strategy of one run, with all its seeds."""

    run: Run = field(repr=False)
    strategy: str
    label: str
    """The strategy's name, with the run's name before it when several runs are compared."""
    index: int
    """Place among all arms of the report; decides colour, dash and marker."""
    seeds: dict[int, tuple[Scores, ...]] = field(repr=False)
    """Seed → scores of the finished stages, without the base; none of what trains nothing."""

    @property
    def lanes(self) -> list[tuple[Scores, ...]]:
        """For each seed, the base and then the stages."""
        return [(self.run.base, *stages) for stages in self.seeds.values()]

    @property
    def stages(self) -> list[int]:
        return sorted({scores["stage"] for lane in self.lanes for scores in lane})

    @property
    def last(self) -> list[Scores]:
        """The last finished stage of each seed."""
        return [lane[-1] for lane in self.lanes]

    @property
    def trained(self) -> bool:
        """Whether it has any stage; one that trains nothing is the base."""
        return any(self.seeds.values())

    @property
    def row(self) -> Row:
        """Its row of the study's table."""
        return self.run.rows[self.strategy]

    def cell(self, column: Column) -> Point | None:
        return point_from(self.row.cells.get(column.name, Estimate()), seeds=len(self.row.seeds))

    def at(self, stage: int) -> list[Scores]:
        return [s for lane in self.lanes for s in lane if s["stage"] == stage]

    def point(self, figure: str, stage: int) -> Point | None:
        found = self.at(stage)[:1] if stage == 0 else self.at(stage)
        return over_seeds([point_of(scores, figure) for scores in found], bounds(figure))

    def trajectory(self, figure: str) -> list[tuple[int, Point]]:
        points = [(stage, self.point(figure, stage)) for stage in self.stages]
        return [(stage, point) for stage, point in points if point is not None]

    def task(self, name: str, stage: int) -> Point | None:
        """Accuracy of a task at a stage, with the interval of its figure if there is one."""
        found = self.at(stage)[:1] if stage == 0 else self.at(stage)
        return over_seeds([task_of(scores, name) for scores in found], SHARE)

    def verdicts(self, figure: str, anchor: str) -> list[Verdict]:
        """One a stage, the worst of the seeds, against `anchor` (base or previous)."""
        found: dict[int, Verdict] = {}
        for seed, stages in self.seeds.items():
            for scores in stages:
                record = scores.get("verdicts", {}).get(figure, {}).get(anchor)
                if record is None:
                    continue
                old = found.get(scores["stage"])
                if old is None or severity(record) < severity(old.record):
                    verdict = Verdict(stage=scores["stage"], record=record, seed=seed)
                    found[scores["stage"]] = verdict
        return [found[stage] for stage in sorted(found)]

    def outcomes(self, seed: int, stage: int) -> Outcomes | None:
        """Per-item values, or None if the stage kept none."""
        folder = self.run.folder.stage(self.strategy, seed, stage)
        return folder.read_outcomes() if folder.has_outcomes else None

    def answers(self) -> Iterator[tuple[int, list[AnswerRecord]]]:
        """Answers of the first seed: (stage, records), the base first."""
        seed = next(iter(self.seeds))
        yield 0, self.run.base_answers
        for scores in self.seeds[seed]:
            stage = self.run.folder.stage(self.strategy, seed, scores["stage"])
            yield scores["stage"], stage.read_answers()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder: the base and, for each strategy and seed, the stages that are done."""

    folder: RunFolder
    name: str
    base: Scores = field(repr=False)
    lanes: dict[str, dict[int, tuple[Scores, ...]]] = field(repr=False)
    """Strategy → seed → scores of the finished stages; () of what trains nothing."""
    missing: tuple[str, ...] = ()
    """Strategies and seeds that began and have no finished stage."""

    @property
    def has_base_as_strategy(self) -> bool:
        """Whether a strategy of the study trains nothing, so that the base has its own line."""
        return not all(any(seeds.values()) for seeds in self.lanes.values())

    @cached_property
    def rows(self) -> dict[str, Row]:
        """The study's table, by strategy."""
        return {row.label: row for row in rows_of(self.folder)}

    @cached_property
    def base_answers(self) -> list[AnswerRecord]:
        return self.folder.base().read_answers()

    @cached_property
    def tasks(self) -> list[str]:
        """The stream's tasks: in the order they were trained, then as scores.json has them."""
        lanes = [lane for seeds in self.lanes.values() for lane in seeds.values()]
        trained = max(([s["task"] for s in lane if s["task"]] for lane in lanes), key=len)
        named = [name for s in (self.base, *lanes[0]) for name in s.get("tasks", {})]
        return list(dict.fromkeys([*trained, *named]))


@dataclass(frozen=True, kw_only=True)
class Report:
    """The runs that one report compares."""

    runs: tuple[Run, ...]

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        pairs = [(run, strategy) for run in self.runs for strategy in run.lanes]
        return tuple(
            Arm(
                run=run,
                strategy=strategy,
                label=strategy if len(self.runs) == 1 else f"{run.name} · {strategy}",
                index=index,
                seeds=run.lanes[strategy],
            )
            for index, (run, strategy) in enumerate(pairs)
        )

    @property
    def last_stage(self) -> int:
        return max(arm.stages[-1] for arm in self.arms)

    @property
    def trained(self) -> list[Arm]:
        """The strategies that train something."""
        return [arm for arm in self.arms if arm.trained]

    @property
    def fewest_seeds(self) -> int:
        """Of the strategies that train something; 0 when none does."""
        return min((len(arm.seeds) for arm in self.trained), default=0)

    def figures(self) -> list[str]:
        """Names of all figures of all stages, in the order they were written."""
        stages = [s for arm in self.arms for lane in arm.lanes for s in lane]
        return list(dict.fromkeys(name for s in stages for name in s["figures"]))

    def compared(self) -> list[str]:
        """Names of the figures that some stage has a verdict on."""
        return list(dict.fromkeys(name for verdicts in self._verdicts for name in verdicts))

    @cached_property
    def declared_gates(self) -> list[str]:
        """The compared figures that the run declared as gates."""
        declared = dict.fromkeys(
            name
            for verdicts in self._verdicts
            for name, anchors in verdicts.items()
            if any(record.get("gate") for record in anchors.values())
        )
        return list(declared)

    def gates(self) -> list[str]:
        """The declared gates; all compared figures, if none was declared."""
        return self.declared_gates or self.compared()

    @cached_property
    def _verdicts(self) -> list[dict[str, dict[str, VerdictRecord]]]:
        return [s.get("verdicts", {}) for arm in self.arms for lane in arm.lanes for s in lane]


def task_of(scores: Scores, name: str) -> Point | None:
    """A task's accuracy, with the interval of its figure if there is one."""
    record = scores.get("tasks", {}).get(name)
    if record is None or record["accuracy"] is None:
        return None
    figure = point_of(scores, f"task.{name}.accuracy")
    low, high = (figure.low, figure.high) if figure else (None, None)
    return Point(value=record["accuracy"], low=low, high=high, n=record["n"])


def point_from(found: Estimate, *, seeds: int = 1) -> Point | None:
    """A number of the table as a report draws it."""
    if math.isnan(found.value):
        return None
    known = not math.isnan(found.low)
    low, high = (found.low, found.high) if known else (None, None)
    return Point(value=found.value, low=low, high=high, seeds=max(1, seeds))


def point_of(scores: Scores, figure: str) -> Point | None:
    value = scores["figures"].get(figure)
    if value is None:
        return None
    low, high, n = scores.get("intervals", {}).get(figure, (None, None, None))
    if n == 0:  # a constant: no items, so no interval
        low = high = None
    return Point(value=value, low=low, high=high, n=n)


def read(paths: Sequence[Path | str]) -> Report:
    """The finished part of each run folder. Raises RunFolderError if there is nothing to report."""
    if not paths:
        raise RunFolderError("a report needs at least one run folder")
    folders = [RunFolder(path) for path in paths]
    stems = [folder.path.resolve().name for folder in folders]
    names = [stem if stems.count(stem) == 1 else f"{stem} ({i})" for i, stem in enumerate(stems, 1)]
    return Report(runs=tuple(_read(f, name) for f, name in zip(folders, names, strict=True)))


def _read(folder: RunFolder, name: str) -> Run:
    folder.config_text()  # raises if this is no run folder
    if not folder.base().done:
        raise RunFolderError(f"{folder.path}: the base is not scored yet; finish the run first")
    lanes: dict[str, dict[int, tuple[Scores, ...]]] = {}
    missing = []
    untrained = folder.untrained()
    for strategy in folder.listed():
        if strategy in untrained:
            lanes[strategy] = {0: ()}
            continue
        for seed in folder.seeds(strategy):
            stages = folder.finished(strategy, seed)
            if stages:
                read = tuple(folder.stage(strategy, seed, n).read_scores() for n in stages)
                lanes.setdefault(strategy, {})[seed] = read
            else:
                missing.append(f"{strategy}, seed {seed}")
    if not lanes:
        raise RunFolderError(
            f"{folder.path}: no trained stage is done, so nothing can have drifted; finish "
            "the run, or add a strategy that trains"
        )
    base = folder.base().read_scores()
    return Run(folder=folder, name=name, base=base, lanes=lanes, missing=tuple(missing))
