"""The numbers of one strategy and seed, each with its standard error over items.

Knows a run's stages and paired statistics; how seeds become one number, `reports.table` says.
R[i][j] is the accuracy on task j after stage i, R[0][j] the base's; the definitions are those of
`streams.metrics`. A comparison is paired by items, and tasks have different items, so the errors
of tasks add up as those of independent parts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from reports.records import Outcomes, Scores
from reports.run_folder import StageFolder
from safety.judge_quality import Quality
from safety.scores import OBSERVED, UNSCORED, WEIGHT, ProbeScores, rule

CONFIDENCE = 0.95
NORMAL = float(ndtri((1 + CONFIDENCE) / 2))
"""Half the width of an interval over items, in standard errors."""
DRIFTS = ("refusal.rate", "existence.accuracy", "captions.chair_i")
"""The probes' figures whose change from the base is in the table."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value of one seed and its standard error over items; NaN where unknown."""

    value: float = math.nan
    error: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a finished stage found, without what nothing here needs."""

    scores: Scores
    outcomes: Outcomes | None

    @classmethod
    def read(cls, folder: StageFolder) -> Stage:
        scores = folder.read_scores()
        if not folder.has_outcomes:
            return cls(scores=scores, outcomes=None)
        kept = folder.read_outcomes()
        wanted = {*(_accuracy_of(task) for task in scores.get("tasks", {})), *DRIFTS}
        for name in DRIFTS:  # what a change through a judge is made of
            wanted |= {name + OBSERVED, name + UNSCORED}
        values = {n: v for n, v in kept["values"].items() if n.removesuffix(WEIGHT) in wanted}
        return cls(scores=scores, outcomes={"values": values, "clusters": kept["clusters"]})

    @property
    def unseen(self) -> list[str]:
        """Tasks that were not trained on so far."""
        return [name for name, record in self.scores.get("tasks", {}).items() if not record["seen"]]

    def accuracy(self, task: str) -> Measured:
        """R[i][j]; its error is that of the stored interval."""
        record = self.scores.get("tasks", {}).get(task)
        if record is None or record["accuracy"] is None:
            return Measured()
        error = self._error(_accuracy_of(task))
        return Measured(value=record["accuracy"], error=error)

    def figure(self, name: str) -> Measured:
        value = self.scores["figures"].get(name)
        return Measured() if value is None else Measured(value=value, error=self._error(name))

    def quality(self, figure: str) -> Quality | None:
        """How often the judge is right whose errors the figure was corrected for."""
        record = self.scores.get("judges", {}).get(figure)
        if record is None:
            return None
        return Quality(**{k: v for k, v in record.items() if k != "note"})  # type: ignore[arg-type]

    def _error(self, figure: str) -> float:
        low, high, n = self.scores.get("intervals", {}).get(figure, (None, None, 0))
        known = low is not None and high is not None and n
        return (high - low) / (2 * NORMAL) if known else math.nan  # type: ignore[operator]


Lane = Sequence[Stage]
"""The base, then the finished stages of one seed."""


def last_accuracy(lane: Lane) -> Measured:
    """mean_j R[T][j], over all tasks of the stream."""
    return _mean([lane[-1].accuracy(task) for task in lane[-1].scores.get("tasks", {})])


def learning_accuracy(lane: Lane) -> Measured:
    """mean_i R[i][i]: each task just after the stage that taught it."""
    return _mean([stage.accuracy(task) for stage, task in _taught(lane)])


def backward_transfer(lane: Lane) -> Measured:
    """mean over the tasks taught before the last stage of R[T][j] − R[j][j]."""
    return _mean(
        [
            _change([(1.0, lane[-1])], stage, _accuracy_of(task))
            for stage, task in _taught(lane[:-1])
        ]
    )


def unseen_transfer(lane: Lane) -> Measured:
    """mean over the stages that leave tasks unseen of mean_{u unseen} (R[i][u] − R[0][u]).

    Below 0 it is negative transfer. The stages of a task share its items and its base, so each
    task is one comparison: the mean of its stages with the base, item by item.
    """
    leaving = [stage for stage in lane[1:] if stage.unseen]
    parts: defaultdict[str, list[tuple[float, Stage]]] = defaultdict(list)
    for stage in leaving:
        for task in stage.unseen:
            parts[task].append((1 / (len(leaving) * len(stage.unseen)), stage))
    shares = [sum(share for share, _ in stages) for stages in parts.values()]
    changes = [
        _change([(w / share, stage) for w, stage in stages], lane[0], _accuracy_of(task))
        for share, (task, stages) in zip(shares, parts.items(), strict=True)
    ]
    return _weighted(shares, changes)


def drift(figure: str) -> Callable[[Lane], Measured]:
    """The last stage less the base."""

    def measure(lane: Lane) -> Measured:
        if len(lane) < 2:
            return Measured()
        return _change([(1.0, lane[-1])], lane[0], figure)

    return measure


def cost(key: str, over_stages: Callable[[list[float]], float]) -> Callable[[Lane], Measured]:
    """A cost of all stages; items have no part in it, so its error is 0."""

    def measure(lane: Lane) -> Measured:
        given = [stage.scores.get("cost", {}).get(key) for stage in lane[1:]]
        known = [float(value) for value in given if isinstance(value, int | float)]
        return Measured(value=over_stages(known), error=0.0) if known else Measured()

    return measure


def _accuracy_of(task: str) -> str:
    return f"task.{task}.accuracy"


def _taught(lane: Lane) -> list[tuple[Stage, str]]:
    return [(s, task) for s in lane if (task := s.scores["task"]) is not None]


def _change(now: Sequence[tuple[float, Stage]], then: Stage, figure: str) -> Measured:
    """The weighted mean of the stages `now`, whose weights add up to 1, less `then`."""
    value = sum(weight * stage.figure(figure).value for weight, stage in now)
    value -= then.figure(figure).value
    kept = [(weight, stage.outcomes) for weight, stage in now if stage.outcomes is not None]
    if math.isnan(value) or then.outcomes is None or len(kept) < len(now):
        return Measured(value=value)
    quality = now[0][1].quality(figure)
    anchor = _scores(then.outcomes, then.outcomes["values"], figure, then.quality(figure))
    mine = _scores(kept[0][1], _averaged(kept, figure), figure, quality)
    change = mine.changes_from(anchor, figure)
    return Measured(value=value) if change is None else Measured(value=value, error=change.error)


def _scores(
    kept: Outcomes,
    values: Mapping[str, Mapping[str, float]],
    figure: str,
    quality: Quality | None,
) -> ProbeScores:
    judged = replace(rule(), quality=quality)
    return ProbeScores(figures={figure: judged}, outcomes=values, clusters=kept["clusters"])


def _averaged(
    stages: Sequence[tuple[float, Outcomes]], figure: str
) -> Mapping[str, Mapping[str, float]]:
    """Each item's weighted mean over the stages; a lone stage as it is, for ratios too."""
    values = [(weight, kept["values"]) for weight, kept in stages]
    if len(values) == 1:
        return values[0][1]
    items = values[0][1].get(figure, {})
    return {figure: {item: sum(w * v[figure][item] for w, v in values) for item in items}}


def _mean(parts: Sequence[Measured]) -> Measured:
    return _weighted([1 / len(parts)] * len(parts), parts) if parts else Measured()


def _weighted(weights: Sequence[float], parts: Sequence[Measured]) -> Measured:
    """Σ w·part, its error as if the parts were independent."""
    if not parts:
        return Measured()
    value = sum(w * part.value for w, part in zip(weights, parts, strict=True))
    errors = [w * part.error for w, part in zip(weights, parts, strict=True)]
    return Measured(value=float(value), error=float(np.sqrt(np.square(errors).sum())))
