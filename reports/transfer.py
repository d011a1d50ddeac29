"""How a task changed since the stage that taught it, with an interval over the same items.

Knows which stages to compare; the paired statistics are `safety.statistics`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from reports.records import Outcomes, Scores
from reports.runs import CHANGE, SHARE, Arm, Point, over_seeds, task_of
from safety import statistics
from streams.metrics import continual_metrics


def accuracies(lane: Sequence[Scores], tasks: Sequence[str]) -> list[list[float | None]]:
    """[stages, tasks], the base first."""
    return [
        [scores.get("tasks", {}).get(task, {"accuracy": None})["accuracy"] for task in tasks]
        for scores in lane
    ]


def continual(arm: Arm, lane: Sequence[Scores]) -> dict[str, float | None]:
    """The metrics of the accuracy matrix, if every task was trained in a stage of its own."""
    tasks = arm.run.tasks
    base, *matrix = accuracies(lane, tasks)
    trained = [scores["task"] for scores in lane[1:]]
    whole = all(value is not None for row in matrix for value in row)
    if len(tasks) < 2 or trained != tasks or not whole:
        return {}
    return dict(continual_metrics(matrix, None if None in base else base))


def since_learnt(arm: Arm, task: str) -> Point | None:
    """The last accuracy less that of the stage which taught the task; None for the last task."""
    found = [_since_learnt(arm, seed, lane, task) for seed, lane in arm.seeds.items()]
    return over_seeds(found, CHANGE)


def _since_learnt(arm: Arm, seed: int, lane: Sequence[Scores], task: str) -> Point | None:
    taught = [scores for scores in lane[:-1] if scores["task"] == task]
    if not taught:
        return None
    now, then = (accuracies([s], [task])[0][0] for s in (lane[-1], taught[-1]))
    if now is None or then is None:
        return None
    ends = [arm.outcomes(seed, s["stage"]) for s in (lane[-1], taught[-1])]
    low, high = _interval(ends[0], ends[1], f"task.{task}.accuracy")
    return Point(value=now - then, low=low, high=high)


def _with_widths(value: float, parts: Sequence[Point | None]) -> Point:
    """A mean of independent parts: their half-widths added in quadrature, if all have some."""
    widths = [
        (p.value - p.low, p.high - p.value)
        for p in parts
        if p is not None and p.low is not None and p.high is not None
    ]
    if not widths or len(widths) < len(parts):
        return Point(value=value)
    down, up = (sum(w[side] ** 2 for w in widths) ** 0.5 / len(widths) for side in (0, 1))
    return Point(value=value, low=value - down, high=value + up)


def _interval(
    now: Outcomes | None, then: Outcomes | None, figure: str
) -> tuple[float | None, float | None]:
    """Of the paired change; none unless both stages kept the same items."""
    if now is None or then is None:
        return None, None
    after, before = now["values"].get(figure), then["values"].get(figure)
    if not after or not before or after.keys() != before.keys():
        return None, None
    sides = [np.array([[side[i] for i in after], [1.0] * len(after)]) for side in (after, before)]
    clusters = [now["clusters"].get(item, item) for item in after]
    low, high = statistics.paired(sides[0], sides[1], clusters).interval()
    return (low, high) if np.isfinite([low, high]).all() else (None, None)


def forgetting(arm: Arm) -> Point | None:
    """Mean fall from each task's best accuracy (Chaudhry et al. 2018)."""
    found = [continual(arm, lane).get("forgetting_chaudhry") for lane in arm.lanes]
    return over_seeds(found, CHANGE)


def mean_accuracy(arm: Arm, stage: int) -> Point | None:
    """Mean accuracy over all tasks."""
    found = []
    for scores in arm.at(stage)[:1] if stage == 0 else arm.at(stage):
        points = [p for name in arm.run.tasks if (p := task_of(scores, name)) is not None]
        found.append(_with_widths(fmean(p.value for p in points), points) if points else None)
    return over_seeds(found, SHARE)
