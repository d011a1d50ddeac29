"""How a task changed since the stage that taught it, with an interval over the same items.

Knows which stages to compare; the paired statistics are `safety.statistics`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from reports.records import Outcomes, Scores
from reports.runs import Arm, Point, over_seeds
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


def backward_transfer(arm: Arm) -> Point | None:
    """The mean change of the tasks since they were learnt; one seed: an interval over items."""
    values = [continual(arm, lane).get("backward_transfer") for lane in arm.lanes]
    mean = over_seeds(values)
    if mean is None or len(values) > 1:
        return mean
    changes = [since_learnt(arm, task) for task in arm.run.tasks[:-1]]
    widths = [
        (c.value - c.low, c.high - c.value)
        for c in changes
        if c is not None and c.low is not None and c.high is not None
    ]
    if len(widths) < len(changes):
        return mean
    down, up = (sum(w[side] ** 2 for w in widths) ** 0.5 / len(widths) for side in (0, 1))
    return Point(value=mean.value, low=mean.value - down, high=mean.value + up)


def since_learnt(arm: Arm, task: str) -> Point | None:
    """The last accuracy less that of the stage which taught the task; None for the last task."""
    changes: list[float] = []
    for seed, lane in arm.seeds.items():
        taught = [scores for scores in lane[:-1] if scores["task"] == task]
        now, then = (accuracies([s], [task])[0][0] for s in (lane[-1], (taught or lane)[-1]))
        if not taught or now is None or then is None:
            continue
        changes.append(now - then)
        if len(arm.seeds) == 1:
            ends = [arm.outcomes(seed, s["stage"]) for s in (lane[-1], taught[-1])]
            low, high = _interval(ends[0], ends[1], f"task.{task}.accuracy")
            return Point(value=now - then, low=low, high=high)
    return over_seeds(changes) if changes else None


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
    return over_seeds([continual(arm, lane).get("forgetting_chaudhry") for lane in arm.lanes])


def mean_accuracy(arm: Arm, stage: int) -> Point | None:
    """Mean accuracy over all tasks; one seed: the tasks' half-widths added in quadrature."""
    points = [arm.task(name, stage) for name in arm.run.tasks]
    known = [point for point in points if point is not None]
    if not known:
        return None
    if known[0].seeds > 1:
        rows = [accuracies([scores], arm.run.tasks)[0] for scores in arm.at(stage)]
        return over_seeds([fmean(v for v in row if v is not None) for row in rows if any(row)])
    value = fmean(point.value for point in known)
    widths = [
        (p.value - p.low, p.high - p.value)
        for p in known
        if p.low is not None and p.high is not None
    ]
    if len(widths) < len(known):
        return Point(value=value)
    down, up = (sum(w[side] ** 2 for w in widths) ** 0.5 / len(known) for side in (0, 1))
    return Point(value=value, low=value - down, high=value + up)
